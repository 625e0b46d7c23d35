"""Which images of a site belong together, such as those of one patient or one sequence of frames."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import GrataError
from ..files import expanded

__all__ = ["Groups", "every_group", "make_groups", "optional_groups"]

Groups = Callable[[str], str]
"""The name of an image's group from its case id."""


def make_groups(given: object) -> Groups:
    """Return what gives the group of an image.

    Args:
        given: a regular expression, whose first group (or, without one, the whole match) at the beginning of a case id
            is the name of its group; or a CSV file with the columns ``case`` and ``group``. An image that neither tells
            of is a group of its own.

    Raises:
        GrataError: it is neither, or the file cannot be read or lacks a column.
    """
    if not isinstance(given, str) or not given:
        raise GrataError(f"must be a regular expression or a CSV file, got {given!r}.")
    if given.lower().endswith(".csv"):
        table = _read(expanded(given))
        return lambda case: table.get(case, case)
    try:
        pattern = re.compile(given)
    except re.error as error:
        raise GrataError(f"{given!r} is not a regular expression: {error}.") from error
    return lambda case: _matched(pattern, case)


def optional_groups(given: object) -> Groups | None:
    """Return :func:`make_groups` of what is given; None of None."""
    return None if given is None else make_groups(given)


def every_group(cases: Sequence[Mapping[str, Any]], stride: int, groups: Groups | None = None) -> list[Any]:
    """Return every so-many-th case from the first on, or all cases of every so-many-th group.

    Args:
        cases: cases in order, with their id as ``case``.
        stride: step between the cases, or between the groups in the order of their first cases.
        groups: what gives the group of a case; None: each is a group of its own.
    """
    names = [case["case"] if groups is None else groups(case["case"]) for case in cases]
    chosen = set(list(dict.fromkeys(names))[::stride])
    return [case for case, name in zip(cases, names, strict=True) if name in chosen]


def _matched(pattern: re.Pattern[str], case: str) -> str:
    match = pattern.match(case)
    return case if match is None else match.group(1 if pattern.groups else 0) or case


def _read(path: Path) -> dict[str, str]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError) as error:
        raise GrataError(
            f"{path} cannot be read ({error}). Name a CSV file with the columns case and group."
        ) from error
    if not rows or not {"case", "group"} <= rows[0].keys():
        raise GrataError(f"{path} lacks the columns case and group, or has no line.")
    return {row["case"]: row["group"] for row in rows}
