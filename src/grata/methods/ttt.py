"""TTT: test-time training by rotation prediction (ICML 2020)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch.nn import functional as F

from ..errors import GrataError
from ..networks.parameters import collect_all_parameters
from ..optimization import MakeOptimizer
from ..settings import override
from ..views import resolve_views
from .card import Card
from .gradient import GradientMethod

__all__ = ["TTT"]


class TTT(GradientMethod):
    """One step down the loss of rotation prediction (TTT, Sun et al., ICML 2020).

    .. code-block:: text

        L = mean_k cross-entropy(h(e_θ(v_k(x))), k)      v_k: the k-th view; e: shared layers; h: rotation head
        θ ← SGD(θ, ∇L, lr)                               θ: all parameters that the head's feature depends on

    The paper uses a batch of 32 copies of the image, each turned at random. Here every view is used once. This gives
    the mean that such a batch estimates, without random draws. The head keeps its trained weights; the authors' code
    adapts it too. The paper's networks have group normalization. Networks with batch normalization use the batch's
    statistics, as in the training of the head. The method is online, with one step for each image. The paper's other
    variant, ten steps from the source for every image, is ``steps=10, reset="per-case"``. The rule does not use the
    network's prediction, so it is the same for classification and segmentation.

    Raises:
        GrataError: there is no rotation head, or a setting is out of range.
    """

    name = "ttt"
    card = Card(
        title="TTT",
        reference="Sun et al., Test-time training with self-supervision for generalization under distribution "
        "shifts, ICML 2020, arXiv:1909.13231",
        year=2020,
        rule="one step down the loss of a head that predicts how the image was turned",
        changes="all parameters of the encoder, batch statistics",
        needs=("rotation head",),
        forwards=7,
        backwards=6,
    )

    optimizer_name: str | MakeOptimizer = override(default="SGD", alias="optimizer")
    lr: float = override(default=1e-3)

    def _collect(self) -> dict[str, Any]:
        return dict(collect_all_parameters(self.given))

    def _setup(self) -> None:
        super()._setup()
        self._find_branch("rotation")

    def _loss(self, x: torch.Tensor) -> torch.Tensor:
        turned = self._turned(x)
        return cast(torch.Tensor, sum(self._of_view(k, view) for k, view in turned) / len(turned))

    def _loss_and_gradient(
        self, x: torch.Tensor, loss_at: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[float, list[torch.Tensor | None]]:
        if loss_at != self._loss:
            return super()._loss_and_gradient(x, loss_at)
        # the last view first: the order in which one backward pass through all views adds up gradients
        turned = self._turned(x)[::-1]
        parts = ((view, partial(self._of_view, k)) for k, view in turned)
        losses, gradient = self._mean_by_parts(parts, len(turned))
        return float(cast(torch.Tensor, sum(losses[::-1]) / len(losses)).item()), gradient

    def _turned(self, x: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
        """Return the views of ``x`` that keep its shape, with their numbers; another shape would reveal the turn."""
        views = [view(x) for view in resolve_views(self._rotation_views(), x.shape[2:])]
        kept = [(k, view) for k, view in enumerate(views) if view.shape == x.shape]
        if len(kept) < 2:
            raise GrataError(
                "of the rotation head's views only one keeps the shape of these images. Use square ones.", key="ttt"
            )
        return kept

    def _of_view(self, k: int, turned: torch.Tensor) -> torch.Tensor:
        label = torch.full((len(turned),), k, device=turned.device)
        return F.cross_entropy(self._branch("rotation", turned), label)
