"""SAR: sharpness-aware and reliable entropy minimization (ICLR 2023)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..networks.parameters import write
from ..normalization import collect_affine_parameters
from ..optimization import MakeOptimizer, gradient_norm
from ..predictions import kept_mean, kept_share, maximal_entropy, voxel_entropy
from ..settings import number, override
from .base import SKIPPED
from .card import Card
from .gradient import GradientMethod, GradientRecord, non_finite
from .state import Remembered

__all__ = ["SAR"]

RECOVERED = "recovered"
"""Flag of a batch after which the method returned to the source's parameters."""


class SAR(GradientMethod):
    """Sharpness-aware entropy minimization on reliable voxels, with recovery (SAR, Niu et al., ICLR 2023).

    .. code-block:: text

        S  = {i : H(f_θ(x)_i) < 0.4·H_max}                      reliable
        g  = ∇ mean_{i ∈ S} H(f_θ(x)_i)
        θ' = θ + ρ·g/‖g‖                                        where the entropy is highest around
        S' = {i ∈ S : H(f_θ'(x)_i) < 0.4·H_max}
        θ  ← SGD(θ, ∇ mean_{i ∈ S'} H(f_θ'(x)_i), lr)
        m  ← 0.9·m + 0.1·mean_{i ∈ S} H(f_θ'(x)_i)              m starts at the first such mean
        when m < m₀:  θ ← source, m forgotten

    The method adapts the affine parameters of all normalization layers except the last ones, with batch statistics,
    online.

    The method carries over to dense prediction as follows.

    - A sample is a voxel. With softmax, H is the entropy over the classes and ``H_max = ln C``. With sigmoid, each
      channel is a separate decision with the entropy of a Bernoulli variable and ``H_max = ln 2``, and passes the
      filter separately. An image without reliable voxels therefore has no influence on the step. When no voxel of the
      batch is reliable, no step is taken.
    - The paper's threshold of recovery, m₀ = 0.2, is for 1000 classes. As a share of ``H_max`` it is 0.2/ln 1000 =
      0.029, which makes ``m₀ = 0.029·ln C``, and 0.020 for a sigmoid map.
    - Most of a medical image is background with almost no entropy, so that m may lie below this threshold from the
      start. Therefore m₀ is at most half of the first m: a recovery always means that the entropy has fallen.
    - The paper does not adapt the last blocks (the fourth layer of a ResNet, the last 3 of 12 blocks of a transformer).
      Here these are the last quarter of the normalization layers, in the order of the network.

    A recovery also resets the optimizer's momentum. The batch that caused the recovery is predicted with the source's
    parameters.

    Raises:
        GrataError: a setting is out of range, or the network has nothing to adapt.
    """

    name = "sar"
    card = Card(
        title="SAR",
        reference="Niu et al., Towards stable test-time adaptation in dynamic wild world, ICLR 2023, arXiv:2302.12400",
        year=2023,
        rule="one sharpness-aware step down the entropy of the reliable voxels; back to the source when it collapses",
        changes="affine parameters except those of the last layers, batch statistics",
        needs=("affine parameters",),
        forwards=3,
        backwards=2,
    )

    margin: float = number(
        default=0.4,
        above=0,
        at_most=1,
        why="or no voxel is reliable",
        help="bound of the reliable entropy, as a share of the highest possible entropy",
    )
    sharpness: float = number(default=0.05, at_least=0, help="distance ρ of θ' from θ")
    recovery: float = number(
        default=0.029,
        at_least=0,
        at_most=1,
        help="threshold of recovery, as a share of the highest possible entropy; 0: no recovery",
    )
    momentum: float = number(default=0.9, at_least=0, at_most=1, help="momentum of the moving average m")
    frozen: float = number(
        default=0.25,
        at_least=0,
        below=1,
        why="or nothing is left to adapt",
        help="share of the normalization layers, counted from the end of the network, that is not adapted",
    )
    optimizer_name: str | MakeOptimizer = override(default="SGD", alias="optimizer")
    lr: float = override(default=2.5e-4)
    optimizer_options: Mapping[str, Any] | None = override(default={"momentum": 0.9})

    _average = Remembered(math.inf)
    _threshold = Remembered(0.0)

    def _collect(self) -> dict[str, Any]:
        return dict(_without_the_last(collect_affine_parameters(self.given), self.frozen))

    def _adapt(self, images: torch.Tensor) -> GradientRecord:
        record = super()._adapt(images)
        if self._average >= self._threshold:
            return record
        write(self.parameters, self._source)
        self._stepper.forget()
        self.rate.forget()
        self._average, self._threshold = math.inf, 0.0
        return dataclasses.replace(record, flags=(*record.flags, RECOVERED))

    def _step(self, x: torch.Tensor) -> GradientRecord:
        record = super()._step(x)
        if SKIPPED not in record.flags:
            self._follow(self._perturbed_entropy)
        return record

    def _loss_and_gradient(self, x: torch.Tensor, loss_at: Any) -> tuple[float, list[torch.Tensor | None]]:
        """Return the sharpness-aware gradient in place of the gradient of the method's own objective."""
        if loss_at != self._loss:
            return super()._loss_and_gradient(x, loss_at)
        self._reliable: torch.Tensor | None = None
        loss, gradient = super()._loss_and_gradient(x, self._loss)
        norm = gradient_norm(gradient)
        if non_finite("", loss, norm):
            return loss, gradient
        with self._moved(gradient, self.sharpness / (norm + 1e-12)):
            return super()._loss_and_gradient(x, self._loss)

    def _loss(self, x: torch.Tensor) -> torch.Tensor:
        """Return the mean entropy of the reliable voxels; at θ', of the voxels that are reliable at θ and at θ'."""
        logits = self._logits(x)
        entropy = voxel_entropy(logits, self.activation)
        self._highest = maximal_entropy(logits.shape[1], self.activation)
        # "not above" keeps NaN, so that the step is reported as not finite
        kept = ~(entropy.detach() >= self.margin * self._highest)
        if self._reliable is None:
            self._reliable = kept
        else:
            self._perturbed_entropy = kept_mean(entropy.detach(), self._reliable).item()
            kept = kept & self._reliable
        self._notes["kept"] = kept_share(kept)
        return kept_mean(entropy, kept)

    def _follow(self, entropy: float) -> None:
        if not math.isfinite(entropy):
            return
        if math.isinf(self._average):
            self._average = entropy
            self._threshold = min(self.recovery * self._highest, 0.5 * entropy)
        else:
            self._average = self.momentum * self._average + (1 - self.momentum) * entropy


def _without_the_last(parameters: dict[str, nn.Parameter], share: float) -> dict[str, nn.Parameter]:
    """Return the parameters of all layers except the last ``share`` (rounded up); those of the first always stay."""
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in parameters))
    kept = layers[: max(1, len(layers) - math.ceil(share * len(layers)))]
    return {name: parameter for name, parameter in parameters.items() if name.rpartition(".")[0] in kept}
