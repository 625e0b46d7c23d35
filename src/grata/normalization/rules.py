"""Rules for the statistics of batch normalization that several methods share."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import nn

from ..errors import GrataError

__all__ = [
    "RULES",
    "Rule",
    "check_size",
    "instance_mix",
    "median_statistics",
    "running_statistics",
    "sample_statistics",
]

Rule = Callable[[nn.Module, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""``rule(layer, x)``: mean and variance to normalize ``x`` ``(B, C, ...)`` by, float32 at least, each ``(C,)`` for the
whole batch or ``(B, C)`` for every sample; ``layer`` has ``running_mean``, ``running_var`` ``(C,)`` of the source."""


def running_statistics(layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the running mean and variance ``(C,)`` of a batch normalization layer that keeps them."""
    return cast(torch.Tensor, layer.running_mean), cast(torch.Tensor, layer.running_var)


def check_size(x: torch.Tensor, samples: bool = False) -> None:
    """Refuse what has no statistics but those that make every value zero.

    Args:
        x: ``(B, C, ...)``.
        samples: whether each sample is to have statistics of its own.

    Raises:
        GrataError: there is a single value of each channel.
    """
    if x[0, 0].numel() == 1 and (samples or len(x) == 1):
        raise GrataError(
            f"The image is too small for batch statistics: a layer of {x.shape[1]} channels sees a single value of "
            f"each. Use larger images or windows (roi_size){'' if samples else ', larger batches'}, or method source."
        )


def sample_statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance (biased) of each channel of each sample of ``x`` ``(B, C, ...)``: ``(B, C)`` each."""
    flat = x.flatten(2)
    variance, mean = torch.var_mean(flat, 2, correction=0)
    return mean, variance


def instance_mix(weight: float) -> Rule:
    """``weight`` of each sample's own statistics in those of the source: ``(B, C)``, whatever else is in the batch.

    Args:
        weight: 0 to 1.
    """

    def rule(layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if weight == 1.0:
            check_size(x, samples=True)
        mean, variance = sample_statistics(x)
        return (
            weight * mean + (1 - weight) * layer.running_mean,
            weight * variance + (1 - weight) * layer.running_var,
        )

    return rule


def median_statistics(layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The median of each channel over batch and space, and the mean squared deviation from it: ``(C,)`` each.

    Of an even number of values the lower of the two in the middle is taken.
    """
    check_size(x)
    values = x.transpose(0, 1).flatten(1)
    median = values.median(1).values
    return median, (values - median[:, None]).square().mean(1)


RULES: dict[str, Rule] = {"median": median_statistics}
"""Rules by the name that configs use, where a weight of the batch's statistics may stand."""
