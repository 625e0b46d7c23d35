"""A whole benchmark: plan the jobs, run what is missing, write tables and figures."""

from __future__ import annotations

import contextlib
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from tqdm import tqdm

from ..config_files import read_config
from ..console import say, say_beside_bar
from ..errors import GrataError
from ..files import check_output_dir, expanded, locked, remove_leftovers
from ..private import restore_seed
from ..report.tables import write_table
from ..session.faults import quiet
from .cases import case_table, write_cases
from .config import BenchmarkConfig, make_config
from .figures import draw_figures
from .jobs import Job, plan, threads_each
from .metrics import METRICS
from .part import Part
from .pool import run_jobs
from .stream import MEASURED
from .suite import Suite, load_suite
from .suite_page import Task, write_page
from .summary import command_line, write_summary

__all__ = ["run_benchmark"]

_FIRST = ("protocol", "source", "target", "method", "seed", "stream", "round", "position", "case", "error")


def run_benchmark(config_file: str | Path, **overrides: Any) -> int:
    """Run a benchmark, or what is left of one that was stopped.

    Threads, random generators and determinism of this process are restored at the end.

    Args:
        config_file: YAML or JSON file, see :class:`~grata.benchmark.keys.BenchmarkKeys` for its keys.
        overrides: values of its keys, nested keys joined by ``#``.

    Returns:
        0 if every image was finished, else 1.

    Raises:
        GrataError: the configuration or something that it names is refused, or the output folder is in use or holds
            another benchmark.
    """
    quiet()
    given = read_config(expanded(str(config_file)), as_yaml=True)
    if "tasks" in given:
        suite = load_suite(given, overrides)
        left_out = {name: "left out" for name in given["tasks"] if name not in suite.tasks}
        return _run_suite(suite, command_line(config_file, overrides), left_out)
    return _run(make_config(given, overrides))[0]


def _run_suite(suite: Suite, command: str, left_out: Mapping[str, str]) -> int:
    """Run one benchmark after the other; the page over all of them is written anew after each."""
    _check_data(suite)
    folder = check_output_dir(suite.output_dir)
    status, tasks = 0, []
    started = time.perf_counter()
    lacking = {**left_out, **dict.fromkeys(suite.tasks, "not run yet")}
    planned = {name: _planned(name, config) for name, config in suite.tasks.items()}
    for name, config in suite.tasks.items():
        failed, rows, lacking[name] = _run_task(name, config, planned.pop(name))
        status |= failed
        table = case_table(config, rows)
        if not table.empty:
            (folder / "cases").mkdir(exist_ok=True)
            write_cases(table, folder / "cases" / f"{name}.csv.gz")
            tasks.append(Task(name, config, table))
        made = {
            "seeds": ", ".join(map(str, config.seeds)),
            "worker processes": config.workers,
            "threads each": threads_each(config),
            "minutes of this run": f"{(time.perf_counter() - started) / 60:.0f}",
        }
        if tasks:
            write_page(tasks, folder, command, made, {name: why for name, why in lacking.items() if why})
    if tasks:
        say(f"The page of all tasks: {folder / 'suite.md'}")
    return status


def _check_data(suite: Suite) -> None:
    """Refuse a missing folder of the data once, and not once for each target in it."""
    folders = (target.get("dataset_dir") for config in suite.tasks.values() for target in config.targets.values())
    if suite.data and not suite.data.is_dir() and any(Path(str(f)).is_relative_to(suite.data) for f in folders if f):
        raise GrataError(f"'{suite.data}' is no folder. Name the one that holds the data sets.", key="data")


def _planned(name: str, config: BenchmarkConfig) -> list[Job] | None:
    """Return the jobs of a task, before any task is run; None if it is refused, which is said."""
    try:
        with _process_as_it_was():
            return plan(config)
    except GrataError as error:
        _refuse(name, error)
        return None


def _run_task(name: str, config: BenchmarkConfig, jobs: Sequence[Job] | None) -> tuple[int, list[dict[str, Any]], str]:
    """Run a task, and return its exit status, its finished rows, and what is missing."""
    if jobs is None:
        return 1, [], "refused"
    say(f"{name}:")
    try:
        failed, rows, missing = _run(config, jobs)
    # What is wrong with one task, such as a folder that is in use, says nothing about the next one.
    except GrataError as error:
        _refuse(name, error)
        return 1, [], "refused"
    return failed, rows, f"{missing} images" if missing else ""


def _refuse(name: str, error: GrataError) -> None:
    say(f"{name}: {error.under(f'tasks#{name}')}", sys.stderr)


def _run(config: BenchmarkConfig, jobs: Sequence[Job] | None = None) -> tuple[int, list[dict[str, Any]], int]:
    """Run a benchmark, and return its exit status, all its finished rows, and how many images lack a result."""
    started = time.perf_counter()
    folder = check_output_dir(config.output_dir)
    with locked(folder), _process_as_it_was():
        return _run_locked(config, plan(config) if jobs is None else jobs, folder, started)


def _run_locked(
    config: BenchmarkConfig, jobs: Sequence[Job], folder: Path, started: float
) -> tuple[int, list[dict[str, Any]], int]:
    parts = {job.name: Part(folder / "parts", job.name, job.fingerprint) for job in jobs}
    _check_unchanged(folder, parts)
    remove_leftovers(folder)
    remove_leftovers(folder / "figures")
    broken = _compute(config, jobs, parts, folder)
    rows = _finished(jobs, parts, broken)
    total = sum(len(job.items) for job in jobs)
    minutes = (time.perf_counter() - started) / 60
    if rows:
        write_table(rows, _columns(rows), folder / "results.csv", decimals=None)
        write_summary(config, rows, folder, threads=threads_each(config), minutes=minutes, missing=total - len(rows))
        draw_figures(config, jobs, rows, folder)
    errors = [row for row in rows if row["error"]]
    say(f"{len(rows) - len(errors)} of {total} images finished in {minutes:.1f} minutes. Results: {folder}")
    for row in errors:
        say(f"  {row['protocol']}, {row['source']}, {row['target']}, {row['method']}, {row['case']}: {row['error']}")
    for name, message in broken.items():
        say(f"  {name}: stopped: {message.rstrip('.')}. Run the same command again to continue.")
    return (1 if errors or broken else 0), rows, total - len(rows) + len(errors)


def _finished(jobs: Sequence[Job], parts: Mapping[str, Part], broken: dict[str, str]) -> list[dict[str, Any]]:
    """Return all finished rows, and add the jobs that are not complete to the broken ones."""
    rows: list[dict[str, Any]] = []
    for job in jobs:
        done = parts[job.name].rows()
        rows += done
        if len(done) < len(job.items):
            # A library may end the process with exit status 0.
            ended = f"its process ended after {len(done)} of {len(job.items)} images"
            broken.setdefault(job.name, f"its images are the first ones of {job.begins}" if job.begins else ended)
    return rows


def _compute(config: BenchmarkConfig, jobs: Sequence[Job], parts: Mapping[str, Part], folder: Path) -> dict[str, str]:
    """Run what is missing, and return the reason for each job that could not be finished, by its name."""
    finished = {job.name: len(parts[job.name].rows()) for job in jobs}
    unfinished = [job for job in jobs if _is_left(job, finished[job.name], parts[job.name])]
    for job in unfinished:
        parts[job.name].check()
    broken: dict[str, str] = {}
    total = sum(len(job.items) for job in jobs)
    with tqdm(total=total, initial=sum(finished.values()), desc="benchmark", unit="image") as bar:

        def failed(job: Job, message: str) -> None:
            broken[job.name] = message
            say_beside_bar(f"{job.name}: {message}")

        computed = [job for job in unfinished if not job.begins]
        run_jobs(computed, folder / "parts", config.workers, lambda: bar.update(1), failed)
        for job in unfinished:
            if job.begins:
                bar.update(_take_over(job, parts[job.name], parts[job.begins]))
    return broken


def _is_left(job: Job, finished: int, part: Part) -> bool:
    """Return whether images of a job are left, or the bank's entry of the last one is."""
    return finished < len(job.items) or not part.is_settled()


def _take_over(job: Job, part: Part, longer: Part) -> int:
    """Copy the first rows of a longer job that begins with the same images, and return the number of new rows.

    All rows are copied or none: a partly filled job would need the method's state at that point to continue by itself.
    """
    found = longer.rows()[: len(job.items)]
    if len(found) < len(job.items):
        return 0
    before, _ = part.open()
    for position in range(len(before), len(found)):
        row = {"protocol": job.protocol, "stream": job.stream, "round": job.items[position].round}
        labels = longer.read_label_map(position) if job.keep_label_maps else None
        if labels is not None:
            part.write_label_map(position, labels)
        part.append(found[position] | row)
    part.commit(len(found), None)
    return len(found) - len(before)


@contextlib.contextmanager
def _process_as_it_was() -> Iterator[None]:
    """Restore what jobs in this process, and the networks made to check them, change for the whole process."""
    threads, cudnn, seed = torch.get_num_threads(), torch.backends.cudnn, monai.utils.misc.get_seed()
    flags = cudnn.deterministic, cudnn.benchmark
    python, numpy = random.getstate(), np.random.get_state()
    # Without CUDA in use its generators are untouched, and reading them would allocate its memory.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        torch.set_num_threads(threads)
        cudnn.deterministic, cudnn.benchmark = flags
        random.setstate(python)
        np.random.set_state(numpy)
        # MONAI seeds later transforms with it.
        restore_seed(seed)


def _check_unchanged(folder: Path, parts: Mapping[str, Part]) -> None:
    for name, part in parts.items():
        if changed := part.changed():
            remark = " (unless set, they depend on the number of workers)" if "threads" in changed else ""
            raise GrataError(
                f"{folder} holds results of {name} with other {', '.join(changed)}{remark}. Methods, "
                "targets and seeds can be added to a benchmark or left out, not changed. Choose another output_dir, or "
                f"remove '{folder / 'parts' / Path(name).parent.parent}' to run what is in it anew.",
                key="output_dir",
            )


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the columns in order: identity, metrics by segment, values of the method, measurements."""
    seen = dict.fromkeys(key for row in rows for key in row)
    scores = [key for key in seen if key.split("/")[0] in METRICS]
    scores.sort(key=lambda key: (METRICS.index(key.split("/")[0]), key.endswith("/mean")))
    others = [key for key in seen if key not in {*_FIRST, *scores, *MEASURED}]
    # Sorted by name, so that the column order does not depend on the order of methods.
    return [*_FIRST, *scores, *sorted(others), *(key for key in MEASURED if key in seen)]
