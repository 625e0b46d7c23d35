"""Probabilities of predictions: their logits, and their confidence."""

from __future__ import annotations

import torch

__all__ = ["are_probabilities", "confidence", "logits_of"]

_ROUNDING = 1e-2
"""How far the sum of probabilities in half precision may be from 1."""


def logits_of(probabilities: torch.Tensor, activation: str) -> torch.Tensor:
    """Return logits whose activation gives the probabilities.

    .. code-block:: text

        softmax:  log p_c
        sigmoid:  log(p_c / (1 − p_c))

    Probabilities of 0 and 1 are moved by the resolution of their dtype, so that the logits are finite.

    Args:
        probabilities: probabilities ``(B, C, ...)``, 0 to 1.
        activation: ``sigmoid`` or ``softmax``.

    Returns:
        Logits of the same shape.
    """
    limits = torch.finfo(probabilities.dtype)
    if activation == "softmax":
        return probabilities.clamp_min(limits.tiny).log()
    # 1 - p loses a p below the resolution at 1, which therefore limits both sides
    return probabilities.clamp(limits.eps, 1 - limits.eps).logit()


def are_probabilities(y: torch.Tensor, activation: str) -> bool:
    """Return whether what should be logits is the result of the activation already.

    Args:
        y: output of a network ``(B, C, ...)``.
        activation: ``sigmoid``: all values are within 0..1; ``softmax``: they also add up to 1 over the channels.
    """
    if not y.numel() or not y.is_floating_point():
        return False
    low, high = y.min(), y.max()
    # a constant output says nothing
    if not 0 <= low < high <= 1 + _ROUNDING:
        return False
    return activation == "sigmoid" or bool(((y.sum(1, dtype=torch.float32) - 1).abs() < _ROUNDING).all())


def confidence(probabilities: torch.Tensor, activation: str) -> torch.Tensor:
    """Return the confidence of a prediction at every voxel.

    .. code-block:: text

        softmax:  max_c p_c              (B, 1, ...), 1/C to 1
        sigmoid:  max(p_c, 1 − p_c)      (B, C, ...), 1/2 to 1: each channel decides for itself

    Args:
        probabilities: probabilities ``(B, C, ...)``.
        activation: ``sigmoid`` or ``softmax``.
    """
    if activation == "softmax":
        return probabilities.amax(1, keepdim=True)
    return torch.maximum(probabilities, 1 - probabilities)
