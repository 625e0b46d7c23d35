"""The command as a whole: help, statuses, and one line where something is wrong."""

import os
import re
import subprocess
import sys

import pytest

import grata
from grata.cli import main
from grata.cli.app import _COMMANDS
from grata.errors import GrataError


@pytest.fixture
def run(capsys):
    def run(*words):
        status = main([str(word) for word in words])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def called(monkeypatch, tmp_path):
    """What a command hands to the function behind it, in a folder with what the commands name."""
    calls = []
    monkeypatch.chdir(tmp_path)
    for name in ("M", "I", "B/configs", "D", "F"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("f", "f.yaml", "B/configs/adapt.yaml"):
        (tmp_path / name).touch()
    monkeypatch.setattr(
        "grata.nnunet.command.run_command", lambda *given, **options: calls.append((given, options)) or 0
    )
    places = ("benchmark.run_benchmark", "preparation.prepare", "preparation.calibrate", "doctor.doctor.doctor")
    for place in (f"grata.{place}" for place in places):
        monkeypatch.setattr(place, lambda *given, **options: calls.append((given, options)) or 0)
    monkeypatch.setattr("grata.bank.command.run_bank", lambda *given: calls.append((given, {})) or 0)
    return calls


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_help_names_the_commands(run, words):
    status, out, error = run(*words)
    assert status == 0 and not error
    assert all(re.search(rf"^  {name}  +\w", out, re.MULTILINE) for name in _COMMANDS)
    assert "Exit status" in out and not re.search("[╭│]", out)


@pytest.mark.parametrize("name", _COMMANDS)
def test_help_of_a_command_lists_its_options(run, name):
    status, out, error = run(name, "--help")
    assert status == 0 and not error and f"Usage: grata {name}" in out and not re.search("[╭│]", out)
    # A meaning names its thing, "For a bundle: ...", and does not begin with "of".
    assert "  Of " not in out


def test_help_of_nnunet_lists_what_predict_takes(run):
    import inspect

    from grata.nnunet import predict

    _, out, _ = run("nnunet", "--help")
    names = list(inspect.signature(predict).parameters)
    assert all(name in out for name in names[:3]) and all(f"--{name}" in out for name in names[3:])


def test_help_of_the_others_lists_what_their_functions_take(run):
    from grata.benchmark.keys import BenchmarkKeys

    _, out, _ = run("benchmark", "--help")
    assert all(f"--{name} " in out for name in BenchmarkKeys.settings())
    _, out, _ = run("prepare", "--help")
    assert all(
        f"--{name} " in out for name in ("labels_dir", "output", "images", "val_stride", "heads", "epochs", "seed")
    )
    _, out, _ = run("calibrate", "--help")
    assert all(f"--{name} " in out for name in ("labels_dir", "output", "images", "val_stride", "seed"))


def test_the_version(run):
    assert run("--version") == (0, f"{grata.__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("mehtods",), "there is no command 'mehtods'. Did you mean methods?"),
        (
            ("zzz",),
            "there is no command 'zzz'. The commands are methods, doctor, nnunet, bank, calibrate, prepare, benchmark.",
        ),
        (("--quiet",), "--quiet: there is no such option. Name a command, or give --help or --version."),
        (("--verison",), "--verison: there is no such option. Did you mean --version?"),
        (
            ("nnunet", "a", "b", "c", "--settings.lr", "1"),
            "--settings.lr: there is no such option. Did you mean --settings#lr",
        ),
        (("doctor", "a", "--settings.lr", "1"), "--settings.lr: there is no such option. Did you mean --settings#lr"),
        (
            ("benchmark", "f", "--methods.tent.lr", "1"),
            "--methods.tent.lr: there is no such option. Did you mean --methods#tent#lr",
        ),
        (("bank", "list", ""), "folder: needs a value, got ''."),
        (("bank", "reset", "", "--all", "true"), "folder: needs a value, got ''."),
        (("bank", "reset", "x", "--all"), "--all: needs a value."),
        (("prepare", "b", ""), "dataset_dir: needs a value, got ''."),
        (("prepare", "b", "--dataset_dir="), "--dataset_dir: needs a value, got ''."),
        (("benchmark", "f", "--output_dir", ""), "--output_dir: needs a value, got ''."),
        (("doctor", ""), "path: needs a value, got ''."),
        (("nnunet", "", "b", "c"), "model_folder: needs a value, got ''."),
        (("methods", "--mod", "online"), "--mod: there is no such option. Did you mean --mode?"),
        (("nnunet", "a", "b", "c", "--fold", "0"), "--fold: there is no such option. Did you mean --folds?"),
        (("nnunet", "a", "b"), "output: is missing. grata nnunet --help shows what it takes."),
        (("nnunet", "a", "b", "c", "--overwrite", "maybe"), "overwrite: must be true or false, got 'maybe'."),
        (("nnunet", "a", "b", "c", "--seed", "-1"), "seed: must be a whole number of at least 0, got -1."),
        (("nnunet", "a", "b", "c", "--tile_step_size", "half"), "tile_step_size: must be a finite number, got 'half'."),
        (("benchmark", "f", "--limmit", "3"), "--limmit: there is no such option. Did you mean --limit?"),
        (("prepare", "b", "d", "--images", "few"), "images: must be a whole number of at least 1, got 'few'."),
        (("calibrate", "b"), "dataset_dir: is missing. grata calibrate --help shows what it takes."),
        (("calibrate", "b", "d", "--images", "0"), "images: must be a whole number of at least 1, got 0."),
        (("calibrate", "b", "d", "--labels_dir="), "--labels_dir: needs a value, got ''."),
        (("bank", "lists", "x"), "bank: there is no 'lists'. The actions are list, inspect, export, reset."),
        (("bank", "list", "nowhere"), "bank: nowhere does not exist. Name the folder of a bank."),
        (("bank", "reset", "x", "y", "--all", "perhaps"), "all: must be true or false, got 'perhaps'."),
    ],
)
def test_what_is_wrong_is_one_line(run, words, message):
    status, out, error = run(*words)
    assert status == 1 and not out and error.startswith(f"error: {message}") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("doctor", "nowhere"), "nowhere does not exist. Name a folder or a file."),
        (("prepare", "nowhere", "d"), "bundle: nowhere/configs/adapt.yaml does not exist. Name the folder of a bundle"),
        (("calibrate", "nowhere", "d"), "bundle: nowhere/configs/adapt.yaml does not exist."),
        (("methods", "--bundle", "nowhere"), "bundle: nowhere/configs/adapt.yaml does not exist."),
        (("benchmark", "nowhere.yaml"), "nowhere.yaml does not exist. Name the benchmark's configuration file."),
        (("nnunet", "nowhere", "i", "o"), "model_folder: nowhere does not exist. Give a trained-model folder"),
        (("bank", "list", "nowhere"), "bank: nowhere does not exist."),
    ],
)
def test_a_path_that_does_not_exist_is_refused_before_torch_is_imported(words, message):
    code = (
        "import sys; from grata.cli import main; done = main(sys.argv[1:]); sys.exit(done + ('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1


def test_values_of_nnunet(run, called):
    words = ["--folds", "0,1", "--overwrite", "false", "--save-probabilities", "--settings", "{'lr': 0.1}"]
    words += ["--windows#uncertain=4", "--settings#views", "null", "--site", "12", "--device", "'cpu'"]
    words += ["--bank", "null", "--guard", "{'patience': 2}", "--on-reject", "withhold", "--quality", "f"]
    assert run("nnunet", "M", "I", *words, "--output", "O", "--tile_step_size", "1")[0] == 0
    assert called == [
        (
            ("M", "I", "O", "grata"),
            {
                "folds": (0, 1),
                "overwrite": False,
                "save_probabilities": True,
                "settings": {"lr": 0.1},
                "windows#uncertain": 4,
                "settings#views": None,
                "site": "12",
                "device": "cpu",
                "bank": None,
                "guard": {"patience": 2},
                "on_reject": "withhold",
                "quality": "f",
                "tile_step_size": 1.0,
            },
        )
    ]


def test_values_of_the_others(run, called):
    run("benchmark", "f.yaml", "--limit", "null", "--seeds=0,1", "--methods#grata#lr", "0.001", "--shuffle")
    run("prepare", "B", "--dataset-dir", "D", "--heads", "none", "--images", "4", "--network_def#depth", "34")
    run("calibrate", "B", "D", "--val-stride", "1", "--labels_dir", "7", "--device", "cpu")
    run("doctor", "B", "--adaptation#activation", "sigmoid", "--config_file", "configs/x.yaml", "--folds", "0")
    run("bank", "export", "F", "north", "--checkpoint=model.pt", "--output", "7")
    run("bank", "reset", "F", "--all", "true")
    assert called == [
        (("f.yaml",), {"limit": None, "seeds": (0, 1), "methods#grata#lr": 0.001, "shuffle": True}),
        (("B", "D"), {"heads": "none", "images": 4, "network_def#depth": 34}),
        (("B", "D"), {"val_stride": 1, "labels_dir": "7", "device": "cpu"}),
        (("B", "configs/x.yaml"), {"adaptation#activation": "sigmoid", "folds": 0}),
        (("export", "F", "north", "model.pt", "7", False), {}),
        (("reset", "F", None, None, None, True), {}),
    ]


@pytest.mark.parametrize(
    "words", [("methods", "--bundle"), ("nnunet", "M", "I", "O", "--site"), ("prepare", "--bundle")]
)
def test_an_option_that_is_text_needs_a_value(run, called, words):
    status, _, error = run(*words)
    assert (status, error, called) == (1, f"error: {words[-1]}: needs a value.\n", [])


def test_none_is_null_for_one_more_release(run, called):
    for words in (("nnunet", "M", "I", "O", "--bank", "none"), ("benchmark", "f", "--limit", "none")):
        status, _, error = run(*words)
        assert status == 0
        assert error == f"note: {words[-2][2:]}: the next release will not take none for null. Write null.\n"
    assert [options for _, options in called] == [{"bank": None}, {"limit": None}]


def test_what_is_given_without_its_name_is_noted(run, called):
    assert run("nnunet", "M", "I", "O", "tent")[0] == 0 and called == [(("M", "I", "O", "tent"), {})]
    assert run("doctor", "B", "x.yaml") == (
        0,
        "",
        "note: x.yaml is read as --config_file; the next release will ask for that name.\n",
    )


def test_letters_that_the_console_lacks_are_replaced():
    code = "from grata.cli.app import main; main(['methods', 'grata'])"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONIOENCODING": "cp1252"}, capture_output=True, check=False
    )
    assert b"learning rate" in done.stdout and b"\xc3" not in done.stdout and done.stderr == b""


def test_an_interrupted_command_says_what_is_kept(run, called, monkeypatch):
    def interrupted(*given, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("grata.benchmark.run_benchmark", interrupted)
    status, _, error = run("benchmark", "f.yaml")
    assert status == 130 and "the same command goes on with the rest" in error and "Traceback" not in error


def test_a_foreign_error_is_one_line(run, called, monkeypatch):
    def broken(*given, **options):
        raise ValueError("two\nlines")

    monkeypatch.setattr("grata.benchmark.run_benchmark", broken)
    assert run("benchmark", "f.yaml") == (1, "", "error: ValueError: two lines\n")
    monkeypatch.setattr("grata.benchmark.run_benchmark", lambda *given: (_ for _ in ()).throw(GrataError("no.", "key")))
    assert run("benchmark", "f.yaml") == (1, "", "error: key: no.\n")


HEAVY = ("torch", "monai", "ignite", "pandas", "matplotlib", "pydicom")
LIGHT = [
    ["--help"],
    ["--version"],
    *([name, "--help"] for name in _COMMANDS),
    ["methods"],
    ["methods", "grata"],
    *(["methods", "--form", form] for form in ("markdown", "readme", "json")),
    ["methods", "--prepared", "false", "--mode", "online", "--spatial_dims", "3", "--changes", "affine"],
    ["methods", "tentt"],
    ["methods", "--mode", "both"],
    ["mehtods"],
    ["nnunet", "a", "b", "c", "--fold", "0"],
    ["nnunet", "a", "b"],
    ["nnunet", "a", "b", "c", "--overwrite", "maybe"],
    ["benchmark", "x", "--limmit", "1"],
    ["bank", "list", "nowhere"],
]


def test_what_needs_no_network_starts_without_torch(tmp_path):
    """One process for all: none of the commands may import any of the heavy packages."""
    (tmp_path / "bank").mkdir()
    commands = [*LIGHT, ["bank", "list", str(tmp_path / "bank")]]
    code = (
        "import sys\nfrom grata.cli import main\n"
        f"for words in {commands!r}:\n"
        "    status = main(words)\n"
        f"    found = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "    assert not found, (words, found)\n"
        "    print('status', status)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("\nstatus ") + done.stdout.startswith("status ") == len(commands)


def test_both_commands_are_the_same(tmp_path):
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="grata") or [None]
    assert script is None or script.value == "grata.cli:main"
    done = subprocess.run([sys.executable, "-m", "grata", "--version"], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == grata.__version__
