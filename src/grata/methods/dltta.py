"""DLTTA: a dynamic learning rate for test-time adaptation (IEEE TMI 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..errors import GrataError
from ..optimization import Rate
from ..settings import override
from .card import Card
from .gradient import GradientMethod

__all__ = ["DLTTA"]


class DLTTA(GradientMethod):
    """TENT with a dynamic learning rate, set by the discrepancy to similar images (DLTTA, Yang et al., 2022).

    .. code-block:: text

        g = ∇ mean_i H(f_θ(x)_i)                       entropy, as TENT
        q̄ = mean prediction of the 8 images in the memory whose deepest features are nearest to that of x
        D = ½·mean_i [KL(p_i ‖ q̄_i) + KL(q̄_i ‖ p_i)]
        θ ← Adam(θ, g, lr·exp(D))

    The more a prediction differs from the predictions of its neighbours, the larger the step. This rule is the learning
    rate law ``discrepancy``; the setting ``learning_rate_law`` gives it to any method that takes gradient steps. See
    :class:`grata.optimization.DiscrepancyRate` for its settings and for the first images, before the memory holds 8.

    Dense prediction needs no change. D is a mean over voxels: with softmax of the divergence over the classes, with
    sigmoid of the sum of the divergences of the channels' Bernoulli distributions. Because of a slip in the name of a
    variable, the authors' code averages over one neighbour only; it also weights neighbours by similarity. Here all 8
    have equal weight, as in the paper.

    Raises:
        GrataError: a setting is out of range, the network has nothing to adapt or is a TorchScript network.
    """

    name = "dltta"
    card = Card(
        title="DLTTA",
        reference="Yang et al., DLTTA: dynamic learning rate for test-time adaptation on cross-domain medical images, "
        "IEEE TMI 2022, arXiv:2205.13723",
        year=2022,
        rule="one step down the mean entropy; the discrepancy to the predictions of similar images sets its length",
        changes="affine parameters, batch statistics",
        needs=("affine parameters",),
        forwards=3,
        backwards=1,
    )

    learning_rate_law: Rate | str | Mapping[str, Any] = override(default="discrepancy")

    def _check_network(self) -> None:
        if any(isinstance(module, torch.jit.ScriptModule) for module in self.given.modules()):
            raise GrataError(
                "method dltta compares deepest features, and a TorchScript network cannot be looked into. Use the "
                "Python network (model.pt), or method tent."
            )

    def _loss(self, x: torch.Tensor) -> torch.Tensor:
        return self._objective("entropy", x)
