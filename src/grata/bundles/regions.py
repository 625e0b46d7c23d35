"""The structures that the label values of a bundle mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
        GrataError: two segments have the same label.
    """
    regions = [
        Region(str(segment["label"]), (int(segment["value"]), *map(int, segment.get("includes") or ())), index)
        for index, segment in enumerate(segments)
    ]
    labels = [region.label for region in regions]
    if len(set(labels)) < len(labels):
        raise GrataError(
            f"the labels {', '.join(labels)} are not all different. Give each segment a label of its own.",
            key="segments",
        )
    return regions
