"""Angle between two gradients over all adapted parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["cosine_similarity", "gradient_norm"]


def gradient_norm(gradients: Sequence[torch.Tensor | None]) -> float:
    """Return the Euclidean norm of all gradients as one vector, summed in float64; a gradient of None counts as 0."""
    return float(sum(g.double().square().sum() for g in gradients if g is not None)) ** 0.5


def cosine_similarity(a: Sequence[torch.Tensor | None], b: Sequence[torch.Tensor | None], eps: float = 1e-12) -> float:
    """Return ``a·b / (‖a‖‖b‖ + eps)``, each a list of gradients taken as one vector; -1 to 1, 0 when one is zero.

    Sums are taken in float64: gradients of normalization layers span many orders of magnitude.
    """
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    dot = float(sum((x.double() * y.double()).sum() for x, y in pairs))
    return dot / (gradient_norm(a) * gradient_norm(b) + eps)
