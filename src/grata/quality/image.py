"""What an image looks like to a network, in a few numbers: grey values, texture, and where bright and dark lie."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from .signals import thinned

__all__ = ["THUMBNAIL", "image_features", "thumbnail"]

THUMBNAIL = 6
"""Size of a thumbnail along each axis."""

_TINY = 1e-6


def thumbnail(image: torch.Tensor) -> torch.Tensor:
    """Return the image ``(C, ...)`` as a standardized vector of its mean over channels at a few places."""
    plain = image.detach().float().mean(0)[None, None]
    pool = F.adaptive_avg_pool2d if plain.ndim == 4 else F.adaptive_avg_pool3d
    small = pool(plain, THUMBNAIL).flatten()
    return (small - small.mean()) / (small.std() + _TINY)


def image_features(image: torch.Tensor) -> dict[str, float]:
    """Return what an image ``(C, ...)`` looks like, on the scale on which the network gets it.

    Returns:
        For each channel ``mean``, ``std`` and ``skew`` of its values, ``fine``, the mean difference of neighbouring
        voxels over the deviation, ``coarse``, the deviation of the thumbnail's cells over the deviation, ``low`` and
        ``high``, the shares of values at the ends of its range; over all channels ``colour``, the mean deviation
        between them.
    """
    x = thinned(image.detach()[None])[1][0].float().cpu()
    found: dict[str, float] = {}
    for number, channel in enumerate(x):
        std = channel.std().item() + _TINY
        mean = channel.mean().item()
        low, high = channel.min().item(), channel.max().item()
        near = 0.02 * (high - low) + _TINY
        steps = [channel.diff(dim=axis).abs().mean().item() for axis in range(channel.ndim) if channel.shape[axis] > 1]
        pool = F.adaptive_avg_pool2d if channel.ndim == 2 else F.adaptive_avg_pool3d
        found |= {
            f"mean_{number}": mean,
            f"std_{number}": math.log(std),
            f"skew_{number}": (((channel - mean) / std) ** 3).mean().clamp(-20, 20).item(),
            f"fine_{number}": math.log(sum(steps) / max(len(steps), 1) / std + 1e-3),
            f"coarse_{number}": pool(channel[None], THUMBNAIL).std().item() / std,
            f"low_{number}": (channel < low + near).float().mean().item(),
            f"high_{number}": (channel > high - near).float().mean().item(),
        }
    if len(x) > 1:
        found["colour"] = math.log(x.std(0).mean().item() + 1e-3)
    return found
