"""``grata methods``: the methods filtered, described, and held against a bundle."""

import json

import pytest

from grata.cli import main
from grata.cli.listing import describe, methods_table, select
from grata.doctor import catalogue
from grata.doctor.catalogue import written
from grata.errors import GrataError
from grata.methods import METHODS, settings_of


@pytest.fixture(scope="module")
def methods():
    return catalogue.load()


@pytest.fixture
def command(capsys):
    def command(*arguments):
        status = main(["methods", *map(str, arguments)])
        return status, *capsys.readouterr()

    return command


@pytest.fixture
def chosen(methods):
    return lambda **filters: [method.name for method in select(methods, **filters)]


def test_filters_agree_with_the_cards(chosen):
    assert chosen() == list(METHODS)
    for name, method in METHODS.items():
        card = method.card
        assert (name in chosen(backwards=True)) == (card.backwards > 0)
        assert (name in chosen(prepared=False)) == (not card.prepared)
        assert (name in chosen(mode="episodic")) == card.episodic
        assert (name in chosen(spatial_dims=3)) == (3 in card.spatial_dims)
        assert (name in chosen(changes="affine")) == ("affine" in card.changes)
    mixed = chosen(prepared=False, backwards=False, mode="online", changes="mixed")
    assert mixed == ["bn_alpha", "diga", "dyno", "consensus"]


def test_what_a_source_user_without_source_data_can_use_is_told(chosen):
    without = chosen(prepared=False)
    assert {"source", "ptbn", "tent", "grata", "cotta"} <= set(without)
    assert not {"eata", "ttas", "ttt", "detta"} & set(without)


def test_every_form_names_every_method(methods):
    for form in ("simple", "markdown", "readme"):
        table = methods_table(methods.values(), form)
        assert all(name in table for name in METHODS)
    records = json.loads(methods_table(methods.values(), "json"))
    assert [record["name"] for record in records] == list(METHODS)
    assert all(record["reference"] and record["forwards"] >= 1 for record in records)


@pytest.mark.parametrize("name", METHODS)
def test_a_description_holds_the_settings_with_their_meaning_and_the_formula(name, methods):
    text = describe(methods[name])
    words = " ".join(text.split())
    assert METHODS[name].card.reference.split(",")[0] in text
    if name != "source":
        assert ".. code-block" in text
    for key, setting in METHODS[name].settings().items():
        (row,) = [line.split() for line in text.split("-----\n")[-1].splitlines() if line.startswith(f"{key} ")]
        assert row[1] == written(methods[name].settings[key].default).split()[0]
        assert setting.help.split()[0] in words and settings_of(name)[key] == setting.default


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--mode", "offline"), "mode: must be one of online, episodic, got 'offline'"),
        (("--spatial_dims", 4), "spatial_dims: must be 2 or 3, got 4"),
        (("--spatial_dims", "two"), "spatial_dims: must be 2 or 3, got 'two'"),
        (("tnet",), "Did you mean tent?"),
        (("TENT",), "Did you mean tent?"),
        (("--backwards", "perhaps"), "backwards: must be true or false"),
        (("--form", "html"), "form: must be one of simple, markdown, readme, json"),
        (("tentt",), "there is no 'tentt'"),
        (("--bundle", "nowhere"), "nowhere/configs/adapt.yaml does not exist"),
        (("tentt", "--bundle", "nowhere"), "there is no 'tentt'"),
        (("tent", "--form", "json"), "form: is the form of the list of methods. Leave out tent, or form"),
        (("--bundle", "nowhere", "--form", "json"), "form: what a bundle can take is shown as simple alone"),
        (("tent", "--mode", "online"), "mode: chooses among all methods. Leave out tent, or mode"),
        (("tent", "--backwards", "false"), "backwards: chooses among all methods"),
        (("tent", "--bundle", "sar"), "bundle: sar is a method, not the folder of a bundle"),
    ],
)
def test_errors_are_one_line_and_the_status_tells(command, arguments, message):
    status, _, error = command(*arguments)
    assert status == 1 and message in error and error.count("\n") == 1


def test_a_bundle_is_told_what_it_can_take_and_what_the_others_lack(command, chosen, bundle, tmp_path):
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
    assert status == 0 and lacking == set(chosen(prepared=True))
    assert "python -m grata prepare" in " ".join(out.split())


def test_a_bundle_is_told_whether_it_can_take_one_method(command, bundle):
    status, out, _ = command("tent", "--bundle", bundle)
    assert status == 0 and [line.split()[:2] for line in out.splitlines()[2:]] == [["tent", "yes"]]


def test_a_filter_of_which_nothing_is_left_gives_an_empty_table(methods, chosen):
    with pytest.raises(GrataError):
        select(methods, mode="both")
    assert chosen(changes="nothing of the kind") == []
    assert "method" in methods_table([], "simple")


@pytest.mark.parametrize("words", [["--prepared", "false"], ["--prepared=False"], ["--noprepared"], ["--no-prepared"]])
def test_a_switch_is_false_in_each_spelling(command, chosen, words):
    status, out, _ = command(*words, "--form", "json")
    assert status == 0 and [method["name"] for method in json.loads(out)] == chosen(prepared=False)


def test_null_is_as_if_not_given_and_options_can_stand_by_position(command):
    assert command("--mode", "null") == command() == command("--form", "simple")
    assert command("tent") == command("--name", "tent")
