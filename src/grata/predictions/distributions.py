"""Predictions as distributions at each voxel, and divergences between them."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ..errors import GrataError

__all__ = ["kl_divergence", "log_distributions", "symmetric_divergence"]


def log_distributions(logits: torch.Tensor, activation: str) -> torch.Tensor:
    """Return log-probabilities in one layout for both activations.

    .. code-block:: text

        softmax:  log p_c                      one distribution over the C classes:       G = 1, K = C
        sigmoid:  log p_c and log(1 − p_c)     one distribution for each of C channels:   G = C, K = 2

    Args:
        logits: logits ``(B, C, ...)``.
        activation: ``sigmoid`` or ``softmax``.

    Returns:
        Log-probabilities ``(B, G, K, ...)`` of G distributions over K outcomes at each voxel.

    Raises:
        GrataError: ``activation`` is neither sigmoid nor softmax.
    """
    if activation == "softmax":
        return logits.log_softmax(1).unsqueeze(1)
    if activation == "sigmoid":
        return torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)], 2)
    raise GrataError(f"must be one of sigmoid, softmax, got {activation!r}.", key="activation")


def kl_divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Return the divergence ``KL(p ‖ q) = Σ_k p_k·(log p_k − log q_k)`` in nats.

    Args:
        log_p: log-probabilities from :func:`log_distributions`, ``(B, G, K, ...)``.
        log_q: log-probabilities of the same shape.

    Returns:
        Divergence of each distribution, ``(B, G, ...)``, at least 0.
    """
    return (log_p.exp() * (log_p - log_q)).sum(2)


def symmetric_divergence(p: torch.Tensor, q: torch.Tensor, activation: str) -> torch.Tensor:
    """Return the symmetric divergence ``½·[KL(p ‖ q) + KL(q ‖ p)]`` at every voxel in nats.

    For ``softmax`` the distribution is over the classes; for ``sigmoid`` the divergences of the C Bernoulli
    distributions are summed. Probabilities are clamped to the machine epsilon of their dtype, so that it stays finite.

    Args:
        p: probabilities ``(B, C, ...)``.
        q: probabilities of the same shape.
        activation: ``sigmoid`` or ``softmax``.

    Returns:
        Divergence ``(B, ...)``, at least 0.
    """
    if activation == "sigmoid":
        p, q = (torch.cat([r, 1 - r], 1) for r in (p, q))
    least = torch.finfo(p.dtype).eps
    p, q = p.clamp_min(least), q.clamp_min(least)
    return 0.5 * ((p - q) * (p.log() - q.log())).sum(1)
