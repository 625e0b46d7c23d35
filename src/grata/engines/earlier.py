"""What the last release wrote, read as if this one had written it; for one release."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._moved import NAMES

__all__ = ["comparable", "first_names"]

_ADDED = {"affine": "auto", "adaptation#affine": "@affine", "adaptation#reset": "@reset"}
"""Keys that the bundles of the last release did not have, with the values that stand for what they did."""

_MOVED_ARGUMENTS = ("reset=@reset, ", "affine=@affine, ")
"""Arguments that stand at other places of the bundles' configurations now."""


def first_names(config: Any) -> Any:
    """Return a configuration with the names of the last release in all texts: digests on the disk were taken of those.

    Args:
        config: nested dicts, lists and plain values.
    """
    if isinstance(config, Mapping):
        return {key: first_names(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [first_names(value) for value in config]
    if isinstance(config, str):
        for old, new in NAMES.items():
            config = config.replace(new, old)
    return config


def comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run so that those of the last release's bundles equal those of this one's.

    Args:
        settings: values by key, nested keys joined by ``#``.
    """
    found: dict[str, Any] = dict(_ADDED)
    for key, value in settings.items():
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
