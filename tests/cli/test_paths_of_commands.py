"""Every path that a command takes is the one that was typed, and every switch is true or false."""

import pytest

from grata.cli import main

NAMES = [
    *("Study #12", "a#b", "#1", "@scans", "$HOME/x", "%x", "(scans)", "[1]", "{a}", "'q'", '"q"', "~/x", "2024"),
    *("with space", "it's", "Müller", "患者", "1_000", "0x10", "True", "a,b", "x/", "./x", "a=b"),
]


@pytest.fixture
def calls(monkeypatch):
    """What each command hands to the function behind it."""
    calls = []

    def take(*given, **options):
        calls.append((given, options))
        return 0

    for module in ("cli.options", "cli.prepare", "cli.calibrate", "cli.methods"):
        monkeypatch.setattr(f"grata.{module}.check_bundle", lambda *_: None)
    for module in ("cli.nnunet", "cli.doctor", "cli.benchmark"):
        monkeypatch.setattr(f"grata.{module}.check_exists", lambda *_: None)
    for place in (
        *("nnunet.command.run_command", "bank.command.run_bank", "benchmark.run_benchmark", "preparation.prepare"),
        *("preparation.calibrate", "doctor.doctor.doctor", "doctor.fit.fitting_methods"),
    ):
        monkeypatch.setattr(f"grata.{place}", take)
    return calls


@pytest.mark.parametrize("path", NAMES)
def test_a_path_is_what_was_typed(path, calls):
    for words, options in (
        (["nnunet", path, path, path], ["bank", "start_from", "save_to", "prepared", "quality"]),
        (["bank", "export", path], ["checkpoint", "output"]),
        (["benchmark", path], ["bundle", "output_dir"]),
        (["prepare", path, path], ["labels_dir", "output"]),
        (["calibrate", path, path], ["labels_dir", "output"]),
        (["doctor", path], ["config_file"]),
        (["methods"], ["bundle"]),
    ):
        calls.clear()
        assert main([*words, *(f"--{name}={path}" for name in options)]) == 0
        ((given, named),) = calls
        assert list(given).count(path) + list(named.values()).count(path) == words.count(path) + len(options), words


@pytest.mark.parametrize("word, meant", [("null", None), ("NULL", None)])
def test_null_is_no_path(word, meant, calls):
    assert main(["nnunet", "m", "i", "o", "--bank", word]) == 0
    assert calls[0][1] == {"bank": meant}


@pytest.mark.parametrize("text", ["a #b", "A#1", "# 1"])
def test_what_follows_a_number_sign_is_not_cut_off(text, calls):
    assert main(["prepare", "b", "d", f"--description={text}", f"--network_def#name={text}"]) == 0
    assert calls[0][1] == {"description": text, "network_def#name": text}


@pytest.mark.parametrize(
    "words", [["--prepared", "false"], ["--prepared=False"], ["--noprepared"], ["--prepared", "true"]]
)
def test_a_filter_that_is_false_is_not_left_out(words, capsys):
    assert main(["methods", *words, "--form", "json"]) == 0
    names = set(json_names(capsys.readouterr().out))
    assert ("grata" in names) == (words[-1] != "true") and ("ttt" in names) == (words[-1] == "true")


def json_names(text):
    import json

    return [method["name"] for method in json.loads(text)]
