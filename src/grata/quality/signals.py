"""Signals of quality that need no labels: what a prediction says of itself, and how it stands to another one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from ..predictions import activate, soft_dice

__all__ = [
    "Segmentation",
    "adic",
    "class_compactness",
    "overlap",
    "segmentation",
    "shape_signals",
    "soft_overlap",
    "thinned",
]

_TINY = 1e-12

_MOST = 50_000_000
"""Number of values of a prediction above which not all voxels are looked at: a hundred classes of a whole body take
tens of gigabytes."""


@dataclass(frozen=True)
class Segmentation:
    """Probabilities and masks of the segments, without the background of a softmax.

    Attributes:
        probabilities: ``(B, K, ...)``, 0 to 1.
        masks: ``(B, K, ...)``, true where a segment is predicted: the most probable class of a softmax, above 0.5 of a
            sigmoid.
        step: distance of the voxels that were looked at along each axis; 1: all were.
    """

    probabilities: torch.Tensor
    masks: torch.Tensor
    step: int = 1

    def voxels(self) -> torch.Tensor:
        """Return the number of voxels of each segment, ``(B, K)``."""
        return self.masks.flatten(2).sum(2).float() * self.step ** (self.masks.ndim - 2)

    def shares(self) -> torch.Tensor:
        """Return the share of the voxels that each segment takes, ``(B, K)``, 0 to 1."""
        return self.masks.flatten(2).float().mean(2)

    def self_dice(self) -> torch.Tensor:
        """Return the Dice that the probabilities expect of their own mask, ``(B, K)``, 0 to 1.

        .. code-block:: text

            2·Σ_i p_i·h_i / (Σ_i p_i + Σ_i h_i)      over the voxels i, with the mask h

        A segment that is not predicted has 1 − its highest probability.
        """
        p, h = self.probabilities.flatten(2), self.masks.flatten(2)
        inside, size = (p * h).sum(2), h.sum(2).to(p.dtype)
        expected = 2 * inside / (p.sum(2) + size).clamp_min(_TINY)
        return torch.where(size > 0, expected, 1 - p.amax(2))

    def confidence(self) -> torch.Tensor:
        """Return the mean probability inside each mask, ``(B, K)``; 1 − the highest one where there is no mask."""
        p, h = self.probabilities.flatten(2), self.masks.flatten(2)
        size = h.sum(2).to(p.dtype)
        return torch.where(size > 0, (p * h).sum(2) / size.clamp_min(1), 1 - p.amax(2))


def segmentation(logits: torch.Tensor, activation: str) -> Segmentation:
    """Return the segments of logits.

    Args:
        logits: ``(B, C, ...)``.
        activation: ``sigmoid`` (K = C segments) or ``softmax`` (K = C − 1, without channel 0).

    Returns:
        The segments; of a very large prediction those on a coarser grid.
    """
    with torch.no_grad():
        plain = logits.as_tensor() if hasattr(logits, "as_tensor") else logits
        step, thin = thinned(plain.detach())
        p = activate(thin.float(), activation)
        if activation == "sigmoid":
            return Segmentation(p, p > 0.5, step)
        first = p.argmax(1, keepdim=True)
        return Segmentation(p[:, 1:], torch.cat([first == c for c in range(1, p.shape[1])], 1), step)


def thinned(x: torch.Tensor, most: int = _MOST) -> tuple[int, torch.Tensor]:
    """Return the step along each spatial axis of ``(B, C, ...)`` that leaves at most ``most`` values, and the rest."""
    step, axes = 1, x.ndim - 2
    while x.numel() / step**axes > most:
        step += 1
    for axis in range(2, x.ndim) if step > 1 else ():
        x = x[(slice(None),) * axis + (slice(None, None, step),)]
    return step, x


def soft_overlap(one: Segmentation, other: Segmentation) -> torch.Tensor:
    """Return the soft Dice of two predictions on one grid, ``(B, K)``, see :func:`grata.predictions.view_agreement`."""
    p, q = one.probabilities.flatten(2), other.probabilities.flatten(2)
    return soft_dice((p * q).sum(2), (p * p).sum(2) + (q * q).sum(2))


def overlap(one: Segmentation, other: Segmentation) -> torch.Tensor:
    """Return the Dice of the masks of two predictions on one grid, ``(B, K)``; 1 where both are empty."""
    g, h = one.masks.flatten(2), other.masks.flatten(2)
    total = (g.sum(2) + h.sum(2)).float()
    return torch.where(total > 0, 2 * (g & h).sum(2) / total.clamp_min(1), torch.ones_like(total))


def shape_signals(mask: np.ndarray) -> dict[str, float]:
    """Return what the shape of one mask ``(H, W)`` or ``(D, H, W)`` says.

    Returns:
        ``components``, the number of its connected parts (faces alone connect); ``largest``, the share of the largest
        one; ``holes``, the share of the filled mask that is not in the mask; ``border``, the share of its voxels that
        lie on the border of the image; ``centre_0``, ... the position of its centre along each axis, 0 to 1. An empty
        mask has no components, and its centre is 0.5.
    """
    size = int(mask.sum())
    if not size:
        return {"components": 0.0, "largest": 1.0, "holes": 0.0, "border": 0.0} | {
            f"centre_{axis}": 0.5 for axis in range(mask.ndim)
        }
    # the bounding box holds all that is measured, and a structure is often small in its image
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    inner = mask[box]
    parts, number = ndimage.label(inner)
    sizes = np.bincount(parts.ravel())[1:]
    filled = int(ndimage.binary_fill_holes(inner).sum())
    within = mask[tuple(slice(1, -1) if length > 1 else slice(None) for length in mask.shape)]
    centre = {}
    for axis, length in enumerate(mask.shape):
        profile = inner.sum(tuple(other for other in range(mask.ndim) if other != axis))
        places = np.arange(len(profile)) + box[axis].start + 0.5
        centre[f"centre_{axis}"] = float((profile * places).sum() / size / length)
    return {
        "components": float(number),
        "largest": float(sizes.max() / size),
        "holes": 1 - size / filled,
        "border": 1 - int(within.sum()) / size,
        **centre,
    }


def class_compactness(probabilities: torch.Tensor, activation: str) -> torch.Tensor:
    """Return the class-compact density of a prediction for each image, ``(B,)``; lower is better.

    .. code-block:: text

        M = PᵀP / N,    mean over the C² entries of −M·log(M + 1e-5)      P: N voxels × C probabilities

    Of a sigmoid, each channel has the classes p and 1 − p, and the mean over the channels is returned. All voxels
    count, so that nothing is drawn at random.

    Source: A3-TTA (Wu, IEEE TIP 2025), whose form divides by a fixed 320².

    Args:
        probabilities: ``(B, C, ...)``, with the background of a softmax.
        activation: ``sigmoid`` or ``softmax``.
    """
    p = probabilities.flatten(2)
    groups = [p] if activation == "softmax" else [torch.stack([c, 1 - c], 1) for c in p.unbind(1)]
    found = []
    # the half precision of a surrounding autocast is for the network
    with torch.autocast(p.device.type, enabled=False):
        for group in groups:
            m = group @ group.transpose(1, 2) / group.shape[2]
            found.append((-m * (m + 1e-5).log()).flatten(1).mean(1))
    return torch.stack(found).mean(0)


def adic(votes: torch.Tensor, prediction: torch.Tensor) -> float:
    """Return the agreement with dropout calibration (ADIC) of one mask; higher is better.

    .. code-block:: text

        r, u  = mean and maximum of the votes at each voxel
        e     = binary entropy of r, scaled to 0..1 over the image
        ADIC  = mean over the votes of Dice(vote, prediction) × Σ(1 − e)·u / Σu

    Source: TEGDA (MICCAI 2025, paper 2263), whose votes are dropout passes.

    Args:
        votes: masks ``(N, ...)`` of N passes.
        prediction: mask ``(...)``.

    Returns:
        The measure, 0 to 1; NaN where no vote has a voxel, or where all votes are equal: there is nothing to measure
        then, and the authors' formula gives a constant.
    """
    flat, h = votes.flatten(1).float(), prediction.flatten().float()
    r, u = flat.mean(0), flat.amax(0)
    if not u.any() or torch.equal(r, u):
        return math.nan
    e = torch.special.entr(r) + torch.special.entr(1 - r)
    e = (e - e.min()) / (e.max() - e.min()).clamp_min(_TINY)
    dice = 2 * (flat * h).sum(1) / (flat.sum(1) + h.sum()).clamp_min(_TINY)
    return float(dice.mean() * ((1 - e) * u).sum() / u.sum())
