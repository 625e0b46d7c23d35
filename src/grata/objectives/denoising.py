"""Denoising of the images by an auxiliary branch."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from .branch import Branch

__all__ = ["denoising_loss"]


def denoising_loss(branch: Branch, x: torch.Tensor, generator: torch.Generator, std: float = 0.1) -> torch.Tensor:
    """Return ``mean (sigmoid(branch(x + n)) − x)²`` with ``n ~ N(0, std²)`` (ablation of GraTa, AAAI 2025).

    Args:
        branch: function that runs the branch ``denoising``; its output has the shape of ``x``.
        x: images ``(B, C, H, W)`` or ``(B, C, D, H, W)``, 0 to 1 like the sigmoid.
        generator: random generator of the noise, on the CPU.
        std: standard deviation of the noise.

    Returns:
        The loss, a scalar; from 0 to 1 for images from 0 to 1.
    """
    noise = torch.randn(x.shape, generator=generator).to(x)
    return F.mse_loss(branch("denoising", x + std * noise).sigmoid(), x)
