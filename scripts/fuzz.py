"""Try every entrance that reads a file with inputs that nobody would make on purpose.

    python scripts/fuzz.py --inputs 5000 --keep fuzzed
    python scripts/fuzz.py nifti dicom --inputs 400 --first 1000
    python scripts/fuzz.py dicom --first 17 --inputs 1 --keep fuzzed

An input is a small valid file with a fault: a bit flipped, a field of a header with an odd value, a size that is
claimed and not there, a value of another kind. It is made from its kind and its number alone, so that it can be made
again. It must be read, or refused in words (GrataError, or a fault of the search); good files beside it must be read
all the same. Everything else is a failure: another exception, a broken promise, a crash, more than 5 s of computing,
more than 512 MB of memory. Inputs run in child processes. Prints figures of each kind and each place of a failure once;
exits with 1 if there is one. The gate runs the first few of each kind: tests/fuzz.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

# Torch reads these when it is imported.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from tabulate import tabulate

ROOT = Path(__file__).parents[1]


def main() -> int:
    """Run the command line."""
    sys.path.insert(0, str(ROOT / "src"))
    from fuzzing import FAILURES, RESULTS, TARGETS, Outcome, run

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=list(TARGETS), help=f"kinds of inputs, of {', '.join(TARGETS)}")
    parser.add_argument("--inputs", type=int, default=5000, help="number of inputs of all kinds together")
    parser.add_argument("--first", type=int, default=0, help="number of the first input of each kind")
    parser.add_argument("--keep", type=Path, help="folder that inputs which failed are written to")
    given = parser.parse_args()
    if unknown := [kind for kind in given.kinds if kind not in TARGETS]:
        parser.error(f"there is no kind {unknown[0]}; there are {', '.join(TARGETS)}")
    sys.stdout.reconfigure(errors="backslashreplace")
    counts: dict[str, Counter] = {}
    places: dict[tuple[str, ...], list[Outcome]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for target in (TARGETS[kind] for kind in given.kinds):
            started, counts[target.name] = time.monotonic(), Counter()
            numbers = range(given.first, given.first + -(-given.inputs // len(given.kinds)))
            for outcome in run(target, numbers, Path(folder), given.keep):
                counts[target.name][outcome.result] += 1
                if outcome.result in FAILURES:
                    places[outcome.kind, outcome.result, outcome.where, outcome.why.partition(":")[0]].append(outcome)
            print(f"{target.name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    rows = [[name, sum(count.values()), *(count[result] for result in RESULTS)] for name, count in counts.items()]
    rows.append(["all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])])
    print(tabulate(rows, headers=["kind", "inputs", *RESULTS], tablefmt="github"))
    for found in places.values():
        print(f"\n{len(found)} of {found[0].kind}, such as {', '.join(str(o.number) for o in found[:5])}:\n{found[0]}")
    return 1 if places else 0


if __name__ == "__main__":
    sys.exit(main())
