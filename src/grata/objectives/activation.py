"""From logits to probabilities."""

from __future__ import annotations

import torch

from ..errors import GrataError

__all__ = ["ACTIVATIONS", "activate", "check_activation"]

ACTIVATIONS = ("sigmoid", "softmax")


def check_activation(activation: str) -> None:
    """Raise :class:`GrataError` unless ``activation`` is ``sigmoid`` or ``softmax``."""
    if activation not in ACTIVATIONS:
        raise GrataError(f"must be one of {', '.join(ACTIVATIONS)}, got {activation!r}.", key="activation")


def activate(logits: torch.Tensor, activation: str) -> torch.Tensor:
    """Probabilities of ``logits`` ``(B, C, ...)``: ``sigmoid`` per channel (multi-label), ``softmax`` over channels."""
    check_activation(activation)
    return logits.sigmoid() if activation == "sigmoid" else logits.softmax(1)
