"""Checks of a bundle's configuration and device."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from monai.bundle import ConfigExpression, ConfigWorkflow, ReferenceResolver
from monai.bundle.utils import ID_SEP_KEY

from ..checks import check_choice, check_count, check_flag, check_number, checked, constant, did_you_mean
from ..errors import GrataError
from ..methods import METHODS, check_settings
from ..private import running_workflow
from ..session.faults import STOPPED, TRACEBACK_HINT, plain_errors
from .paths import as_written, keep_typed, leaves, shown_key

__all__ = [
    "check_keys",
    "check_method_settings",
    "check_settings_kind",
    "constant",
    "effective_settings",
    "keep_paths",
    "start",
]

# Keys that MONAI itself reads; another key must refer to all others.
_READ_BY_MONAI = {
    "_meta_",
    "imports",
    "bundle_root",
    "device",
    "dataset_dir",
    "dataset",
    "evaluator",
    "network_def",
    "inferer",
    "preprocessing",
    "postprocessing",
    "key_metric",
}
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", tuple: "a list", list: "a list"}
_REFERENCE = re.compile(r"[@%]([A-Za-z_]\w*)")


def keep_paths() -> None:
    """Keep the paths of the command line as they were typed, as the first line of a bundle's ``initialize``.

    It stands before :func:`start`, whose arguments MONAI resolves first: a path that begins with ``$`` would be run.

    Raises:
        GrataError: a path begins with ``$``, and there is nothing of that name.
    """
    plain_errors(hint=TRACEBACK_HINT, stopped=STOPPED)
    workflow = running_workflow()
    if workflow is not None:
        keep_typed(workflow.parser)


def start(
    traceback: bool | str = False,
    flags: Mapping[str, Any] | None = None,
    counts: Mapping[str, Any] | None = None,
    numbers: Mapping[str, Any] | None = None,
    sizes: Mapping[str, Any] | None = None,
    paths: Mapping[str, Any] | None = None,
    choices: Mapping[str, tuple[Any, Sequence[str]]] | None = None,
    spacings: Mapping[str, Any] | None = None,
) -> None:
    """Check the running configuration, as the first line of a bundle's ``initialize``, and set plain messages.

    The values true, false and null of the command line become those of YAML.

    Args:
        traceback: whether to leave Python's tracebacks as they are.
        flags: values that must be true or false, by key.
        counts: values that must be whole numbers of at least 0, by key.
        numbers: values that must be numbers above 0 and of at most 1000, by key.
        sizes: values that must be a list of two sides in pixels, 1 to 8192, by key.
        paths: values that must name a file or a folder, by key; null is left to what reads them.
        choices: values that must be one of some names, with these, by key.
        spacings: values that must be null or three sizes of a voxel in mm, -1 for one that is kept, by key.

    Raises:
        GrataError: nothing uses a key of the configuration or of the command line (it may be mistyped), a reference
            leads nowhere, or a value is of the wrong kind.
    """
    plain_errors(traceback, hint=TRACEBACK_HINT, stopped=STOPPED)
    groups: tuple[tuple[Mapping[str, Any] | None, Callable[[Any], Any]], ...] = (
        ({"traceback": traceback, **(flags or {})}, lambda value: check_flag(constant(value))),
        (counts, _check_count),
        (numbers, lambda value: check_number(value, above=0, at_most=1000)),
        (sizes, _check_size),
        (spacings, _check_spacing),
        (paths, _check_path),
    )
    for values, check in groups:
        for key, value in (values or {}).items():
            checked(check, value, key)
    for key, (value, names) in (choices or {}).items():
        checked(partial(check_choice, of=names), value, key)
    workflow = running_workflow()
    if workflow is not None:
        if "keep_paths" not in str(workflow.parser.get(workflow.init_id)):
            # a bundle that was made before there was such a line
            keep_typed(workflow.parser)
        _check_running(workflow)


def _check_count(value: Any) -> None:
    if check_count(value, at_least=0) >= 2**32:
        raise GrataError(f"must be a whole number below {2**32}, got {value!r}.")


def _check_size(value: Any) -> None:
    sides = value if isinstance(value, list | tuple) else []
    if len(sides) != 2 or not all(type(side) is int and 1 <= side <= 8192 for side in sides):
        raise GrataError(f"must be a list of two sides in pixels, such as '[512, 512]', got {value!r}.")


def _check_spacing(value: Any) -> None:
    given = constant(value)
    sizes = given if isinstance(given, list | tuple) else []
    if given is not None and (len(sizes) != 3 or not all(map(_is_size_in_mm, sizes))):
        raise GrataError(
            f"must be null, or a list of three sizes in mm, -1 for one that is kept, such as '[1.2, 1.2, -1]', "
            f"got {value!r}."
        )


def _is_size_in_mm(value: Any) -> bool:
    return type(value) in (int, float) and (value == -1 or 0 < value <= 1000)


def _check_path(value: Any) -> None:
    if value == "":
        # As from a shell variable that is not set; it would be the current folder, or the bundle's own scans.
        raise GrataError("needs a value, got ''.")
    if not isinstance(constant(value), str | Path | None):
        kind = _KINDS.get(type(value), "no text")
        raise GrataError(f"the command line reads {value!r} as {kind}. Write ./ before the name.")


def _check_running(workflow: ConfigWorkflow) -> None:
    config = workflow.parser.get()
    check_keys(config, {workflow.init_id, workflow.run_id, workflow.final_id})
    check_method_settings(config)
    # The command line hands these words over as text, and the text "false" counts as true.
    for key, value in list(leaves(config)):
        if constant(value) is not value:
            workflow.parser.set(constant(value), key)


def effective_settings(ignored: Iterable[str] = ()) -> dict[str, Any]:
    """Return the running workflow's configuration with all overrides, unresolved, for the record of a run.

    Args:
        ignored: top-level keys to leave out.

    Returns:
        Plain values by key, such as ``{"settings#lr": 0.0001}``; empty if no workflow is running.
    """
    workflow = running_workflow()
    config = {} if workflow is None else workflow.parser.get()
    left_out = {*ignored, "imports", "_meta_"}
    return {
        shown_key(key): as_written(value) for key, value in leaves(config) if key.split(ID_SEP_KEY)[0] not in left_out
    }


def check_method_settings(config: Mapping[str, Any]) -> None:
    """Check that the selected method has all settings of a configuration.

    Raises:
        GrataError: the method has no such setting, or ``settings`` is not a mapping.
    """
    method, settings = config.get("method"), config.get("settings")
    if not isinstance(settings, str):
        check_settings_kind(settings)
    if isinstance(method, str) and method in METHODS and isinstance(settings, Mapping):
        check_settings(method, settings)


def check_settings_kind(settings: object) -> None:
    """Check that the settings of a method are a mapping, or None.

    Raises:
        GrataError: they are anything else.
    """
    if not isinstance(settings, Mapping | None):
        raise GrataError(
            f"must hold the settings of the method, got {settings!r}. Override a setting as --settings#<setting>.",
            key="settings",
        )


def check_keys(config: dict[str, Any], run_ids: set[str]) -> None:
    """Check that every reference leads to a key, and that something uses every top-level key.

    Args:
        config: whole configuration, unresolved.
        run_ids: keys that the workflow runs; other lists of expressions count as such too.

    Raises:
        GrataError: a reference leads nowhere, or nothing refers to a top-level key, which MONAI would silently ignore.
    """
    for key, text in leaves(config):
        for reference in ReferenceResolver.match_refs_pattern(text) if isinstance(text, str) else ():
            name = reference.split(ID_SEP_KEY)[0]
            if name not in config:
                hint = did_you_mean(name, config, "Define that key, or correct the reference.", "@")
                raise GrataError(f"it refers to @{name}, and there is no such key. {hint}", key=shown_key(key))
    used = {match for _, text in leaves(config) if isinstance(text, str) for match in _REFERENCE.findall(text)}
    workflows = {key for key, value in config.items() if isinstance(value, list) and all(map(_is_expression, value))}
    known = used | _READ_BY_MONAI | run_ids | workflows
    for key in config:
        if key.lstrip("+") not in known:
            hint = did_you_mean(key, sorted(set(config) & known), "Nothing in the configuration refers to it.")
            raise GrataError(f"there is no such key. {hint}", key=f"--{key}")


def _is_expression(value: Any) -> bool:
    return isinstance(value, str) and ConfigExpression.is_expression(value)
