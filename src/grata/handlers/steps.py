"""What an engine and a benchmark share: adapt to one case as it will be predicted, and the record of it."""

from __future__ import annotations

import math
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer, SlidingWindowInferer

from ..errors import GrataError
from ..methods import Method, StepRecord
from .windows import WindowSelection

__all__ = ["adapt_to_case", "merged_record"]


def adapt_to_case(
    method: Method, images: torch.Tensor, inferer: Inferer, windows: WindowSelection, site: str | None = None
) -> list[StepRecord]:
    """Let a method adapt to one case: to the whole of it, or to some windows where the inferer works window by window.

    Args:
        method: adapts its network.
        images: ``(B, C, H, W)`` or ``(B, C, D, H, W)``.
        inferer: what the case is predicted with afterwards.
        windows: which windows of a large volume.
        site: where the case comes from, for reset policies that ask for it.

    Returns:
        The record of each call of ``method.adapt``.

    Raises:
        GrataError: an inferer that adaptation does not know.
    """
    if not method.learns:
        return [method.adapt(images, site=site)]
    method.begin_case(site)
    if isinstance(inferer, SlidingWindowInferer):
        batches = windows.select(images, inferer, method)
    elif isinstance(inferer, SimpleInferer):
        batches = [images]
    else:
        raise GrataError(
            f"{type(inferer).__name__} is not one that adaptation knows; "
            "use SimpleInferer, SlidingWindowInferer or SliceInferer.",
            key="inferer",
        )
    return [method.adapt(batch, same_case=True) for batch in batches]


def merged_record(records: list[StepRecord]) -> dict[str, Any]:
    """The last step's values, the flags of all, and every step's values where there were several.

    ``reset`` is that of the case: only its first step can be the one that started from the source network. What tells
    of the prediction's quality is a mean: of ``agreement`` over the steps that have one.
    """
    steps = [step for record in records for step in (record.as_dict().pop("steps", None) or [record.as_dict()])]
    for step in steps:
        step.pop("steps", None)
    flags = list(dict.fromkeys(flag for record in records for flag in record.flags))
    merged = {**steps[-1], "flags": flags, "reset": any(record.reset for record in records)}
    if len(steps) > 1:
        agreements = [step["agreement"] for step in steps if math.isfinite(step.get("agreement", math.nan))]
        merged |= {"agreement": sum(agreements) / len(agreements)} if agreements else {}
        merged["steps"] = steps
    return merged
