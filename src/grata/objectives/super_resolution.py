"""Super-resolution of an image of half the size by an auxiliary branch."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from .branch import Branch

__all__ = ["super_resolution_loss"]


def super_resolution_loss(branch: Branch, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Mean squared error of ``sigmoid(super-resolution branch of x at half the size)`` to ``x`` (GraTa's ablation).

    Args:
        branch: runs an auxiliary branch.
        x: ``(B, C, H, W)`` in 0..1, as the sigmoid is; halved by averaging 2×2 pixels, so H and W must be twice what
            the network takes.
        generator: not drawn from.
    """
    return F.mse_loss(branch("super_resolution", F.avg_pool2d(x, 2)).sigmoid(), x)
