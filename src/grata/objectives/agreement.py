"""How well the predictions of several views of one image agree: a measure of quality that needs no label."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

__all__ = ["view_agreement"]


def view_agreement(predictions: Iterable[torch.Tensor], background: bool = False) -> float:
    """Mean soft Dice ``2·Σpq / (Σp² + Σq²)`` over all pairs of views, channels and samples: 0 to 1, all equal.

    Predictions that agree need not be right, but those that disagree cannot all be.

    Args:
        predictions: of each view the probabilities ``(B, C, ...)``, mapped back onto the image's grid; taken one after
            the other, and all kept, because every pair is compared.
        background: whether channel 0 is background, which agrees on every image, and is left out.

    Returns:
        The mean; a pair of channels that are both zero counts as 1. NaN when there are not two views.
    """
    maps: list[torch.Tensor] = []
    energy: list[torch.Tensor] = []
    dice: list[torch.Tensor] = []
    for p in predictions:
        # of a turned view this is a copy: it alone is held on to
        p = p.flatten(2)[:, int(background) :]
        of_p = (p * p).sum(-1)
        for q, of_q in zip(maps, energy):
            total = of_p + of_q
            overlap = 2 * (p * q).sum(-1)
            dice.append(torch.where(total > 0, overlap / total.clamp_min(1e-12), torch.ones_like(total)))
        maps.append(p)
        energy.append(of_p)
    return torch.stack(dice).mean().item() if dice else math.nan
