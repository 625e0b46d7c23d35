"""How well the predictions of several views of one image agree: a measure of quality that needs no label."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

__all__ = ["view_agreement"]


def view_agreement(predictions: Sequence[torch.Tensor], background: bool = False) -> float:
    """Mean soft Dice ``2·Σpq / (Σp² + Σq²)`` over all pairs of views, channels and samples: 0 to 1, all equal.

    Predictions that agree need not be right, but those that disagree cannot all be.

    Args:
        predictions: of each view the probabilities ``(B, C, ...)``, mapped back onto the image's grid.
        background: whether channel 0 is background, which agrees on every image, and is left out.

    Returns:
        The mean; a pair of channels that are both zero counts as 1. NaN when there are not two views.
    """
    if len(predictions) < 2:
        return math.nan
    maps = [p.flatten(2)[:, int(background) :] for p in predictions]
    energy = [(p * p).sum(-1) for p in maps]
    dice = []
    for i, p in enumerate(maps):
        for j in range(i):
            total = energy[i] + energy[j]
            overlap = 2 * (p * maps[j]).sum(-1)
            dice.append(torch.where(total > 0, overlap / total.clamp_min(1e-12), torch.ones_like(total)))
    return torch.stack(dice).mean().item()
