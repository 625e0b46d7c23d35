"""Agreement of the predictions for several views of one image: a measure of quality without labels."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

__all__ = ["soft_dice", "view_agreement"]


def soft_dice(product: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """Return the soft Dice ``2·Σ_i p_i·q_i / (Σ_i p_i² + Σ_i q_i²)`` of two maps; 1 where both are zero everywhere.

    Args:
        product: sum of the products of their values, of any shape.
        total: sum of the squares of both, of the same shape.
    """
    return torch.where(total > 0, 2 * product / total.clamp_min(1e-12), torch.ones_like(total))


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
            dice.append(soft_dice((p * q).sum(-1), of_p + of_q))
        maps.append(p)
        energy.append(of_p)
    return torch.stack(dice).mean().item() if dice else math.nan
