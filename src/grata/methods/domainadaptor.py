"""DomainAdaptor: adaptive mix of statistics and generalized entropy (ICCV 2023)."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from ..normalization import Rule
from ..normalization.rules import running_statistics
from ..optimization import MakeOptimizer
from ..predictions import log_distributions
from ..settings import override
from .card import Card
from .gradient import GradientMethod

__all__ = ["DomainAdaptor", "adaptive_mix", "generalized_entropy"]


class DomainAdaptor(GradientMethod):
    """Source and batch statistics mixed, and one step down a generalized entropy (DomainAdaptor, Zhang et al., 2023).

    .. code-block:: text

        AdaMixBN, in each layer:     d(a, b) = mean_c (μ_a − μ_b)² + (σ_a − σ_b)²      of two pairs of statistics
        λ = 1 − d(batch, source) / (d(batch, source) + d(image, source) + d(image, batch))     mean over images
        μ = λ·μ_source + (1 − λ)·μ_batch,  σ² likewise
        y = γ·(a·(x − μ_batch)/σ_batch + b) + β,    a = σ_batch/σ,  b = (μ_batch − μ)/σ    a and b without gradient

        Generalized entropy, at each voxel:    T = 2·std_c(z_c)    of the logits z, over classes; without gradient
        L = mean T²·H(softmax(z/T))
        θ ← SGD(θ, ∇L, lr)

    The method adapts the affine parameters of the normalization layers and is episodic. At temperature 1 the entropy of
    a confident voxel has almost no gradient. At a temperature that grows with the spread of the logits it has one.

    If the batch is a single image, image and batch have the same statistics, so that λ is 1/2 in every layer. The form
    of y is the paper's transformation: its values are those of (x − μ)/σ, and its gradient flows as through the batch's
    own statistics. The paper folds a and b into γ and β once, and takes the step on the result. Here γ and β take the
    step, and a and b are computed at every forward, so that each window of a large image has its own mix.

    The paper classifies images; for dense prediction its rule applies to each voxel. The standard deviation is that of
    the sample, divided by C − 1, as in the authors' code. A channel of a sigmoid map is a two-class decision with
    logits (z, 0), so that T = √2·|z|. With two classes, z/T is ±1/√2 for every z: the temperature removes all
    confidence. L is then a constant times T², and its gradient drives the logits apart in proportion to their distance.
    In that case L rises from step to step, because T grows with the confidence of a voxel. L at the temperatures from
    before the step falls.

    Raises:
        GrataError: a setting is out of range, or the network has no statistics to mix or no parameters to adapt.
    """

    name = "domainadaptor"
    card = Card(
        title="DomainAdaptor",
        reference="Zhang et al., DomainAdaptor: a novel approach to test-time adaptation, ICCV 2023, arXiv:2308.10297",
        year=2023,
        rule="statistics mixed by their distance to the source's, one step down the entropy at each voxel's own "
        "temperature",
        changes="affine parameters, mixed statistics",
        needs=("running statistics", "affine parameters"),
        episodic=True,
        forwards=2,
        backwards=1,
    )

    # None stands for this method's own rule
    batch_statistics: float | Rule | str | None = override(  # type: ignore[assignment]
        default=None, help="null: AdaMixBN; otherwise a weight of the batch's statistics, or another rule"
    )
    optimizer_name: str | MakeOptimizer = override(default="SGD", alias="optimizer")
    lr: float = override(default=1e-3)

    def _rule(self) -> float | Rule | str:
        return adaptive_mix if self.batch_statistics is None else self.batch_statistics

    def _loss(self, x: torch.Tensor) -> torch.Tensor:
        return generalized_entropy(self._logits(x), self.activation)


def adaptive_mix(layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and variance ``(C,)`` by AdaMixBN, a rule of :class:`grata.normalization.BatchStatistics`.

    Args:
        layer: layer with the ``running_mean`` and ``running_var`` of the source.
        x: input of the layer, ``(B, C, ...)``.
    """
    rest = [d for d in range(x.ndim) if d != 1]
    mean, variance = x.mean(rest), x.var(rest, unbiased=False)
    with torch.no_grad():
        source_mean, source_variance = running_statistics(layer)
        eps = cast(float, layer.eps)
        source = source_mean, source_variance.sqrt()
        batch = mean, variance.sqrt()
        images = x.flatten(2).mean(2), x.flatten(2).var(2, unbiased=False).sqrt()
        batch_source = _distance(batch, source)
        total = batch_source + _distance(images, source) + _distance(images, batch)
        # equal statistics make all distances zero; then every weight gives the same mix
        weight = (1 - batch_source / total.clamp_min(torch.finfo(x.dtype).tiny)).mean()
        mixed_mean = weight * source_mean + (1 - weight) * mean
        mixed_variance = weight * source_variance + (1 - weight) * variance
        a = ((variance + eps) / (mixed_variance + eps)).sqrt()
        b = (mean - mixed_mean) * torch.rsqrt(mixed_variance + eps)
    # the values are those of the mix, and the gradients those of a·(x − mean)/deviation + b
    return mean - b / a * (variance + eps).sqrt(), (variance + eps) / a.square() - eps


def _distance(a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return the distance between two pairs of mean and standard deviation, each ``(..., C)``."""
    return (a[0] - b[0]).square().mean(-1) + (a[1] - b[1]).square().mean(-1)


def generalized_entropy(logits: torch.Tensor, activation: str) -> torch.Tensor:
    """Return the mean of ``T²`` times the entropy at each voxel's temperature ``T = 2·std(logits)``.

    T carries no gradient.

    Args:
        logits: logits ``(B, C, ...)``.
        activation: ``softmax``, or ``sigmoid``: each channel is a decision between the logits z and 0.
    """
    if activation == "softmax":
        temperature = 2 * logits.detach().std(1, keepdim=True)
    else:
        temperature = 2**0.5 * logits.detach().abs()
    # equal logits show no preference to sharpen, and get no gradient
    temperature = temperature.clamp_min(torch.finfo(logits.dtype).eps)
    log_p = log_distributions(logits / temperature, activation)
    return (-(log_p.exp() * log_p).sum(2) * temperature.square()).mean()
