"""What a network predicts at a voxel, as distributions: over the classes, or a Bernoulli of each channel."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ..errors import GrataError

__all__ = ["kl_divergence", "log_distributions", "symmetric_divergence"]


def log_distributions(logits: torch.Tensor, activation: str) -> torch.Tensor:
    """Log-probabilities, in one shape for both activations.

    Args:
        logits: ``(B, C, ...)``.
        activation: ``softmax``: one distribution a voxel, over the C classes; ``sigmoid``: C distributions a voxel,
            each of a channel's foreground and its complement.

    Returns:
        ``(B, G, K, ...)``: G distributions over K outcomes, ``(1, C)`` for softmax, ``(C, 2)`` for sigmoid.

    Raises:
        GrataError: another activation.
    """
    if activation == "softmax":
        return logits.log_softmax(1).unsqueeze(1)
    if activation == "sigmoid":
        return torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)], 2)
    raise GrataError(f"must be one of sigmoid, softmax, got {activation!r}.", key="activation")


def kl_divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """``KL(p ‖ q) = Σ_k p (log p − log q)`` of :func:`log_distributions`: ``(B, G, ...)``."""
    return (log_p.exp() * (log_p - log_q)).sum(2)


def symmetric_divergence(p: torch.Tensor, q: torch.Tensor, activation: str) -> torch.Tensor:
    """``½·[KL(p ‖ q) + KL(q ‖ p)]`` at every voxel of two maps of probabilities ``(B, C, ...)``: ``(B, ...)``.

    Of the distribution over the classes for ``softmax``; for ``sigmoid`` of the Bernoulli distribution of each channel,
    summed over the channels. Probabilities below what the dtype resolves at 1 count as that.
    """
    if activation == "sigmoid":
        p, q = (torch.cat([r, 1 - r], 1) for r in (p, q))
    least = torch.finfo(p.dtype).eps
    p, q = p.clamp_min(least), q.clamp_min(least)
    return 0.5 * ((p - q) * (p.log() - q.log())).sum(1)
