"""GraTa: gradient alignment-based test-time adaptation (AAAI 2025)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .card import Card
from .gradient import GradientMethod, GradientRecord

__all__ = ["GraTa"]


class GraTa(GradientMethod):
    """Gradient alignment-based test-time adaptation of normalization layers (GraTa, AAAI 2025).

    .. code-block:: text

        g_aux = ∇ entropy(f_θ(x))                                    auxiliary gradient
        θ'    = θ − ρ·g_aux                                           look ahead: aligns the two gradients
        ŷ     = mean_v v⁻¹(σ(f_θ'(v(x))))                            pseudo-label over the weak views
        g_pse = ∇ cross-entropy(f_θ'(strong(x)), ŷ)                  pseudo gradient
        η     = lr·(1 + cos(g_aux, g_pse))²/4                         dynamic learning rate
        θ     ← optimizer(θ, g_pse, η)

    Args:
        network: the source network; it needs normalization layers with affine parameters.
        pseudo: name of the objective of the pseudo gradient, which the step goes down.
        auxiliary, rho, learning_rate_law, optimizer, lr, entropy, settings: see :class:`GradientMethod`; the defaults
            are the paper's.

    Raises:
        GrataError: a setting is out of range, or the network has nothing to adapt.

    Example::

        method = grata.methods.GraTa(network, activation="sigmoid", optimizer="Adam", lr=1e-4, seed=0)
        record = method.adapt(images)
        prediction = method.network(images)
        method.restore()
    """

    name = "grata"
    card = Card(
        title="GraTa",
        reference="Chen et al., Gradient alignment improves test-time adaptation for medical image segmentation, "
        "AAAI 2025, arXiv:2408.07343",
        year=2025,
        rule="pseudo gradient (consistency of a strong view with a pseudo-label) aligned with the auxiliary gradient "
        "(entropy), learning rate from their cosine",
        changes="affine parameters, batch statistics",
        needs=("affine parameters",),
        forwards=9,
        backwards=2,
    )

    def __init__(
        self,
        network: nn.Module,
        *,
        pseudo: str = "consistency",
        auxiliary: str = "entropy",
        rho: float = 1.0,
        learning_rate_law: Any = "quadratic",
        lr: float = 1e-4,
        entropy: str | None = "plogp",
        **settings: Any,
    ) -> None:
        super().__init__(
            network,
            auxiliary=auxiliary,
            rho=rho,
            learning_rate_law=learning_rate_law,
            lr=lr,
            entropy=entropy,
            **settings,
        )
        self._check_objective("pseudo", pseudo)
        self.pseudo = pseudo

    def _adapt(self, images: torch.Tensor, strong_view: torch.Tensor | None = None) -> GradientRecord:
        """``strong_view``: the strong view to use instead of a drawn one, of the images' shape."""
        self._given_view = None if strong_view is None else self._plain(strong_view)
        return super()._adapt(images)

    def _loss(self, x: torch.Tensor) -> torch.Tensor:
        return self._objective(self.pseudo, x)
