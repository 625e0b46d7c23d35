"""Consistency of a view's prediction with a pseudo-label."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from .activation import check_activation

__all__ = ["consistency_loss"]


def consistency_loss(logits: torch.Tensor, pseudo_label: torch.Tensor, activation: str) -> torch.Tensor:
    """Cross-entropy of ``logits`` to a soft pseudo-label, no gradient through the pseudo-label.

    Args:
        logits: ``(B, C, ...)``.
        pseudo_label: probabilities of the same shape.
        activation: ``sigmoid``: binary cross-entropy, mean over everything (GraTa, AAAI 2025);
            ``softmax``: cross-entropy over classes, mean over samples and voxels.
    """
    check_activation(activation)
    target = pseudo_label.detach()
    if activation == "sigmoid":
        return F.binary_cross_entropy_with_logits(logits, target)
    return F.cross_entropy(logits, target)
