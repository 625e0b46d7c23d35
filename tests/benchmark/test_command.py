"""The command as a user types it, also when it is killed."""

import csv
import subprocess
import sys

import pytest

from grata.benchmark.stream import MEASURED
from grata.cli import main

# Importing takes seconds, so one process forks a run for each point at which to be killed. It computes nothing itself,
# so it has no threads that a fork could lose.
KILLED = """
import os, pathlib, signal, sys
from grata.benchmark import run, run_benchmark
from grata.benchmark.part import Part
run.draw_figures = run.write_summary = lambda *arguments, **options: None
config, whole, killed = sys.argv[1:]

def child(work):
    # as if it had been killed during another image each time
    for note in pathlib.Path(killed).rglob("*.begun"):
        note.unlink()
    process = os.fork()
    if process == 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        try:
            os._exit(work())
        except BaseException:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

def killing(name, call, before):
    def work():
        real, calls = getattr(Part, name), []
        def kill(*arguments):
            calls.append(name)
            if before and len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            real(*arguments)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
        setattr(Part, name, kill)
        return run_benchmark(config, output_dir=killed)
    return work

statuses = [child(lambda: run_benchmark(config, output_dir=whole))]
for name, call, before in [("_write_progress", 1, False), ("append", 1, False), ("append", 2, True),
                           ("write_label_map", 1, False), ("commit", 1, True), ("commit", 2, False),
                           ("_write_state", 1, False), ("_write_rows", 1, False), ("_remove_state", 1, True),
                           ("append", 5, False)]:
    statuses.append(child(killing(name, call, before)))
statuses.append(child(lambda: run_benchmark(config, output_dir=killed)))
print(statuses)
"""


@pytest.fixture
def run(python):
    """``python <arguments>``."""

    def run(*arguments):
        command = [python, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=200, check=False)

    return run


def results(folder):
    with open(folder / "results.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key not in MEASURED} for row in csv.DictReader(file)]


def test_a_run_that_was_killed_anywhere_ends_as_one_that_was_not(run, settings, write, tmp_path):
    settings |= {"protocol": "continual", "methods": {"grata": {"lr": 0.02}}, "seeds": [0, 1]}
    path = write(settings)
    outcome = run("-c", KILLED, path, tmp_path / "whole", tmp_path / "killed")
    assert outcome.stdout.strip() == str([0, *[-9] * 10, 0]), outcome.stderr
    rows = results(tmp_path / "killed")
    assert rows == results(tmp_path / "whole") and len(rows) == 14
    assert sorted(path.name for path in (tmp_path / "killed").rglob(".*")) == [".lock"]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_worker_that_dies_is_reported_and_the_others_continue(run, settings, write, tmp_path):
    settings |= {"methods": {"source": {}}, "reference_method": "source", "limit": 1}
    settings["targets"]["south"]["trap"] = "$lambda image: os.kill(os.getpid(), 9)"
    path = write(settings)
    outcome = run("-m", "grata", "benchmark", path, "--workers", 2)
    assert outcome.returncode == 1
    assert "per-target/bundle/south/source/seed-0: stopped: its process was ended by SIGKILL" in outcome.stdout
    assert "Traceback" not in outcome.stderr
    assert [row["target"] for row in results(tmp_path / "results")] == ["north"]
    assert "1 images not done" in (tmp_path / "results" / "summary.md").read_text()
    # a second time, without waiting for it
    (note,) = (tmp_path / "results").rglob("*.begun")
    note.write_text(note.read_text().replace("1\t", "2\t"))
    outcome = run("-m", "grata", "benchmark", path, "--workers", 2)
    assert outcome.returncode == 1 and "the process ended twice while this case was done" in outcome.stdout
    assert "remove the files of this job, per-target/bundle/south/source/seed-0.*" in outcome.stdout
    assert [bool(row["error"]) for row in results(tmp_path / "results")] == [False, True]


@pytest.mark.skipif(sys.platform == "win32", reason="the site is left by os._exit")
def test_a_worker_that_ends_too_early_is_a_failure(run, settings, write):
    settings |= {"methods": {"source": {}}, "reference_method": "source", "limit": 1}
    settings["targets"]["south"]["trap"] = "$lambda image: os._exit(0)"
    outcome = run("-m", "grata", "benchmark", write(settings), "--workers", 1)
    assert outcome.returncode == 1
    assert "per-target/bundle/south/source/seed-0: stopped: its process ended after 0 of 1 images" in outcome.stdout


def test_options_can_name_sites_with_hyphens_but_no_new_ones(run, settings, write, tmp_path):
    """The command line passes ``rim_one`` for ``rim-one``."""
    settings["targets"] = {"rim-one": {"dataset_dir": "nowhere"}}
    settings |= {"methods": {"source": {}}, "reference_method": "source", "limit": 1}
    path, folder = write(settings), settings["bundle"].replace("bundle", "north/images")
    outcome = run("-m", "grata", "benchmark", path, "--targets#rim-one#dataset_dir", folder)
    assert outcome.returncode == 0, outcome.stderr
    assert {row["target"] for row in results(tmp_path / "results")} == {"rim-one"}
    outcome = run("-m", "grata", "benchmark", path, "--targets#rim-two#dataset_dir", folder)
    assert outcome.returncode == 1
    assert outcome.stderr == (
        "error: --targets#rim_two#dataset_dir: rim_two is not among the targets of the file. "
        "Did you mean targets#rim-one?\n"
    )


def test_errors_are_one_line(settings, write, capsys):
    assert main(["benchmark", str(write(settings)), "--limit", "some"]) == 1
    assert capsys.readouterr().err == "error: limit: must be a whole number of at least 1, or null, got 'some'.\n"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--sources#bundle#device", "gpu"], "'gpu' is not a device"),
        (["--sources#bundle#device", "cuda:99"], "cuda:99 was asked for"),
    ],
)
def test_a_missing_device_is_reported_before_anything_runs(settings, write, capsys, overrides, message):
    status = main(["benchmark", str(write(settings)), *overrides])
    error = capsys.readouterr().err
    assert status == 1 and message in error and error.count("\n") == 1


def test_damaged_rows_are_named_and_damaged_label_maps_only_missing(settings, write, tmp_path, capsys):
    settings |= {"methods": {"source": {}}, "reference_method": "source", "limit": 1, "workers": 0}
    assert main(["benchmark", str(write(settings))]) == 0
    (map_file, *_) = (tmp_path / "results" / "parts").rglob("*.npz")
    map_file.write_bytes(b"PK")
    assert main(["benchmark", str(write(settings))]) == 0
    (rows, *_) = (tmp_path / "results" / "parts").rglob("*.jsonl")
    rows.write_text("[1]\n")
    capsys.readouterr()
    status = main(["benchmark", str(write(settings))])
    error = capsys.readouterr().err
    assert status == 1 and f"{rows.name} is damaged. Remove it" in error and error.count("\n") == 1
