"""Entropy minimization: a network that is sure of its prediction has a low entropy (TENT, ICLR 2021)."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ..errors import GrataError
from .activation import check_activation

__all__ = ["ENTROPIES", "entropy_loss", "entropy_map"]

ENTROPIES = ("plogp", "binary")


def entropy_map(logits: torch.Tensor, activation: str, kind: str = "plogp") -> torch.Tensor:
    """Entropy (nats) at every voxel, summed over channels.

    Args:
        logits: ``(B, C, ...)``.
        activation: ``sigmoid`` or ``softmax``.
        kind: ``plogp``: ``−Σ_c p log(p + 1e-6)`` for sigmoid, as GraTa's reference has it (the term of the complement
            is left out), and the exact ``−Σ_c p log p`` for softmax; ``binary``: the full binary entropy
            ``−Σ_c [p log p + (1−p) log(1−p)]`` of each channel, for sigmoid only.

    Returns:
        ``(B, ...)``, non-negative up to the 1e-6.

    Raises:
        GrataError: unknown kind, or ``binary`` with softmax.
    """
    check_activation(activation)
    if kind not in ENTROPIES:
        raise GrataError(f"must be one of {', '.join(ENTROPIES)}, got {kind!r}.", key="entropy")
    if activation == "softmax":
        if kind == "binary":
            raise GrataError("entropy=binary is for activation=sigmoid; softmax classes have entropy=plogp.")
        log_p = logits.log_softmax(1)
        return -(log_p.exp() * log_p).sum(1)
    p = logits.sigmoid()
    if kind == "plogp":
        return -(p * torch.log(p + 1e-6)).sum(1)
    return F.binary_cross_entropy_with_logits(logits, p, reduction="none").sum(1)


def entropy_loss(logits: torch.Tensor, activation: str, kind: str = "plogp") -> torch.Tensor:
    """Mean over samples and voxels of :func:`entropy_map`."""
    return entropy_map(logits, activation, kind).mean()
