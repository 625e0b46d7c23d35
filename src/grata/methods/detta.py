"""DeTTA: test-time adaptation by denoising (WACV 2024)."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ..settings import number, override
from .card import Card
from .gradient import GradientMethod

__all__ = ["DeTTA"]


class DeTTA(GradientMethod):
    """One step down the error of an auxiliary denoising decoder (DeTTA, Wen et al., WACV 2024).

    .. code-block:: text

        L = mean |σ(d(e_θ(x + σ_n·ε))) − x|          ε ~ N(0, 1); d: denoising decoder on the deepest feature
        θ ← Adam(θ, ∇L, lr)                           θ: affine parameters of the normalization layers

    The paper trains the decoder together with the source network; here it may also be trained afterwards, on the frozen
    network. Images must lie in 0..1, because the decoder ends in a sigmoid. The default is the paper's learning rate of
    1e-6, which hardly moves the parameters in one step. The rule does not use the prediction, so it is the same for
    every task.

    Raises:
        GrataError: there is no denoising head, a setting is out of range, or the network has nothing to adapt.
    """

    name = "detta"
    card = Card(
        title="DeTTA",
        reference="Wen et al., From denoising training to test-time adaptation: enhancing domain generalization for "
        "medical image segmentation, WACV 2024, arXiv:2310.20271",
        year=2024,
        rule="one step down the L1 error of a denoising decoder",
        changes="affine parameters, batch statistics",
        needs=("affine parameters", "denoising head"),
        forwards=2,
        backwards=1,
    )

    noise: float = number(default=0.1, at_least=0, help="standard deviation σ_n of the Gaussian noise")
    lr: float = override(default=1e-6)

    def _setup(self) -> None:
        super()._setup()
        self._find_branch("denoising")

    def _loss(self, x: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(x.shape, generator=self.generator).to(x)
        return F.l1_loss(self._branch("denoising", x + self.noise * noise).sigmoid(), x.float())
