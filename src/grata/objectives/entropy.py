"""Entropy of a prediction, which is low where the network is sure (TENT, ICLR 2021)."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ..errors import GrataError
from ..predictions import check_activation

__all__ = ["ENTROPIES", "entropy_loss", "entropy_map"]

ENTROPIES = ("plogp", "binary")
"""Kinds of entropy, see :func:`entropy_map`."""


def entropy_map(logits: torch.Tensor, activation: str, kind: str = "plogp") -> torch.Tensor:
    """Return the entropy at every voxel in nats, summed over the channels.

    .. code-block:: text

        softmax, plogp:   −Σ_c p_c·log p_c
        sigmoid, plogp:   −Σ_c p_c·log(p_c + 1e-6)                          as in GraTa's reference code
        sigmoid, binary:  −Σ_c [p_c·log p_c + (1 − p_c)·log(1 − p_c)]       entropy of each channel's Bernoulli

    For sigmoid, ``plogp`` leaves out the term of the complement; it is highest at ``p = 1/e`` instead of 1/2.

    Args:
        logits: logits ``(B, C, ...)``.
        activation: ``sigmoid`` or ``softmax``.
        kind: ``plogp`` or ``binary``; ``binary`` is for sigmoid only.

    Returns:
        Entropy ``(B, ...)``: 0 to ln C for softmax, −1e-6·C to C/e for sigmoid with ``plogp``, 0 to C·ln 2 for
        ``binary``.

    Raises:
        GrataError: ``activation`` or ``kind`` is not known, or ``binary`` with softmax.
    """
    check_activation(activation)
    if kind not in ENTROPIES:
        raise GrataError(f"must be one of {', '.join(ENTROPIES)}, got {kind!r}.", key="entropy")
    if activation == "softmax":
        if kind == "binary":
            raise GrataError("binary is for activation sigmoid only. Use plogp with softmax.", key="entropy")
        log_p = logits.log_softmax(1)
        return -(log_p.exp() * log_p).sum(1)
    p = logits.sigmoid()
    if kind == "plogp":
        return -(p * torch.log(p + 1e-6)).sum(1)
    return F.binary_cross_entropy_with_logits(logits, p, reduction="none").sum(1)


def entropy_loss(logits: torch.Tensor, activation: str, kind: str = "plogp") -> torch.Tensor:
    """Return the mean of :func:`entropy_map` over samples and voxels.

    Args:
        logits: logits ``(B, C, ...)``.
        activation: ``sigmoid`` or ``softmax``.
        kind: ``plogp`` or ``binary``.

    Returns:
        The loss in nats, a scalar.

    Raises:
        GrataError: ``activation`` or ``kind`` is not known, or ``binary`` with softmax.
    """
    return entropy_map(logits, activation, kind).mean()
