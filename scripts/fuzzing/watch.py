"""Run inputs in child processes that end with the first one that hangs, crashes or takes too much memory."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple

from grata.errors import GrataError

__all__ = ["FAILURES", "RESULTS", "Input", "Outcome", "Target", "lacked_memory", "run", "write"]

READ, REFUSED = "read", "refused"
BROKEN, TRACEBACK, HANG, MEMORY, CRASH = FAILURES = ("promise", "traceback", "hang", "memory", "crash")
RESULTS = (REFUSED, READ, *FAILURES)

CPU_S = 5
"""Seconds of computing that an input may take."""

WALL_S = 90
"""Seconds that an input may take; other processes may keep it waiting."""

MEMORY_MB = 512
"""Megabytes by which the process may grow; inputs have some kilobytes."""

_ADDRESS_SPACE_MB = 8192
_BATCH = 50
_HERE = b"@HERE@"
"""Stands for the folder of the input, in its files."""


class Input(NamedTuple):
    """A mutated input.

    Attributes:
        files: content by path below the input's folder: bytes, the target of a link, or None for a folder.
        what: in words what was done.
    """

    files: dict[str, bytes | str | None]
    what: str


@dataclass(frozen=True)
class Target:
    """An entrance and the inputs that it is tried with.

    Attributes:
        name: kind of the inputs.
        make: function that makes an input; it depends on the random generator alone.
        enter: function that takes an input's folder and returns whether it was accepted. It raises GrataError to refuse
            it in words, and AssertionError for a broken promise.
        good: function that returns the files of an input without a fault, which is accepted.
        gate: number of inputs in the gate.
    """

    name: str
    make: Callable[[Random], Input]
    enter: Callable[[Path], bool]
    good: Callable[[], dict[str, bytes]]
    gate: int

    def reads_good(self) -> bool:
        """Return whether an input without a fault is accepted."""
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder, self.name)
            write(Input(dict(self.good()), "good"), made)
            return self.enter(made)

    def input(self, number: int) -> Input:
        """Return the input of a number."""
        return self.make(Random(f"{self.name} {number}"))


@dataclass(frozen=True)
class Outcome:
    """What became of one input.

    Attributes:
        kind: name of the target.
        number: number of the input.
        result: one of :data:`RESULTS`.
        where: place of the exception, empty for none.
        why: exception or reason, in a line.
        what: in words what was done to the input.
    """

    kind: str
    number: int
    result: str
    where: str = ""
    why: str = ""
    what: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.number}: {self.result} {self.where} {self.why} ({self.what})"


def write(made: Input, folder: Path) -> None:
    """Write the files of an input into a folder, which is made."""
    folder.mkdir(parents=True)
    for name, content in made.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir(exist_ok=True)
        elif isinstance(content, str):
            path.symlink_to(content)
        else:
            path.write_bytes(content.replace(_HERE, os.fsencode(folder)))


def run(target: Target, numbers: Sequence[int], folder: Path, keep: Path | None = None) -> Iterator[Outcome]:
    """Try a target with inputs, each batch in a child process.

    Args:
        target: entrance and its inputs.
        numbers: numbers of the inputs.
        folder: folder for files of the inputs; it exists.
        keep: folder that inputs which failed are written to; None: they are not kept.
    """
    left = list(numbers)
    while left:
        for outcome in _batch(target, left[:_BATCH], folder):
            left.remove(outcome.number)
            if keep is not None and outcome.result in FAILURES:
                place = keep / target.name / str(outcome.number)
                shutil.rmtree(place, ignore_errors=True)
                write(target.input(outcome.number), place)
                (place / "outcome.txt").write_text(f"{outcome}\n", encoding="utf-8", errors="backslashreplace")
            yield outcome


def _batch(target: Target, numbers: Sequence[int], folder: Path) -> Iterator[Outcome]:
    """Yield the outcomes of the first inputs, up to one that ends the process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            _child(target, numbers, folder, writing)
        finally:
            os._exit(0)
    os.close(writing)
    done = 0
    reason = ""
    with os.fdopen(reading, "rb") as pipe:
        base, buffer, last = _resident_mb(child), b"", time.monotonic()
        while True:
            if select.select([pipe], [], [], 0.02)[0]:
                data = os.read(pipe.fileno(), 1 << 16)
                if not data:
                    break
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    yield Outcome(**json.loads(line))
                    done, last = done + 1, time.monotonic()
            reason = reason or _excess(child, base, last)
            if reason:
                os.kill(child, signal.SIGKILL)
                # what it wrote before is still read
                continue
    _, status = os.waitpid(child, 0)
    if done < len(numbers):
        number, code = numbers[done], os.waitstatus_to_exitcode(status)
        result, why = _ended(reason, code)
        yield Outcome(target.name, number, result, "", why, _described(target, number))


def _excess(child: int, base: int, last: float) -> str:
    if _resident_mb(child) - base > MEMORY_MB:
        return MEMORY
    return HANG if time.monotonic() - last > WALL_S else ""


def _ended(reason: str, code: int) -> tuple[str, str]:
    if reason == MEMORY:
        return MEMORY, f"grew by more than {MEMORY_MB} MB"
    if reason == HANG or code == -signal.SIGXCPU:
        return HANG, f"more than {CPU_S} s of computing, or {WALL_S} s"
    return CRASH, f"the process ended with {code}"


def _described(target: Target, number: int) -> str:
    return target.input(number).what


def _resident_mb(process: int) -> int:
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize() >> 20
    return 0


def _child(target: Target, numbers: Sequence[int], folder: Path, pipe: int) -> None:
    faulthandler.disable()
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    # as the command line sets its streams
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8", errors="replace")  # noqa: SIM115
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = size + (_ADDRESS_SPACE_MB << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in numbers:
        used = time.process_time()
        resource.setrlimit(resource.RLIMIT_CPU, (int(used) + CPU_S + 1, resource.RLIM_INFINITY))
        outcome = _outcome(target, number, folder / f"{target.name}-{number}")
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) >> 10
        if grown > MEMORY_MB:
            outcome = Outcome(target.name, number, MEMORY, outcome.where, f"grew by {grown} MB", outcome.what)
        os.write(pipe, json.dumps(vars(outcome)).encode() + b"\n")
        if grown > MEMORY_MB:
            return


def _outcome(target: Target, number: int, folder: Path) -> Outcome:
    made = target.input(number)
    try:
        write(made, folder)
        result, error = (READ if target.enter(folder) else REFUSED), None
    except GrataError as refused:
        result, error = REFUSED, refused
    except AssertionError as broken:
        result, error = BROKEN, broken
    except BaseException as raised:  # noqa: BLE001 (whatever it is, it is what was looked for)
        result, error = TRACEBACK, raised
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if error is not None and lacked_memory(error):
        result = MEMORY
    if error is None or result == REFUSED:
        return Outcome(target.name, number, result, what=made.what)
    why = f"{type(error).__name__}: {error}".replace(str(folder), "")
    return Outcome(target.name, number, result, _place(error), " ".join(why.split())[:200], made.what)


def lacked_memory(error: BaseException | None) -> bool:
    """Return whether an exception comes from one that says so, whatever it was turned into."""
    while error is not None and not isinstance(error, MemoryError):
        error = error.__cause__ or error.__context__
    return error is not None


def _place(error: BaseException) -> str:
    """Return the last place in grata, and where below it the exception was raised."""
    frames = [(Path(f.filename), f.name, f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    shown = []
    for path, name, line in frames:
        place = "/".join(path.parts[-2:])
        shown.append((("grata" in path.parts and "src" in path.parts), f"{place}:{line} {name}"))
    ours = [text for is_ours, text in shown if is_ours]
    last = shown[-1][1] if shown else ""
    return " ← ".join(dict.fromkeys([last, *ours[-1:]]))
