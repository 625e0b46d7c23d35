"""MEMO: marginal entropy minimization with one test point (NeurIPS 2022)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch

from ..networks.parameters import collect_all_parameters
from ..objectives import entropy_loss
from ..optimization import MakeOptimizer
from ..predictions import activate, logits_of
from ..settings import count, override
from ..views import View, augmentations, resolve_views
from .card import Card
from .gradient import GradientMethod

__all__ = ["MEMO"]


class MEMO(GradientMethod):
    """One step down the entropy of the prediction averaged over augmentations (MEMO, Zhang et al., NeurIPS 2022).

    .. code-block:: text

        p̄ = mean_a a⁻¹(σ(f_θ(a(x))))            over the augmentations a, the marginal prediction
        g = ∇ mean_i H(p̄_i)                     through all of them; all parameters
        θ ← SGD(θ, g, lr)                        from the source for each case

    For dense prediction each voxel has its own marginal. An augmentation is a flip or quarter turn, which is inverted
    exactly, followed by a strong photometric view. It replaces the paper's AugMix, whose shears and shifts cannot be
    inverted exactly. The entropy is over the classes (softmax) or of each channel (sigmoid), averaged over voxels.

    The gradient is computed by the chain rule through the mean, with the memory of one augmentation. A first pass
    without gradients gives p̄ and ``∂H/∂p̄``. A second pass draws the same N augmentations again from the same state
    of the generator, and adds up ``⟨∂H/∂p̄, ∂p_a/∂θ⟩/N``.

    The paper uses 32 or 64 augmentations. In networks with batch normalization it mixes the batch's statistics into the
    source's with weight 1/17 (a prior of 16 images). An image to segment has many more positions than an image to
    classify, so the default here is the batch's statistics, as for the other methods; ``batch_statistics: 0.0588`` is
    the paper's weight.

    Raises:
        GrataError: a setting is out of range, or the network has nothing to adapt.
    """

    name = "memo"
    card = Card(
        title="MEMO",
        reference="Zhang et al., MEMO: test time robustness via adaptation and augmentation, NeurIPS 2022, "
        "arXiv:2110.09506",
        year=2022,
        rule="one step down the entropy of the mean prediction over augmentations",
        changes="all parameters, batch statistics",
        episodic=True,
        forwards=65,
        backwards=32,
    )

    augmentations: int = count(default=32, help="number N of augmentations")
    optimizer_name: str | MakeOptimizer = override(default="SGD", alias="optimizer")
    lr: float = override(default=2.5e-4)

    def _collect(self) -> dict[str, Any]:
        return dict(collect_all_parameters(self.given))

    def _loss(self, x: torch.Tensor) -> torch.Tensor:
        return self._marginal_entropy(self._marginal(x))

    def _loss_and_gradient(
        self, x: torch.Tensor, loss_at: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[float, list[torch.Tensor | None]]:
        if loss_at != self._loss:
            return super()._loss_and_gradient(x, loss_at)
        state = self.generator.get_state()
        with torch.no_grad():
            marginal = self._marginal(x)
        loss = self._marginal_entropy(marginal.requires_grad_())
        (slope,) = torch.autograd.grad(loss, marginal)
        self.generator.set_state(state)
        parts = (
            (image, lambda image, view=view: (slope * self._probabilities(view, image)).sum())
            for view, image in self._augmentations(x)
        )
        _, gradient = self._mean_by_parts(parts, self.augmentations)
        return loss.item(), gradient

    def _marginal(self, x: torch.Tensor) -> torch.Tensor:
        total = sum(self._probabilities(view, image) for view, image in self._augmentations(x))
        return cast(torch.Tensor, total / self.augmentations)

    def _marginal_entropy(self, marginal: torch.Tensor) -> torch.Tensor:
        return entropy_loss(logits_of(marginal, self.activation), self.activation, self._entropy)

    def _augmentations(self, x: torch.Tensor) -> Iterator[tuple[View, torch.Tensor]]:
        views = resolve_views(self.views, x.shape[2:])
        return augmentations(x, self.augmentations, views, self._strong, self.generator)

    def _probabilities(self, view: View, image: torch.Tensor) -> torch.Tensor:
        return view.inverse(activate(self._logits(image), self.activation))
