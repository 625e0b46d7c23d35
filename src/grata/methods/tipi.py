"""TIPI: test-time adaptation with transformation invariance (CVPR 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..optimization import MakeOptimizer
from ..predictions import kl_divergence, log_distributions
from ..settings import flag, number, override
from .card import Card
from .gradient import GradientMethod, GradientRecord

__all__ = ["TIPI"]


class TIPI(GradientMethod):
    """One step down the divergence between the predictions of an image and its adversarial twin (TIPI, CVPR 2023).

    .. code-block:: text

        p  = f_θ(x)                                              no gradient
        δ₀ ~ U(−ε, ε)                                            in each voxel and channel
        δ  = clip(δ₀ + ε·sign ∇_δ₀ KL(f_θ(x + δ₀) ‖ p), −ε, ε)   fast gradient sign
        L  = mean_i KL(f_θ(x + δ)_i ‖ p_i)                       over voxels
        θ ← SGD(θ, ∇L, lr·B)                                     B: images in the batch

    The method adapts the affine parameters of the normalization layers, online. The adversarial change of an image is
    small, and represents all changes that should not affect the prediction. The divergence is the reverse one, as in
    the authors' code; ``reverse: false`` exchanges the two predictions.

    ε is in units of the intensity range of each image and channel, maximum minus minimum: 2/255 for an 8-bit image.
    The divergence has its minimum at δ = 0, so that its gradient there is rounding noise. The authors' code starts at 0
    by default, and at random for its larger data sets; here δ always starts at random. As in the authors' code, x + δ
    is not clipped to the range of x.

    The authors' code keeps separate running statistics for the adversarial batch. Here each forward normalizes by the
    statistics of its own batch, so that the adversarial batch has no influence on the statistics of the clean batch.
    The prediction uses the statistics of the clean batch.

    Dense prediction needs little change. The divergence is a mean over voxels: with softmax of the divergence over the
    classes, with sigmoid of the sum of the divergences of the channels' Bernoulli distributions.

    Raises:
        GrataError: a setting is out of range, or the network has nothing to adapt.
    """

    name = "tipi"
    card = Card(
        title="TIPI",
        reference="Nguyen et al., TIPI: test time adaptation with transformation invariance, CVPR 2023",
        year=2023,
        rule="one step down the divergence between the predictions of an image and of its adversarial twin",
        changes="affine parameters, batch statistics",
        needs=("affine parameters",),
        forwards=4,
        backwards=2,
    )

    epsilon: float = number(
        default=2 / 255,
        above=0,
        why="or there is no other image to compare with",
        help="largest change ε of a voxel, as a share of the intensity range",
    )
    reverse: bool = flag(default=True, help="whether the adversarial prediction stands first in the divergence")
    optimizer_name: str | MakeOptimizer = override(default="SGD", alias="optimizer")
    lr: float = override(default=2.5e-4 / 64, help="base learning rate for each image of the batch")
    optimizer_options: Mapping[str, Any] | None = override(default={"momentum": 0.9})

    def _step(self, x: torch.Tensor) -> GradientRecord:
        self._images = len(x)
        return super()._step(x)

    def _optimizer_step(self, gradient: list[torch.Tensor | None], factor: float) -> float | None:
        """Take the step with ``lr`` for each image of the batch."""
        return super()._optimizer_step(gradient, factor * self._images)

    def _loss(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            clean = log_distributions(self._logits(x), self.activation)
        return self._divergence(x + self._perturbation(x, clean), clean)

    def _perturbation(self, x: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        """Return δ, with the shape of ``x``: a random start, followed by one step of ε up the divergence."""
        voxels = tuple(range(2, x.ndim))
        bound = self.epsilon * (x.amax(voxels, keepdim=True) - x.amin(voxels, keepdim=True))
        start = (2 * torch.rand(x.shape, generator=self.generator).to(x) - 1) * bound
        start.requires_grad_()
        (gradient,) = torch.autograd.grad(self._scale(x) * self._divergence(x + start, clean), start)
        return torch.clamp(start.detach() + bound * gradient.sign(), -bound, bound)

    def _scale(self, x: torch.Tensor) -> float:
        """Return a scale for a gradient whose sign alone is used: half precision loses a voxel's part of a mean."""
        return float(x[0, 0].numel()) if self._half_precision(x) else 1.0

    def _divergence(self, x: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        other = log_distributions(self._logits(x), self.activation)
        divergence = kl_divergence(other, clean) if self.reverse else kl_divergence(clean, other)
        return divergence.sum(1).mean()
