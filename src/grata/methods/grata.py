"""GraTa: gradient alignment-based test-time adaptation (AAAI 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..optimization import Rate
from ..settings import override, setting
from .card import Card
from .gradient import OBJECTIVES, GradientMethod, GradientRecord, check_objective

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
        "(entropy); their cosine sets the learning rate",
        changes="affine parameters, batch statistics",
        needs=("affine parameters",),
        forwards=9,
        backwards=2,
    )

    pseudo: str = setting(
        default="consistency",
        check=check_objective,
        range=", ".join(OBJECTIVES),
        help="objective of the pseudo gradient, along which the step is taken",
    )
    auxiliary: str | None = override(default="entropy")
    rho: float = override(default=1.0)
    learning_rate_law: Rate | str | Mapping[str, Any] = override(default="quadratic")
    lr: float = override(default=1e-4)
    entropy: str | None = override(default="plogp")

    def _setup(self) -> None:
        super()._setup()
        self._need_objective(self.pseudo)

    def adapt(self, images: torch.Tensor, strong_view: torch.Tensor | None = None) -> GradientRecord:
        """Adapt the network to one batch, as :meth:`Method.adapt` does.

        Args:
            images: ``(B, C, H, W)`` or ``(B, C, D, H, W)``, any float dtype, on the network's device; not changed.
            strong_view: strong view of the images' shape, used instead of a drawn one.
        """
        self._given_view = None if strong_view is None else self._plain(strong_view)
        try:
            return super().adapt(images)
        finally:
            self._given_view = None

    def _loss(self, x: torch.Tensor) -> torch.Tensor:
        return self._objective(self.pseudo, x)
