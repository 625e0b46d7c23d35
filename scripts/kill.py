"""Kill a durable entrance at random moments, resume it, and compare with a run that nobody stopped.

    python scripts/kill.py bundle --kills 100
    python scripts/kill.py benchmark --kills 100 --seed 3

`bundle` runs the hippocampus bundle with a bank and a reset policy over four scans of two sites, `benchmark` a
benchmark of two methods with a bank for each job. A process is forked, runs the entrance, and gets SIGKILL after a
random part of the time that a whole run takes; the next one resumes. When a run ends, everything that it left is
compared with the run that was not stopped: segmentations, verdicts, journal, tables, state, and the bank's entries, bit
for bit. The guard is on, so that what it has seen of the stream must be resumed too.
Exits with 1 on the first difference.
"""

import argparse
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

ROOT = Path(__file__).parents[1]
Entrance = Callable[[Path, bool], int]
"""Runs into a folder, resuming what is there or not, and returns the exit status."""


def load_record() -> ModuleType:
    """Return scripts/record.py, which knows what must stay equal."""
    spec = importlib.util.spec_from_file_location("record", ROOT / "scripts" / "record.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bundle(dataset: Path) -> Entrance:
    """Return a run of the hippocampus bundle over two sites, listed in a file."""
    from monai.bundle import run

    folder = ROOT / "bundles" / "hippocampus_mri_segmentation"
    # without labels, which only cost time here
    lines = [
        f"{dataset / site / 'images' / f'scan{n}.nii.gz'},,{site}"
        for n, site in enumerate(("north", "north", "south", "south"))
    ]
    cases = dataset / "cases.csv"
    cases.write_text("\n".join(["image,mask,site", *lines]) + "\n", encoding="utf-8")

    def entrance(output: Path, resume: bool) -> int:
        try:
            run(
                run_id="adapt",
                config_file=str(folder / "configs" / "adapt.yaml"),
                bundle_root=str(folder),
                cases_file=str(cases),
                dataset_dir=str(dataset),
                output_dir=str(output / "output"),
                bank=str(output / "bank"),
                reset={"name": "every-n", "cases": 3},
                method="tent",
                compare=False,
                resume=resume,
            )
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    return entrance


def benchmark(dataset: Path) -> Entrance:
    """Return a benchmark over two sites, in this process, with a bank for each job."""
    from grata.benchmark import run_benchmark

    record = load_record()

    def entrance(output: Path, resume: bool) -> int:
        config = record.benchmark_config(dataset, output / "output")
        config["sources"] = {"bundle": {"bank": str(output / "bank")}}
        # a method that the next image depends on and one whose images are each for themselves, quick both
        config |= {"methods": {"ptbn": {}, "tent": {"lr": 0.01}}, "reference_method": "tent", "protocol": "continual"}
        path = output / "benchmark.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        return run_benchmark(path)

    return entrance


def left_by_a_bundle(record: ModuleType, folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield all that a run has left."""
    yield from record.run_lines("run", folder / "output")
    yield from record.bank_lines("bank", folder / "bank")


def left_by_a_benchmark(record: ModuleType, folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield all that a benchmark has left."""
    for table in ("results", "summary"):
        yield from record.table_lines(table, folder / "output" / f"{table}.csv")
    for path in sorted((folder / "output" / "parts").rglob("*.jsonl")):
        yield from record.journal_lines(f"parts/{path.relative_to(folder)}", path)
    yield from record.bank_lines("bank", folder / "bank")


ENTRANCES = {"bundle": (bundle, left_by_a_bundle), "benchmark": (benchmark, left_by_a_benchmark)}
_APART = ("run/state/settings", "run/state/kept")
"""Beginnings of values that hold the folder of the run, or what a process has met since it was started."""


def hashes(record: ModuleType, lines: Iterator[tuple[str, Any]]) -> dict[str, str]:
    """Return the hash of each value that must be equal."""
    return {name: record.digest(value) for name, value in lines if not name.startswith(_APART)}


def fork(entrance: Entrance, folder: Path, resume: bool, after: float | None) -> int | None:
    """Run the entrance in a process of its own.

    Args:
        entrance: what to run.
        folder: folder of the run.
        resume: whether to go on with what is there.
        after: seconds after which the process is killed; None: never.

    Returns:
        Exit status; None: it was killed.
    """
    child = os.fork()
    if child == 0:
        status = 70
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(quiet, 1)
            os.dup2(log, 2)
            status = entrance(folder, resume)
        except BaseException:  # noqa: BLE001 (a child must end here, whatever was raised)
            traceback.print_exc()
        finally:
            os._exit(status)
    if after is not None:
        deadline = time.monotonic() + after
        while time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return None if code == -signal.SIGKILL else code


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entrance", choices=ENTRANCES)
    parser.add_argument("--kills", type=int, default=100, help="number of kills, at least")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT / "src"))
    import torch

    from grata.quality import REJECTED

    torch.set_num_threads(1)
    record, moments = load_record(), random.Random(given.seed)
    make, left_by = ENTRANCES[given.entrance]
    with tempfile.TemporaryDirectory() as work:
        entrance = make(record.make_dataset(Path(work) / "dataset"))
        whole = Path(work) / "whole"
        whole.mkdir()
        started = time.monotonic()
        status = ended = fork(entrance, whole, False, None)
        seconds = time.monotonic() - started
        if status not in (0, REJECTED):
            print((whole / "log.txt").read_text()[-3000:])
            return 1
        expected = hashes(record, left_by(record, whole))
        print(f"a whole run takes {seconds:.1f} s and leaves {len(expected)} values")
        kills = runs = 0
        while kills < given.kills:
            folder = Path(work) / f"run{runs}"
            folder.mkdir()
            starts = 0
            while (status := fork(entrance, folder, starts > 0, moments.uniform(0, seconds))) is None:
                kills, starts = kills + 1, starts + 1
                # Twice in one case would be taken for that case's fault; a person who knows better removes the note.
                for note in folder.rglob("*.begun"):
                    note.unlink()
            found = hashes(record, left_by(record, folder)) if status == ended else {}
            differing = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
            runs += 1
            print(f"run {runs}: killed {starts} times, status {status}, {len(differing)} of {len(expected)} differ")
            if differing:
                print("\n".join(differing[:20]))
                print((folder / "log.txt").read_text()[-3000:])
                return 1
        print(f"{given.entrance}: {kills} kills in {runs} runs, each equal to the run that was not stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
