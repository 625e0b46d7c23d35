"""Run bundles in Model Zoo layout without and with the overlay, and write the results as a Markdown table.

    python scripts/zoo_table.py rows.yaml docs/results/zoo.md --method grata

Each row of the YAML file describes a bundle: ``bundle`` (its folder, relative to the file), ``dataset_dir`` (relative
to the bundle), ``run`` (key of its own inference), and where needed ``config`` (default configs/inference.json),
``overrides`` (keys of the command line, for both runs) and ``note`` (reason for them; printed below the table). Seconds
are those of the run itself, without imports and without building the network. The part of the page before the first
line that begins with ``| bundle`` is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigWorkflow

from grata import overlay
from grata.doctor.doctor import Report, examine
from grata.errors import GrataError
from grata.files import atomic_write

HEADER = (
    "bundle",
    "network",
    "normalization",
    "head",
    "window",
    "adapts",
    "all methods but",
    "plain, s",
    "adapted, s",
    "ratio",
)
RESULT = "seconds of the run:"


def main() -> None:
    """Parse the command line, run the bundles and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="YAML file with one row per bundle")
    parser.add_argument("page", type=Path, help="Markdown page whose table is written")
    parser.add_argument("--method", default="grata")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one run")
    options = parser.parse_args()
    before = options.page.read_text().split("| bundle", 1)[0] if options.page.is_file() else ""
    table: list[list[str]] = []
    notes: list[str] = []
    for row in yaml.safe_load(options.rows.read_text()):
        root = (options.rows.parent / row["bundle"]).resolve()
        # A process per bundle, because bundles have packages of the same name (scripts).
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            table.append(pool.submit(measure, root, row, options.method, options.timeout).result())
        print(*table[-1], sep=" | ", flush=True)
        if row.get("note"):
            notes.append(f"- {root.name}: {row['note']}")
        # Written after each row, so that an interruption loses no row.
        with atomic_write(options.page) as path:
            path.write_text(before + markdown(table, notes))


def markdown(table: list[list[str]], notes: list[str]) -> str:
    """Return the table; letters in it stand for the lists of methods below it."""
    column = HEADER.index("all methods but")
    lists = list(dict.fromkeys(row[column] for row in table))
    letters = {names: chr(ord("A") + index) for index, names in enumerate(lists)}
    shown = [[*row[:column], letters[row[column]], *row[column + 1 :]] for row in table]
    lines = ["| " + " | ".join(row) + " |" for row in [[*HEADER], *shown]]
    lines.insert(1, "|---" * len(HEADER) + "|")
    return "\n".join([*lines, "", *(f"- {letter}: {names}" for names, letter in letters.items()), *notes]) + "\n"


def measure(root: Path, row: dict[str, Any], method: str, timeout: float) -> list[str]:
    """Run one bundle without and with the overlay, and return its line of the table.

    Args:
        root: folder of the bundle.
        row: row of the YAML file.
        method: name of the method to adapt with.
        timeout: seconds that a run may take.
    """
    config = row.get("config", "configs/inference.json")
    overrides = {"dataset_dir": row["dataset_dir"], **row.get("overrides", {})}
    try:
        report = examine(root, config, **overrides)
    except GrataError as error:
        return [root.name, *[""] * 4, cell(f"refused: {error}"), *[""] * 4]
    before = hashes(root)
    plain = seconds(root, [config], row.get("run", "run"), overrides, timeout)
    adapted = seconds(root, [config, str(overlay())], "adapt", {**overrides, "method": method}, timeout)
    if hashes(root) != before:
        raise SystemExit(f"{root.name}: the run changed a file of the bundle.")
    ratio = f"{adapted / plain:.1f}" if isinstance(plain, float) and isinstance(adapted, float) else ""
    unfit = [name for name, lack in report.methods.items() if lack]
    facts = [report.facts.get(key, "") for key in ("network", "normalization", "head", "window")]
    adapts = refusal(report, method) or report.facts.get("adapts", "")
    times = [f"{value:.1f}" if isinstance(value, float) else value for value in (plain, adapted)]
    return [cell(text) for text in (root.name, *facts, adapts, ", ".join(unfit) or "none", *times, ratio)]


def refusal(report: Report, method: str) -> str:
    """Return why the bundle or the method refuses to adapt; empty where nothing does."""
    reasons = [*report.problems, *filter(None, [report.methods.get(method)])]
    return f"refused: {' '.join(reasons)}" if reasons else ""


def cell(text: str) -> str:
    """Return a text that fits into a cell of a Markdown table."""
    return text.replace("|", "/").replace("\n", " ")


def hashes(root: Path) -> dict[str, str]:
    """Return the hashes of all files of a bundle."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def seconds(root: Path, files: list[str], key: str, overrides: dict[str, Any], timeout: float) -> float | str:
    """Run a bundle in a process of its own, in the bundle's folder.

    Args:
        root: folder of the bundle.
        files: configuration files, relative to it.
        key: key to run.
        overrides: keys of the command line.
        timeout: seconds that the run may take.

    Returns:
        The seconds of the run, or why it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        changes = {**overrides, "bundle_root": ".", "output_dir": f"{folder}/predictions"}
        if key == "adapt":
            changes["adaptation#output_dir"] = f"{folder}/adaptation"
        task = json.dumps({"files": files, "key": key, "changes": changes})
        try:
            done = subprocess.run(
                [sys.executable, str(Path(__file__).resolve()), "--one", task],
                check=False,
                cwd=root,
                capture_output=True,
                text=True,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            return f"more than {timeout:.0f}"
        written = [path for path in Path(folder, "predictions").rglob("*") if path.is_file()]
        results = [text for text in done.stdout.splitlines() if text.startswith(RESULT)]
        if done.returncode or not results or not written:
            lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
            return f"failed: {lines[-1] if lines else 'nothing was written'}"
        return float(results[-1].removeprefix(RESULT))


def one(task: dict[str, Any]) -> None:
    """Run a bundle in this process and print the seconds."""
    # The bundle's own modules lie in its folder, which is the working directory.
    sys.path.insert(0, "")
    workflow = ConfigWorkflow(
        task["files"],
        run_id=task["key"],
        logging_file=False,
        workflow_type="infer",
        **task["changes"],
    )
    workflow.initialize()
    # Build the network, the data loader and all else before the clock starts.
    workflow.parser.get_parsed_content("evaluator")
    start = time.perf_counter()
    workflow.run()
    print(f"{RESULT} {time.perf_counter() - start:.3f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(json.loads(sys.argv[2]))
    else:
        main()
