"""Names that moved work under their old one, with a warning that names the new one."""

import importlib
import subprocess
import sys
import warnings

import pytest
from monai.bundle import ConfigParser

import grata
from grata.views import StrongView

STYLES = ("StrongView", "brightness", "contrast", "gamma_inverted", "gaussian_blur", "min_max")
ALIGNMENT = ("LAWS", "RATES", "CosineRate", "DiscrepancyRate", "Rate", "StepSignals")
ALIGNMENT += ("cosine_similarity", "gradient_norm", "learning_rate_factor", "make_rate")
NAMES = [
    *(("styles", name, "views") for name in STYLES),
    *(("alignment", name, "optimization") for name in ALIGNMENT),
    *(("objectives", name, "predictions") for name in ("ACTIVATIONS", "activate", "view_agreement")),
    ("prepared", "Prepared", "methods"),
    ("prepared", "require", "methods.prepared"),
    *(("prepared", name, "networks") for name in ("SavedHeads", "network_digest", "weights_digest")),
]


@pytest.mark.parametrize(("old", "name", "new"), NAMES)
def test_an_old_name_gives_the_object_and_names_the_new_one(old, name, new):
    words = f"^grata.{old}.{name} is now grata.{new}.{name}, and its old name goes with the next release.$"
    with pytest.warns(DeprecationWarning, match=words) as warned:
        found = getattr(importlib.import_module(f"grata.{old}"), name)
    assert found is getattr(importlib.import_module(f"grata.{new}"), name)
    assert [warning.filename for warning in warned] == [__file__]


def test_an_import_of_an_old_name_is_warned_of_where_it_is():
    with pytest.warns(DeprecationWarning, match="grata.views.StrongView") as warned:
        from grata.styles import StrongView as old
    assert old is StrongView and {warning.filename for warning in warned} == {__file__}


@pytest.mark.parametrize("old", ["styles", "alignment", "objectives", "prepared"])
def test_any_other_name_is_an_attribute_error(old):
    module = getattr(grata, old)
    with pytest.raises(AttributeError, match=f"module 'grata.{old}' has no attribute 'nothing'"):
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
    code = "import sys, grata.styles, grata.alignment, grata.prepared; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
