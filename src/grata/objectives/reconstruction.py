"""Reconstruction of the image from the network's deepest feature."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from .branch import Branch

__all__ = ["reconstruction_loss"]


def reconstruction_loss(branch: Branch, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Mean squared error of ``sigmoid(reconstruction branch of x)`` to ``x`` (GraTa's ablation, AAAI 2025).

    Args:
        branch: runs an auxiliary branch.
        x: ``(B, C, H, W)`` in 0..1, as the sigmoid is.
        generator: not drawn from.
    """
    return F.mse_loss(branch("reconstruction", x).sigmoid(), x)
