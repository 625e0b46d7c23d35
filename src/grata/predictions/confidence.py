"""Confidence filters: the voxels of a prediction that a method learns from."""

from __future__ import annotations

import math

import torch

from .distributions import log_distributions

__all__ = ["NOTHING_KEPT", "NothingKept", "kept_mean", "kept_share", "maximal_entropy", "voxel_entropy"]

NOTHING_KEPT = "nothing_kept"
"""Flag of a step that is skipped because no voxel passed a filter."""


class NothingKept(Exception):
    """Signal that no voxel passed a filter, so that there is no loss and no step."""


def voxel_entropy(logits: torch.Tensor, activation: str) -> torch.Tensor:
    """Return the entropy ``−Σ_k p_k·log p_k`` of each distribution at each voxel in nats.

    Each channel of a sigmoid prediction is a decision of its own: it has its own entropy, and passes a filter or not by
    itself.

    Args:
        logits: logits ``(B, C, ...)``.
        activation: ``sigmoid`` or ``softmax``.

    Returns:
        Entropy from 0 to :func:`maximal_entropy`: ``(B, 1, ...)`` for softmax, ``(B, C, ...)`` for sigmoid.

    Raises:
        GrataError: ``activation`` is neither sigmoid nor softmax.
    """
    log_p = log_distributions(logits, activation)
    return -(log_p.exp() * log_p).sum(2)


def maximal_entropy(channels: int, activation: str) -> float:
    """Return the highest value of :func:`voxel_entropy`: ``ln C`` for softmax, ``ln 2`` for sigmoid.

    Args:
        channels: number of channels C.
        activation: ``sigmoid`` or ``softmax``.
    """
    return math.log(channels if activation == "softmax" else 2)


def kept_share(kept: torch.Tensor) -> float:
    """Return the share of true values in a mask, above 0 and at most 1.

    Args:
        kept: boolean mask of any shape.

    Raises:
        NothingKept: no value is true.
    """
    share = kept.double().mean().item()
    if share == 0.0:
        raise NothingKept
    return share


def kept_mean(values: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Return the mean ``Σ_kept v / Σ_kept 1`` of the values where a mask is true.

    Other values have no influence, even if they are not finite, and get a gradient of zero.

    Args:
        values: values of any shape.
        kept: boolean mask of the same shape, true somewhere.
    """
    return torch.where(kept, values, 0.0).sum() / kept.sum()
