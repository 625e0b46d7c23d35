"""``python -m grata methods``: the registry, filtered, described, and held against a bundle."""

import json
import subprocess

import pytest

from grata.errors import GrataError
from grata.methods import METHODS
from grata.report.listing import describe, methods_table, select


@pytest.fixture
def command(python):
    """``python -m grata methods <arguments>``: its exit status and what it printed."""

    def run(*arguments):
        call = [python, "-m", "grata", "methods", *map(str, arguments)]
        result = subprocess.run(call, capture_output=True, text=True, timeout=120, check=False)
        return result.returncode, result.stdout, result.stderr

    return run


def test_filters_agree_with_the_cards():
    assert select() == list(METHODS)
    for name, method in METHODS.items():
        card = method.card
        assert (name in select(backwards=True)) == (card.backwards > 0)
        assert (name in select(prepared=False)) == (not card.prepared)
        assert (name in select(mode="episodic")) == card.episodic
        assert (name in select(spatial_dims=3)) == (3 in card.spatial_dims)
        assert (name in select(changes="affine")) == ("affine" in card.changes)
    assert select(prepared=False, backwards=False, mode="online", changes="mixed") == ["bn_alpha", "diga"]


def test_what_a_source_user_without_source_data_can_use_is_told():
    without = select(prepared=False)
    assert {"source", "ptbn", "tent", "grata", "cotta"} <= set(without)
    assert not {"eata", "ttas", "ttt", "detta"} & set(without)


def test_every_form_names_every_method():
    for form in ("simple", "markdown", "readme"):
        table = methods_table(list(METHODS), form)
        assert all(name in table for name in METHODS)
    records = json.loads(methods_table(list(METHODS), "json"))
    assert [record["name"] for record in records] == list(METHODS)
    assert all(record["reference"] and record["forwards"] >= 1 for record in records)


@pytest.mark.parametrize("name", METHODS)
def test_a_description_holds_the_settings_with_their_defaults_and_the_formula(name):
    text = describe(name)
    assert METHODS[name].card.reference.split(",")[0] in text
    if name != "source":
        assert ".. code-block" in text
    if name == "tent":
        assert "learning_rate_law" in text and "0.001" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--mode", "offline"), "mode: it is online or episodic"),
        (("--spatial_dims", 4), "spatial_dims: it is 2 or 3"),
        (("--backwards", "perhaps"), "backwards: must be true or false"),
        (("--form", "html"), "form: it is simple"),
        (("tentt",), "there is no 'tentt'"),
        (("--bundle", "nowhere"), "nowhere/configs/adapt.yaml does not exist"),
        (("tentt", "--bundle", "nowhere"), "there is no 'tentt'"),
        (("tent", "--form", "json"), "form: it is that of the list of methods. Leave out tent, or form"),
        (("--bundle", "nowhere", "--form", "json"), "form: what a bundle can take is told as simple alone"),
        (("tent", "--mode", "online"), "mode: it chooses among all methods. Leave out tent, or mode"),
        (("tent", "--backwards", "false"), "backwards: it chooses among all methods"),
    ],
)
def test_errors_are_one_line_and_the_status_tells(command, arguments, message):
    status, _, error = command(*arguments)
    assert status == 1 and message in error and "Traceback" not in error


def test_a_bundle_is_told_what_it_can_take_and_what_the_others_lack(command, bundle, tmp_path):
    status, out, _ = command("--bundle", bundle)
    assert status == 0 and all(line.split()[1] == "yes" for line in out.splitlines()[2:])
    folder = tmp_path / "bundle"
    (folder / "configs").mkdir(parents=True)
    text = (bundle / "configs" / "adapt.yaml").read_text()
    (folder / "configs" / "adapt.yaml").write_text(text)
    (folder / "models").symlink_to(tmp_path / "models")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.pt").symlink_to(bundle / "models" / "model.pt")
    status, out, _ = command("--bundle", folder)
    lacking = {line.split()[0] for line in out.splitlines() if line.split()[1:2] == ["no"]}
    assert status == 0 and lacking == set(select(prepared=True))
    assert "python -m grata prepare" in " ".join(out.split())


def test_a_bundle_is_told_whether_it_can_take_one_method(command, bundle):
    status, out, _ = command("tent", "--bundle", bundle)
    assert status == 0 and [line.split()[:2] for line in out.splitlines()[2:]] == [["tent", "yes"]]


def test_a_filter_of_which_nothing_is_left_gives_an_empty_table():
    with pytest.raises(GrataError):
        select(mode="both")
    assert select(changes="nothing of the kind") == []
    assert "method" in methods_table([], "simple")
