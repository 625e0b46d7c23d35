"""TTT: test-time training by recognising a rotation (ICML 2020)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import GrataError
from ..views import resolve_views
from .card import Card
from .gradient import GradientMethod

__all__ = ["TTT"]


class TTT(GradientMethod):
    """One step down the loss of telling which way an image was turned (TTT, Sun et al., ICML 2020).

    .. code-block:: text

        L = mean_k cross-entropy(h(e_θ(v_k(x))), k)      v_k: the k-th view; e: shared layers; h: rotation head
        θ ← SGD(θ, ∇L, lr)                               θ: all parameters that the head's feature depends on

    The paper shows a batch of 32 copies of the one image, each turned at random; here every view is shown once, which
    is the mean that such a batch estimates, so that nothing is drawn. The head is left as it was trained; the authors'
    code moves it too. The paper's networks have group normalization; in those with batch normalization the batch's
    statistics are used, as when the head was trained. Online, one step an image; the paper's other variant, ten steps
    from the source for every image, is ``steps=10, reset="per-case"``. Nothing of the rule depends on the task being
    classification: it looks at no prediction.

    Args:
        network: the source network: one with a rotation branch of its own, or any other with a prepared rotation head.
        prepared: file of ``python -m grata prepare``, for a network without a branch.
        optimizer, lr, settings: see :class:`GradientMethod`.

    Raises:
        GrataError: there is no rotation head, or a setting is out of range.
    """

    name = "ttt"
    card = Card(
        title="TTT",
        reference="Sun et al., Test-time training with self-supervision for generalization under distribution "
        "shifts, ICML 2020, "
        "arXiv:1909.13231",
        year=2020,
        rule="one step down the loss of a head that tells which way the image was turned",
        changes="all parameters of the encoder, batch statistics",
        needs=("rotation head",),
        forwards=7,
        backwards=6,
    )

    def __init__(
        self,
        network: nn.Module,
        *,
        prepared: Any = None,
        optimizer: Any = "SGD",
        lr: float = 1e-3,
        **settings: Any,
    ) -> None:
        shared = {name: p for name, p in network.named_parameters() if not name.startswith("branches.")}
        super().__init__(network, shared, prepared=prepared, optimizer=optimizer, lr=lr, **settings)
        self._find_branch("rotation")

    def _loss(self, x: torch.Tensor) -> torch.Tensor:
        views = resolve_views(self._rotation_views(), x.shape[2:])
        losses = []
        for k, view in enumerate(views):
            turned = view(x)
            # a turn that changed the shape would give itself away by it
            if turned.shape == x.shape:
                label = torch.full((len(x),), k, device=x.device)
                losses.append(F.cross_entropy(self._branch("rotation", turned), label))
        if len(losses) < 2:
            raise GrataError(
                "ttt: of the rotation head's views only one keeps the shape of these images. Use square ones."
            )
        return sum(losses) / len(losses)
