"""Probabilities of dense predictions: back to logits, and how sure they are."""

from __future__ import annotations

import torch

__all__ = ["confidence", "logits_of"]


def logits_of(probabilities: torch.Tensor, activation: str) -> torch.Tensor:
    """Logits whose activation gives ``probabilities`` ``(B, C, ...)``: ``log p`` for softmax, ``logit p`` for sigmoid.

    Probabilities of 0 and 1 are moved by what the dtype resolves, so that the logits are finite.
    """
    limits = torch.finfo(probabilities.dtype)
    if activation == "softmax":
        return probabilities.clamp_min(limits.tiny).log()
    # the complement of a small p is lost in 1 - p: on either side the logit is limited by the resolution at 1
    return probabilities.clamp(limits.eps, 1 - limits.eps).logit()


def confidence(probabilities: torch.Tensor, activation: str) -> torch.Tensor:
    """How sure a prediction ``(B, C, ...)`` is at every voxel.

    Returns:
        ``softmax``: the largest probability, ``(B, 1, ...)``, from 1/C to 1; ``sigmoid``: ``max(p, 1 − p)`` of each
        channel, which decides for itself between foreground and background, ``(B, C, ...)``, from 1/2 to 1.
    """
    if activation == "softmax":
        return probabilities.amax(1, keepdim=True)
    return torch.maximum(probabilities, 1 - probabilities)
