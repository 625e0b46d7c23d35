"""Consistency of a prediction with a pseudo-label."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ..predictions import check_activation

__all__ = ["consistency_loss"]


def consistency_loss(logits: torch.Tensor, pseudo_label: torch.Tensor, activation: str) -> torch.Tensor:
    """Return the cross-entropy of a prediction ``p`` to a soft pseudo-label ``q`` (GraTa, AAAI 2025).

    .. code-block:: text

        sigmoid:  −mean [q·log p + (1 − q)·log(1 − p)]      over samples, channels and voxels
        softmax:  −mean Σ_c q_c·log p_c                     over samples and voxels

    No gradient flows through the pseudo-label.

    Args:
        logits: logits of the prediction, ``(B, C, ...)``.
        pseudo_label: probabilities of the same shape, 0 to 1.
        activation: ``sigmoid`` or ``softmax``.

    Returns:
        The loss, a scalar of at least 0; it is least where ``p = q``.

    Raises:
        GrataError: ``activation`` is neither sigmoid nor softmax.
    """
    check_activation(activation)
    target = pseudo_label.detach()
    if activation == "sigmoid":
        return F.binary_cross_entropy_with_logits(logits, target)
    return F.cross_entropy(logits, target)
