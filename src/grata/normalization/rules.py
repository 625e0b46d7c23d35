"""Rules for the statistics of batch normalization, shared by several methods."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import nn

from ..errors import GrataError
from .affine import TrackedNorm

__all__ = ["RULES", "Rule", "check_size", "instance_mix", "median_statistics", "running_statistics"]

Rule = Callable[[TrackedNorm, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Function ``rule(layer, x)`` that returns the mean and the variance by which a layer normalizes its input ``x``.

``x`` is ``(B, C, ...)`` in float32 or float64. Mean and variance are ``(C,)`` for the whole batch or ``(B, C)`` for
each sample. ``layer.running_mean`` and ``layer.running_var``, ``(C,)``, are those of the source."""


def running_statistics(layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the running mean and variance ``(C,)`` of a batch normalization layer that keeps them."""
    tracked = cast(TrackedNorm, layer)
    return tracked.running_mean, tracked.running_var


def check_size(x: torch.Tensor, samples: bool = False) -> None:
    """Check that there is more than one value per channel: a single one would be normalized to zero.

    Args:
        x: input of a normalization layer, ``(B, C, ...)``.
        samples: whether each sample has its own statistics, instead of the whole batch.

    Raises:
        GrataError: there is a single value per channel.
    """
    if x[0, 0].numel() == 1 and (samples or len(x) == 1):
        raise GrataError(
            f"The image is too small for batch statistics: a layer of {x.shape[1]} channels sees a single value of "
            f"each. Use larger images or windows (roi_size){'' if samples else ', larger batches'}, or method source."
        )


def sample_statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and biased variance, each ``(B, C)``, of every channel of every sample of ``x`` ``(B, C, ...)``."""
    flat = x.flatten(2)
    variance, mean = torch.var_mean(flat, 2, correction=0)
    return mean, variance


def instance_mix(weight: float) -> Rule:
    """Return the rule ``weight·sample's statistics + (1 − weight)·source's statistics``.

    Its mean and variance are ``(B, C)``: those of a sample do not depend on the rest of the batch.

    Args:
        weight: weight of the sample's statistics, 0 to 1.
    """

    rule = partial(_instance_mix, weight)
    # the states of methods on disk name it so
    vars(rule)["__qualname__"] = "instance_mix.<locals>.rule"
    return rule


def _instance_mix(weight: float, layer: TrackedNorm, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if weight == 1.0:
        check_size(x, samples=True)
    mean, variance = sample_statistics(x)
    return (
        weight * mean + (1 - weight) * layer.running_mean,
        weight * variance + (1 - weight) * layer.running_var,
    )


def median_statistics(layer: TrackedNorm, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the median of each channel over batch and space, and the mean squared deviation from it, each ``(C,)``.

    This is a :data:`Rule`. The median of an even number of values is the lower of the two in the middle.

    Args:
        layer: normalization layer; not used.
        x: input of the layer, ``(B, C, ...)``.

    Raises:
        GrataError: there is a single value per channel.
    """
    check_size(x)
    values = x.transpose(0, 1).flatten(1)
    median = values.median(1).values
    return median, (values - median[:, None]).square().mean(1)


RULES: dict[str, Rule] = {"median": median_statistics}
"""Rules by the names that configurations use in place of a weight of the batch's statistics."""
