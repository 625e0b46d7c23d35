"""Denoising of the image by an auxiliary branch."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from .branch import Branch

__all__ = ["denoising_loss"]


def denoising_loss(branch: Branch, x: torch.Tensor, generator: torch.Generator, std: float = 0.1) -> torch.Tensor:
    """Mean squared error of ``sigmoid(denoising branch of x + noise)`` to ``x`` (GraTa's ablation, AAAI 2025).

    Args:
        branch: runs an auxiliary branch.
        x: ``(B, C, H, W)`` in 0..1, as the sigmoid is.
        generator: draws the noise, on the CPU.
        std: standard deviation of the Gaussian noise.
    """
    noise = torch.randn(x.shape, generator=generator).to(x)
    return F.mse_loss(branch("denoising", x + std * noise).sigmoid(), x)
