"""The structures that the label values of a bundle mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..checks import check_count, checked
from ..errors import GrataError

__all__ = ["Region", "make_regions"]


@dataclass(frozen=True)
class Region:
    """A structure that is scored under one name.

    Attributes:
        label: name of the structure.
        values: label values that belong to the structure.
        index: index of its segment.
    """

    label: str
    values: tuple[int, ...]
    index: int


def make_regions(segments: Sequence[Mapping[str, Any]]) -> list[Region]:
    """Return the region of each segment: its ``value`` and those that it ``includes``.

    Args:
        segments: segments of a bundle, with ``value``, ``label`` and optionally ``includes``.

    Raises:
        GrataError: a segment lacks its value or label, or has one of another kind, or two have the same label.
    """
    if not isinstance(segments, list | tuple) or not segments:
        raise GrataError(
            f"must be a list of segments, each with its value and label, got {segments!r}.", key="segments"
        )
    regions = [checked(partial(_region, index), item, f"segments#{index}") for index, item in enumerate(segments)]
    labels = [region.label for region in regions]
    if len(set(labels)) < len(labels):
        raise GrataError(
            f"the labels {', '.join(labels)} are not all different. Give each segment a label of its own.",
            key="segments",
        )
    return regions


def _region(index: int, segment: Any) -> Region:
    if not isinstance(segment, Mapping) or not {"value", "label"} <= segment.keys():
        raise GrataError(f"must have a value and a label, got {segment!r}.")
    included = segment.get("includes") or ()
    if not isinstance(included, list | tuple):
        raise GrataError(f"must be a list of values of labels, got {included!r}.", key="includes")
    values = [checked(_label_value, segment["value"], "value")]
    values += [checked(_label_value, value, "includes") for value in included]
    return Region(str(segment["label"]), tuple(values), index)


def _label_value(value: Any) -> int:
    # an index of a channel may be written as 1.0
    return check_count(int(value) if isinstance(value, float) and value.is_integer() else value, at_least=0)
