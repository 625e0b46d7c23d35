"""Reconstruction of the images by an auxiliary branch."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from .branch import Branch

__all__ = ["reconstruction_loss"]


def reconstruction_loss(branch: Branch, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Return ``mean (sigmoid(branch(x)) − x)²`` (ablation of GraTa, AAAI 2025).

    Args:
        branch: function that runs the branch ``reconstruction``; its output has the shape of ``x``.
        x: images ``(B, C, H, W)``, 0 to 1 like the sigmoid.
        generator: not used; it is here because all branch losses are called in the same way.

    Returns:
        The loss, a scalar; from 0 to 1 for images from 0 to 1.
    """
    return F.mse_loss(branch("reconstruction", x).sigmoid(), x)
