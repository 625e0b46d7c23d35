"""Several benchmarks in one file, a task each, and one page over all of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks import did_you_mean
from ..errors import GrataError
from ..files import expanded
from .config import BenchmarkConfig, make_config
from .keys import check_name

__all__ = ["OF_A_SUITE", "Suite", "load_suite"]

OF_A_SUITE = ("data", "tasks")
"""Keys that a file of several benchmarks has beside those of one."""

_OF_A_TASK = ("bundle", "sources", "targets", "home")
"""Keys that differ from task to task, so that each has its own."""

_PLACES = ("dataset_dir", "labels_dir", "cases_file")
"""Keys of a target that are paths below the folder of the data."""


@dataclass(frozen=True)
class Suite:
    """Checked configurations of several benchmarks.

    Attributes:
        output_dir: folder of all results; each task has a folder of its name in it.
        tasks: configurations by the names of their tasks.
        data: folder that the targets' paths are below; None: the working directory.
    """

    output_dir: Path
    tasks: dict[str, BenchmarkConfig]
    data: Path | None = None


def load_suite(given: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Suite:
    """Check the content of a file with several tasks.

    A task has the keys of a benchmark. What it lacks comes from the keys beside ``tasks``; of ``methods`` and
    ``common`` it is merged name by name, and a row that is false in a task is left out there.

    Args:
        given: content of the file.
        overrides: values by key, nested keys joined by ``#``. Those below ``tasks#<name>`` are for one task, all others
            for every task. ``tasks#<name>: False`` leaves a task out.

    Raises:
        GrataError: a key is not known, stands at the wrong place, or a task is refused, see
            :func:`grata.benchmark.config.load_config`.
    """
    top = {key: copy.deepcopy(value) for key, value in given.items() if value is not None}
    tasks = _tasks(top.pop("tasks", None))
    of_all, of_tasks = _sorted_out(overrides or {}, tasks)
    for key in (*top, *of_all):
        if key.split("#")[0] in _OF_A_TASK:
            raise GrataError("differs from task to task. Set it below tasks#<name>.", key=key)
    output_dir, data = (_folder(key, top.pop(key, None), of_all.pop(key, None)) for key in ("output_dir", "data"))
    if output_dir is None:
        raise GrataError("is missing from the configuration.", key="output_dir")
    configs = {}
    for name, own in of_tasks.items():
        try:
            merged = _merged(top, tasks[name], data, output_dir / name)
            configs[name] = make_config(merged, {**of_all, **own})
        except GrataError as error:
            raise error.under(f"tasks#{name}") from error
    return Suite(output_dir, configs, data)


def _tasks(given: object) -> Mapping[str, Mapping[str, Any]]:
    if not isinstance(given, Mapping) or not given:
        raise GrataError(f"must hold names of tasks with the keys of each, got {given!r}.", key="tasks")
    for name, task in given.items():
        if not isinstance(task, Mapping):
            raise GrataError(f"must hold keys of a benchmark, got {task!r}.", key=f"tasks#{name}")
        if "output_dir" in task:
            raise GrataError("is the suite's: each task has a folder in it.", key=f"tasks#{name}#output_dir")
    return {check_name(name): task for name, task in given.items()}


def _folder(key: str, in_file: object, given: object) -> Path | None:
    value = in_file if given is None else given
    if value is not None and not isinstance(value, str | Path):
        raise GrataError(f"must name a folder, got {value!r}.", key=key)
    return None if value is None else expanded(str(value))


def _sorted_out(
    overrides: Mapping[str, Any], tasks: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the overrides for every task, and those for each that is not left out."""
    of_all: dict[str, Any] = {}
    of_tasks: dict[str, dict[str, Any]] = {name: {} for name in tasks}
    left_out = set()
    for key, value in overrides.items():
        head, _, rest = key.partition("#")
        if head != "tasks":
            of_all[key] = value
            continue
        given, _, rest = rest.partition("#")
        name = _task(given, tasks)
        if value is False and not rest:
            left_out.add(name)
        else:
            of_tasks[name][_nested(rest, key)] = value
    if left_out == set(tasks):
        raise GrataError("all of them are left out.", key="tasks")
    return of_all, {name: own for name, own in of_tasks.items() if name not in left_out}


def _task(name: str, tasks: Mapping[str, Any]) -> str:
    # The command line does not keep - and _ apart.
    found = next((task for task in tasks if str(task).replace("-", "_") == name.replace("-", "_")), None)
    if found is None:
        hint = did_you_mean(name, list(map(str, tasks)), f"They are {', '.join(map(str, tasks))}.")
        raise GrataError(f"there is no task {name!r}. {hint}", key="tasks")
    return found


def _nested(rest: str, key: str) -> str:
    if not rest:
        raise GrataError(
            "names a whole task. Name a key of it, such as limit, or give false to leave it out.", key=f"--{key}"
        )
    return rest


def _merged(top: Mapping[str, Any], task: Mapping[str, Any], data: Path | None, folder: Path) -> dict[str, Any]:
    """Return the configuration of one task."""
    merged = copy.deepcopy({**top, **task, "output_dir": str(folder)})
    for key in ("methods", "common"):
        try:
            merged[key] = _joined(top.get(key), merged.get(key))
        except GrataError as error:
            raise error.under(key) from error
    if data is not None and isinstance(targets := merged.get("targets"), Mapping):
        merged["targets"] = {name: _placed(target, data) for name, target in targets.items()}
    return merged


def _joined(of_all: Any, own: Any) -> Any:
    """Return mappings of names as one; a name that is false in the second is left out."""
    if not isinstance(of_all, Mapping) or not isinstance(own, Mapping):
        return own
    for name, row in own.items():
        if row is False and name not in of_all:
            hint = did_you_mean(name, list(map(str, of_all)))
            raise GrataError(f"there is no {name!r} beside the tasks to leave out. {hint}".strip(), key=str(name))
    return {name: row for name, row in copy.deepcopy({**of_all, **own}).items() if row is not False}


def _placed(target: Any, data: Path) -> Any:
    if not isinstance(target, Mapping):
        return target
    return {key: str(data / value) if key in _PLACES and value else value for key, value in target.items()}
