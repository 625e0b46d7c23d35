"""Super-resolution of images of half the size by an auxiliary branch."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from .branch import Branch

__all__ = ["super_resolution_loss"]


def super_resolution_loss(branch: Branch, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Return ``mean (sigmoid(branch(half(x))) − x)²`` (ablation of GraTa, AAAI 2025).

    ``half`` takes the mean of every 2×2 pixels.

    Args:
        branch: function that runs the branch ``super_resolution``; its output has twice the size of its input.
        x: images ``(B, C, H, W)``, 0 to 1 like the sigmoid; H and W are twice a size that the network takes.
        generator: not used; it is here because all branch losses are called in the same way.

    Returns:
        The loss, a scalar; from 0 to 1 for images from 0 to 1.
    """
    return F.mse_loss(branch("super_resolution", F.avg_pool2d(x, 2)).sigmoid(), x)
