"""Agreement of the predictions for several views of one image: a measure of quality without labels."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

__all__ = ["view_agreement"]


def view_agreement(predictions: Iterable[torch.Tensor], background: bool = False) -> float:
    """Return the mean soft Dice of all pairs of views.

    .. code-block:: text

        dice(p, q) = 2·Σ_i p_i·q_i / (Σ_i p_i² + Σ_i q_i²)      over the voxels i of one channel of one sample

    The mean is over pairs of views, samples and channels. Predictions that agree may still be wrong; of predictions
    that disagree, at most one is right.

    Args:
        predictions: probabilities ``(B, C, ...)`` of each view, mapped back onto the image's grid. They are taken one
            after the other, and all are kept, because every pair is compared.
        background: whether channel 0 is background. It agrees on every image, and is then left out.

    Returns:
        The mean, from 0 to 1 (all views equal). Two channels that are zero everywhere count as 1. NaN with fewer than
        two views.
    """
    maps: list[torch.Tensor] = []
    energy: list[torch.Tensor] = []
    dice: list[torch.Tensor] = []
    for p in predictions:
        # for a turned view this is a copy, so that the turned prediction itself can be freed
        p = p.flatten(2)[:, int(background) :]
        of_p = (p * p).sum(-1)
        for q, of_q in zip(maps, energy):
            total = of_p + of_q
            overlap = 2 * (p * q).sum(-1)
            dice.append(torch.where(total > 0, overlap / total.clamp_min(1e-12), torch.ones_like(total)))
        maps.append(p)
        energy.append(of_p)
    return torch.stack(dice).mean().item() if dice else math.nan
