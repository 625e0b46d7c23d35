"""DLTTA: a dynamic learning rate for test-time adaptation (IEEE TMI 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..alignment import Rate
from ..errors import GrataError
from ..settings import override
from .card import Card
from .gradient import GradientMethod

__all__ = ["DLTTA"]


class DLTTA(GradientMethod):
    """TENT with a learning rate by how unlike those of similar images a prediction is (DLTTA, Yang et al., 2022).

    .. code-block:: text

        g = ∇ mean_i H(f_θ(x)_i)                       entropy, as TENT
        q̄ = mean prediction of the 8 images in the memory whose deepest features are nearest to that of x
        D = ½·mean_i [KL(p_i ‖ q̄_i) + KL(q̄_i ‖ p_i)]
        θ ← Adam(θ, g, lr·exp(D))

    The more a prediction differs from those of its neighbours, the larger the step. The rule is the learning rate law
    ``discrepancy``, which any method that takes gradient steps can be given by ``learning_rate_law``: see
    :class:`grata.alignment.DiscrepancyRate` for its settings, and for the first images, before there are 8 to compare
    with.

    Dense prediction needs no change: D is a mean over voxels, of the divergence over the classes or of the sum of those
    of the channels' Bernoulli distributions. The authors' code averages its neighbours over one alone, by a slip in the
    name of a variable, and weights them by similarity; here all 8 count alike, as in the paper.

    Raises:
        GrataError: a setting is out of range, the network has nothing to adapt or is a TorchScript network.
    """

    name = "dltta"
    card = Card(
        title="DLTTA",
        reference="Yang et al., DLTTA: dynamic learning rate for test-time adaptation on cross-domain medical images, "
        "IEEE TMI 2022, arXiv:2205.13723",
        year=2022,
        rule="one step down the mean entropy, its length from the discrepancy to the predictions of similar images",
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
