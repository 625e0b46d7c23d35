"""Probabilities from logits."""

from __future__ import annotations

import torch

from ..errors import GrataError

__all__ = ["ACTIVATIONS", "activate", "check_activation"]

ACTIVATIONS = ("sigmoid", "softmax")
"""Names of the activations: ``sigmoid`` where channels may overlap, ``softmax`` where classes exclude each other."""


def check_activation(activation: str) -> None:
    """Check that ``activation`` is ``sigmoid`` or ``softmax``.

    Raises:
        GrataError: it is another one.
    """
    if activation not in ACTIVATIONS:
        raise GrataError(f"must be one of {', '.join(ACTIVATIONS)}, got {activation!r}.", key="activation")


def activate(logits: torch.Tensor, activation: str) -> torch.Tensor:
    """Return the probabilities of logits.

    .. code-block:: text

        sigmoid:  p_c = 1 / (1 + exp(−z_c))          each channel for itself (multi-label)
        softmax:  p_c = exp(z_c) / Σ_k exp(z_k)      over the channels

    Args:
        logits: logits ``z``, ``(B, C, ...)``.
        activation: ``sigmoid`` or ``softmax``.

    Returns:
        Probabilities of the same shape, 0 to 1.

    Raises:
        GrataError: ``activation`` is neither sigmoid nor softmax.
    """
    check_activation(activation)
    return logits.sigmoid() if activation == "sigmoid" else logits.softmax(1)
