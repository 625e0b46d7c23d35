"""Names that moved work under their old one, with a warning that names the new one."""

import importlib
import re
import subprocess
import sys
import warnings

import pytest
from monai.bundle import ConfigParser

import grata
from grata._moved import NAMES, PLACES
from grata.views import StrongView


@pytest.mark.parametrize(("old", "new"), NAMES.items())
def test_an_old_name_gives_the_object_and_names_the_new_one(old, new):
    (module, name), (place, _) = old.rsplit(".", 1), new.rsplit(".", 1)
    words = f"^{re.escape(old)} is now {re.escape(new)}, and its old name goes with the next release.$"
    with pytest.warns(DeprecationWarning, match=words) as warned:
        found = getattr(importlib.import_module(module), name)
    assert [warning.filename for warning in warned] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        assert found is getattr(importlib.import_module(place), name)


def test_an_import_of_an_old_name_is_warned_of_where_it_is():
    with pytest.warns(DeprecationWarning, match="grata.views.StrongView") as warned:
        from grata.styles import StrongView as old
    assert old is StrongView and {warning.filename for warning in warned} == {__file__}


@pytest.mark.parametrize("old", PLACES)
def test_any_other_name_is_an_attribute_error(old):
    module = importlib.import_module(old)
    with pytest.raises(AttributeError, match=f"module '{old}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_a_configuration_with_an_old_name_still_works():
    with pytest.warns(DeprecationWarning, match="grata.views.StrongView"):
        view = ConfigParser({"view": {"_target_": "grata.styles.StrongView"}}).get_parsed_content("view")
    assert type(view) is StrongView


def test_new_names_give_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        assert grata.StrongView is StrongView
        assert grata.Prepared is grata.methods.Prepared


def test_old_modules_do_nothing_when_they_are_imported():
    old = PLACES.keys() - {"grata.benchmark", "grata.objectives"}  # which are the places of others still
    code = f"import sys, {', '.join(sorted(old))}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
