"""What the last release wrote, read as if this one had written it; for one release."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .._moved import NAMES

__all__ = ["changed_settings", "first_names"]

_ADDED = {
    "affine": "auto",
    "adaptation#affine": "@affine",
    "adaptation#reset": "@reset",
    "output_format": "nifti",
    "outputs#output_format": "@output_format",
}
"""Keys that the bundles of the last release did not have, with the values that stand for what they did."""

_MOVED_ARGUMENTS = ("reset=@reset, ", "affine=@affine, ", "'quality', ", "'max_voxels', ")
"""Arguments that stand at other places of the bundles' configurations now, or are new there."""

_CHECKS = ("grata.data.CheckVoxelsd",)
"""Transforms that change no image, and that the bundles of the last release did not have."""

_TRANSFORM = re.compile(r"(preprocessing#transforms#)(\d+)(#.*)")

_OF_GUARD = ("guard", "on_reject", "adaptation#guard")
"""Keys that the bundles of the last release did not have, because nothing judged its predictions."""


def first_names(config: Any) -> Any:
    """Return a configuration as the last release had it: digests on the disk were taken of that.

    All texts have its names, and checks among the transforms are left out.

    Args:
        config: nested dicts, lists and plain values.
    """
    if isinstance(config, Mapping):
        return {key: first_names(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [first_names(value) for value in config if not _is_check(value)]
    if isinstance(config, str):
        for old, new in NAMES.items():
            config = config.replace(new, old)
    return config


def _is_check(value: Any) -> bool:
    return isinstance(value, Mapping) and value.get("_target_") in _CHECKS


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the keys in which two runs differ, sorted.

    A run of the last release had no guard, so it may be resumed with one and without: the cases that it had finished
    are not judged then.

    Args:
        before: values of the stopped run by key, nested keys joined by ``#``.
        now: values of the run that resumes it.
    """
    one, other = _comparable(before), _comparable(now)
    changed = {key for key in {*one, *other} if one.get(key) != other.get(key)}
    if not any(_is_of_guard(key) for key in before):
        changed = {key for key in changed if not _is_of_guard(key)}
    return sorted(changed)


def _is_of_guard(key: str) -> bool:
    return key in _OF_GUARD or key.startswith("guard#")


def _comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run so that those of the last release's bundles equal those of this one's."""
    found: dict[str, Any] = dict(_ADDED)
    for key, value in _without_checks(settings).items():
        if key.startswith("initialize#"):
            # checks of values that stand under keys of their own
            continue
        if isinstance(value, str):
            for old, new in NAMES.items():
                value = value.replace(old, new)
            for argument in _MOVED_ARGUMENTS:
                value = value.replace(argument, "")
        found[key] = value
    return found


def _without_checks(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings without those of checks among the transforms; the transforms after them move up."""
    places = {key: _TRANSFORM.fullmatch(key) for key in settings}
    checks = {int(at[2]) for key, at in places.items() if at and at[3] == "#_target_" and settings[key] in _CHECKS}
    found = {}
    for key, value in settings.items():
        at = places[key]
        if at is None:
            found[key] = value
        elif int(at[2]) not in checks:
            found[f"{at[1]}{int(at[2]) - sum(check < int(at[2]) for check in checks)}{at[3]}"] = value
    return found
