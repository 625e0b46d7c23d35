"""What a guard is told of a network: its calibration, and the names and sizes of its segments."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import GrataError
from ..quality import Calibration

__all__ = ["check_calibration", "check_segments"]


def check_calibration(given: Any) -> Calibration | None:
    """Return a calibration that is given as it is, or by its file.

    Raises:
        GrataError: it is neither, or the file is damaged.
    """
    if given is None or isinstance(given, Calibration):
        return given
    if isinstance(given, str | os.PathLike):
        return Calibration.read(given)
    raise GrataError(f"must be a file of python -m grata calibrate, or null, got {given!r}.")


def check_segments(given: Any) -> list[str | dict[str, Any]]:
    """Return segments, each by its name or as a mapping with ``label`` and ``range``.

    Raises:
        GrataError: they are something else, have the same names, or a range is none.
    """
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise GrataError(f"must be a list of names, or of mappings with label and range, got {given!r}.")
    found = [_named(segment) for segment in given]
    labels = [segment if isinstance(segment, str) else segment["label"] for segment in found]
    if len(set(labels)) < len(labels):
        raise GrataError(f"must have a name each, got {', '.join(labels)}.")
    return found


def _named(segment: Any) -> str | dict[str, Any]:
    """Return a segment by its name, or as a mapping with ``label`` and ``range``.

    Raises:
        GrataError: it is something else, or the range is none.
    """
    if isinstance(segment, str):
        return segment
    if not isinstance(segment, Mapping) or "label" not in segment:
        raise GrataError(f"must be names, or mappings with label and range, got {segment!r}.")
    label, given = str(segment["label"]), segment.get("range")
    if given is None:
        return label
    ends = [given] if isinstance(given, str) or not isinstance(given, Sequence) else list(given)
    if not _are_shares(ends):
        raise GrataError(
            f"the range of {label} must be the least and the greatest share of the image that it fills, two numbers "
            f"from 0 to 1, got {given!r}."
        )
    return {"label": label, "range": (float(ends[0]), float(ends[1]))}


def _are_shares(ends: list[Any]) -> bool:
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends)
    return numbers and len(ends) == 2 and 0 <= ends[0] <= ends[1] <= 1
