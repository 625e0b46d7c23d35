"""Adapt to one case as it will be predicted, and merge the records of its steps; engines and benchmarks share both."""

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
    """Let a method adapt to one case, or to some of its windows where the inferer works window by window.

    Args:
        method: method that adapts its network.
        images: images ``(B, C, H, W)`` or ``(B, C, D, H, W)``.
        inferer: inferer that predicts the case afterwards.
        windows: selection of windows of a large volume.
        site: site of the case, for reset policies that need it.

    Returns:
        The record of each call of ``method.adapt``.

    Raises:
        GrataError: adaptation does not know the inferer, or the method refuses the images.
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
            f"adaptation does not know {type(inferer).__name__}. "
            "Use SimpleInferer, SlidingWindowInferer or SliceInferer.",
            key="inferer",
        )
    return [method.adapt(batch, same_case=True) for batch in batches]


def merged_record(records: list[StepRecord]) -> dict[str, Any]:
    """Return the last step's values, the flags of all steps and, if there were several, the values of each step.

    ``reset`` is true if any step, which can only be the first, started from the source network. ``agreement``, which
    measures the quality of the prediction, is the mean over the steps that have one.

    Args:
        records: records of one case, at least one.
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
