"""Confidence filters: which parts of a prediction a method learns from."""

from __future__ import annotations

import math

import torch

from .distributions import log_distributions

__all__ = ["NOTHING_KEPT", "NothingKept", "kept_mean", "kept_share", "maximal_entropy", "voxel_entropy"]

NOTHING_KEPT = "nothing_kept"
"""Flag of a step that was not taken because no voxel passed a filter."""


class NothingKept(Exception):
    """No voxel passed a filter: there is no objective, and no step to take."""


def voxel_entropy(logits: torch.Tensor, activation: str) -> torch.Tensor:
    """Shannon's entropy (nats) of each distribution: ``(B, 1, ...)`` for softmax, ``(B, C, ...)`` for sigmoid.

    A channel of a sigmoid map is a decision of its own, so that it has an entropy and passes a filter of its own.

    Args:
        logits: ``(B, C, ...)``.
        activation: ``sigmoid`` or ``softmax``.
    """
    log_p = log_distributions(logits, activation)
    return -(log_p.exp() * log_p).sum(2)


def maximal_entropy(channels: int, activation: str) -> float:
    """The highest value of :func:`voxel_entropy`: ``ln C`` for softmax, ``ln 2`` for sigmoid."""
    return math.log(channels if activation == "softmax" else 2)


def kept_share(kept: torch.Tensor) -> float:
    """Share of a mask that is true, 0 to 1.

    Raises:
        NothingKept: none of it is.
    """
    share = kept.double().mean().item()
    if share == 0.0:
        raise NothingKept
    return share


def kept_mean(values: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Mean of ``values`` where the mask ``kept`` of the same shape is true, somewhere at least.

    What is not kept is no part of it: a gradient of zero, and a value that is not finite does no harm.
    """
    return torch.where(kept, values, 0.0).sum() / kept.sum()
