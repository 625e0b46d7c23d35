"""TENT: test entropy minimization (ICLR 2021)."""

from __future__ import annotations

import torch

from ..settings import override
from .card import Card
from .gradient import GradientMethod

__all__ = ["Tent"]


class Tent(GradientMethod):
    """One optimizer step on the mean entropy of the prediction (TENT, Wang et al., ICLR 2021).

    .. code-block:: text

        g = ∇ mean_i H(f_θ(x)_i)          entropy over the classes, or of each channel, mean over voxels
        θ ← Adam(θ, g, lr)

    The method adapts the affine parameters of the normalization layers with batch statistics, online. It predicts after
    the step; the authors' code predicts with the forward that gave the gradient, one step earlier.

    Raises:
        GrataError: a setting is out of range, or the network has nothing to adapt.
    """

    name = "tent"
    card = Card(
        title="TENT",
        reference="Wang et al., Tent: fully test-time adaptation by entropy minimization, ICLR 2021, arXiv:2006.10726",
        year=2021,
        rule="one step down the mean entropy of the prediction",
        changes="affine parameters, batch statistics",
        needs=("affine parameters",),
        forwards=2,
        backwards=1,
    )

    lr: float = override(default=1e-3)

    def _loss(self, x: torch.Tensor) -> torch.Tensor:
        return self._objective("entropy", x)
