"""What nobody would make on purpose is read or refused in words, and the good files beside it are read all the same."""

import os
import sys
import time

import pytest
from fuzzing import FAILURES, TARGETS, Target, run, watch

from grata.errors import GrataError

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the memory of a child in /proc")


@pytest.mark.parametrize("kind", TARGETS)
def test_an_input_is_read_or_refused_in_words(kind, tmp_path):
    target = TARGETS[kind]
    assert target.reads_good(), "an input without a fault was refused"
    failed = [outcome for outcome in run(target, range(target.gate), tmp_path) if outcome.result in FAILURES]
    again = f"python scripts/fuzz.py {kind} --inputs 1 --keep <folder> --first <number>"
    assert not failed, "\n".join([f"{len(failed)} of {target.gate} inputs; see {again}", *map(str, failed)])


def raises(error):
    def enter(folder):
        raise error

    return enter


def hangs(folder):
    while True:
        pass


def sleeps(folder):
    time.sleep(60)


def grows(folder):
    return bool(bytearray(b"x") * (200 << 20))


def asks_for_too_much(folder):
    try:
        return bool(bytearray(1 << 40))
    except MemoryError as error:
        raise GrataError("The file is damaged. Copy it again.") from error


def dies(folder):
    os.abort()


@pytest.mark.parametrize(
    "enter, result",
    [
        (lambda folder: True, "read"),
        (lambda folder: False, "refused"),
        (raises(GrataError("The file is damaged. Copy it again.")), "refused"),
        (raises(KeyError("dim")), "traceback"),
        (raises(RecursionError()), "traceback"),
        (raises(SystemExit(1)), "traceback"),
        (raises(AssertionError("a file was deleted")), "promise"),
        (hangs, "hang"),
        (sleeps, "hang"),
        (grows, "memory"),
        (asks_for_too_much, "memory"),
        (dies, "crash"),
    ],
)
def test_every_failure_is_noticed_and_the_inputs_behind_it_are_tried(enter, result, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "CPU_S", 0)
    monkeypatch.setattr(watch, "WALL_S", 2)
    monkeypatch.setattr(watch, "MEMORY_MB", 100)

    def on_second(folder):
        return enter(folder) if folder.name.endswith("-1") else True

    target = Target("odd", lambda rng: watch.Input({"file": b"x"}, "odd"), on_second, dict, 3)
    outcomes = list(run(target, range(3), tmp_path / "inputs", tmp_path / "kept"))
    assert [(outcome.number, outcome.result) for outcome in outcomes] == [(0, "read"), (1, result), (2, "read")]
    kept = [str(path.relative_to(tmp_path / "kept")) for path in (tmp_path / "kept").rglob("file")]
    assert kept == (["odd/1/file"] if result in FAILURES else [])


@pytest.mark.parametrize("kind", TARGETS)
def test_a_number_gives_the_same_input_each_time(kind):
    inputs = [TARGETS[kind].input(number) for number in range(6)]
    assert inputs == [TARGETS[kind].input(number) for number in range(6)]
    assert len({repr(made.files) for made in inputs}) > 1
