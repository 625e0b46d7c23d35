"""Paths and words of the command line mean what was typed, whatever MONAI's parser reads in them."""

import ast
import os
import sys

import fire
import monai.bundle
import pytest
import yaml
from monai.bundle import ConfigParser

from grata.bundles.paths import as_written, keep_texts, verbatim
from grata.errors import GrataError

CONFIG = {
    "imports": ["$import grata"],
    "method": "tent",
    "dataset_dir": "scans",
    "output_dir": "out",
    "site": None,
    "initialize": ["$grata.bundles.keep_paths()"],
    "adapt": ["$open('seen', 'w', encoding='utf-8').write(repr((@dataset_dir, @output_dir, @site)))"],
}


@pytest.fixture
def typed(tmp_path, monkeypatch):
    """What a configuration reads in its keys, when it is run with some words on the command line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def typed(*words, **keys):
        (tmp_path / "adapt.yaml").write_text(yaml.safe_dump({**CONFIG, **keys}), encoding="utf-8")
        words = ["run", "adapt", "--config_file", "adapt.yaml", *words]
        monkeypatch.setattr(sys, "argv", ["monai.bundle", *words])
        fire.Fire({"run": monai.bundle.run}, words)
        return ast.literal_eval((tmp_path / "seen").read_text(encoding="utf-8"))

    return typed


@pytest.mark.parametrize(
    "path",
    [
        *("/data/Study #12", "Study #12", "out#3", "#", "a#b/c #d", "x/$@method #1"),
        *("@scans", "@", "a@method", "(scans)", "[scans]", "{scans}", "'scans'", '"scans"', "2024", "x%method"),
        *("with space", "it's", 'say "hi"', "Müller", "患者二", "trailing/", "./x", "../x", "a\\b", "back\\#tick`"),
        *("--", "1-2", "1.2.3", "a,b c", "~nobody-of-that-name/x", "import os", "$", "-"),
    ],
)
@pytest.mark.parametrize("key", ["dataset_dir", "output_dir"])
def test_a_path_is_what_was_typed(typed, path, key, tmp_path):
    if path in ("$", "[scans]", "{scans}", "2024"):
        (tmp_path / path).mkdir()  # these are no names unless there is such a folder
    read = typed(f"--{key}={path}")
    assert read[("dataset_dir", "output_dir").index(key)] == path


def test_the_home_folder_is_expanded_on_the_command_line_and_in_files(typed, tmp_path):
    home = str(tmp_path / "home")
    assert typed("--dataset_dir=~/scans", output_dir="~/out #1")[:2] == (f"{home}/scans", f"{home}/out #1")
    assert typed("--dataset_dir", "~")[0] == home


def test_a_number_sign_in_a_file_is_kept_and_code_and_references_are_not_changed(typed):
    read = typed(dataset_dir="/data/Study #12", output_dir="$@dataset_dir + '/out'", site="ward #3")
    assert read == ("/data/Study #12", "/data/Study #12/out", "ward #3")
    assert typed("--site", "a#1")[2] == "a#1"
    assert typed("--site", "A #1", "--output_dir", "x")[1:] == ("x", "A #1")


@pytest.mark.parametrize("path", ["$HOME/scans", "$open('evil','w').close()", "$@method", "$__import__('os').getcwd()"])
def test_a_path_is_never_run(typed, path, tmp_path):
    with pytest.raises(Exception) as raised:
        typed("--dataset_dir", path)
    causes = [raised.value, raised.value.__cause__, raised.value.__context__]
    (error,) = {str(cause) for cause in causes if isinstance(cause, GrataError)}
    assert error.startswith("--dataset_dir: ") and "Write ./ before" in error
    assert not (tmp_path / "evil").exists()


def test_a_folder_with_the_name_of_code_is_a_folder(typed, tmp_path):
    for name in ("$@method", "$1", "@method"):
        (tmp_path / name).mkdir()
        assert typed("--dataset_dir", name)[0] == name


def test_a_reference_to_a_key_is_followed_with_a_note(typed, capsys):
    assert typed("--output_dir", "@method")[1] == "tent"
    assert "note: --output_dir @method is read as a reference" in capsys.readouterr().err


def test_words_of_another_program_are_not_taken_for_the_commands(typed, monkeypatch, tmp_path):
    typed("--dataset_dir", "x")
    monkeypatch.setattr(sys, "argv", ["notebook", "--dataset_dir", "elsewhere#2"])
    monai.bundle.run("adapt", config_file="adapt.yaml", dataset_dir="here #1")
    assert ast.literal_eval((tmp_path / "seen").read_text(encoding="utf-8"))[0] == "here #1"


@pytest.mark.parametrize("text", ["a#b", "$x", "@x", "%x", "it's #1", 'a "b" #', "back\\slash#", "@@##", "\udcff#"])
def test_texts_survive_the_parser(text):
    parser = ConfigParser({"a": verbatim(text), "b": "$@a + 'x'"})
    assert parser.get_parsed_content("a") == text and parser.get_parsed_content("b") == text + "x"
    assert as_written(verbatim(text)) == text


def test_only_what_must_be_is_changed():
    config = {
        "a": {"_target_": "Dataset", "_desc_": "remark #1", "data": ["@x#0", "%x#0", "$1 # two"]},
        "imports": ["$import os"],
        "_meta_": {"version": "# 1"},
        "x": ["plain"],
        "prefix": "~",
    }
    parser = ConfigParser(config)
    before = repr(parser.get())
    assert not keep_texts(parser) and repr(parser.get()) == before
    parser["x"] = ["C # sharp", {"deep": "#"}]
    assert keep_texts(parser) and parser.get_parsed_content("x") == ["C # sharp", {"deep": "#"}]
    assert not keep_texts(parser)


def test_a_bundle_of_ours_takes_such_paths_at_each_of_our_commands(bundle, tmp_path):
    from grata.bundles.bundle import Bundle
    from grata.preparation.run import given_folders

    for name in ("Study #12", "@scans", "$HOME", "%x#y"):
        folder = tmp_path / name
        os.mkdir(folder)
        opened = Bundle(bundle, given_folders(str(folder), None), "prepare")
        assert opened.value("dataset_dir") == str(folder)
    with_sign = tmp_path / "Study #12" / "bundle"
    with_sign.symlink_to(bundle)
    assert Bundle(with_sign, {}, "prepare").value("weights") == f"{with_sign}/models/model.pt"
