"""SicTTA: single image continual test-time adaptation (Medical Image Analysis 2026)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..normalization import Rule, deepest_module, replaced_output
from ..normalization.rules import check_size, sample_statistics
from ..predictions import activate
from ..settings import count, excluded, number
from .base import SKIPPED, StepRecord
from .card import Card
from .prediction import Computed, PredictionNetwork
from .predictive import PredictiveMethod
from .state import Remembered

__all__ = ["SicTTA", "class_compact_density"]

Entry = Mapping[str, torch.Tensor]
"""What the pool keeps of an image: its ``feature`` ``(F, ...)``, and each ``<layer>.mean`` and ``<layer>.variance``."""

_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}
_FEATURE = "feature"


class SicTTA(PredictiveMethod):
    """Statistics and the deepest feature shared with similar images of the stream (SicTTA, Wu et al., 2026).

    .. code-block:: text

        f  = deepest feature map under the image's own statistics
        neighbours: the 5 entries of the pool with the largest cosine to f
        f' = (1 − r)·f + Σ_i r·softmax(cos)_i·f_i,   r = mean of their cosines
        prediction: statistics pooled over the image and its neighbours, f' in place of f
        the image enters the pool if the class-compact density of its source prediction is among the lowest

    With an empty pool the source network predicts. While the pool holds m < 5 entries, an image enters it if its
    density is at most the quantile 1 − m/5 of the last 40 images' densities, its own included; later the quantile 0.1.

    The authors' code keeps the images themselves and normalizes an image together with its neighbours. This package
    keeps no images: an entry holds each layer's mean and variance and the feature. Their mean and variance together are
    those of the joint batch in the first layer, and close to them further down, where the joint batch would have been
    normalized jointly. Entries whose feature has another size are resized for comparison.

    Raises:
        GrataError: no layer keeps running statistics, a layer cannot normalize by given ones, or a setting is out of
            range; by ``adapt``: no module returns a feature map.
    """

    name = "sictta"
    card = Card(
        title="SicTTA",
        reference="Wu et al., SicTTA: single image continual test-time adaptation for medical image segmentation, "
        "Medical Image Analysis 108, 2026",
        year=2026,
        rule="statistics and the deepest feature are pooled with those of similar, confidently segmented images of the "
        "stream",
        changes="pooled statistics and the deepest feature; a pool beside the network",
        needs=("running statistics",),
        forwards=3,
    )
    predicts_by = None

    neighbours: int = count(default=5, help="number of similar images that an image is predicted with")
    pool: int = count(default=40, help="number of images that the pool holds, and of densities that are remembered")
    share: float = number(
        default=0.1, at_least=0, at_most=1, help="quantile of the densities up to which an image enters the pool"
    )
    pixels: int = count(default=200, help="number of random voxels that the density is computed from")
    batch_statistics: float | Rule | str = excluded(why="its own follow from the pool. Leave the setting out.")

    _pool = Remembered[list[Entry]]([])
    _densities = Remembered[list[float]]([])

    def _rule(self) -> float | Rule | str:
        return self._gather

    def _setup(self) -> None:
        super()._setup()
        self._names = {layer: name for name, layer in self._network.named_modules()}
        self._gathered: dict[str, torch.Tensor] = {}
        self._shared: list[list[Entry]] = []

    def _predicting(self) -> nn.Module:
        return PredictionNetwork(self)

    def _adapt(self, images: torch.Tensor) -> StepRecord:
        with torch.no_grad():
            with self._statistics.using(0.0):
                source = self._logits(images)
            shared, entries = self._joint(images)
            logits = shared if self._pool else source
        if not (torch.isfinite(logits).all() and torch.isfinite(source).all()):
            return StepRecord(flags=("non_finite_logits", SKIPPED))
        p = activate(source, self.activation)
        for entry, density in zip(entries, class_compact_density(p, self.activation, self.pixels, self.generator)):
            self._meet(entry, density)
        self.computed = Computed(images, before=logits)
        return StepRecord()

    def _predict(self, x: torch.Tensor) -> torch.Tensor:
        if (known := self._known(x)) is not None:
            return known
        if self._pool:
            return self._joint(x)[0]
        with self._statistics.using(0.0):
            return self._logits(x)

    def _meet(self, entry: Entry, density: float) -> None:
        """Remember the density of an image, and take it into the pool if it is low enough."""
        self._densities = [*self._densities, density][-self.pool :]
        # while fewer images than an image is predicted with are there, the bar is lower
        share = 1 - len(self._pool) / self.neighbours if len(self._pool) < self.neighbours else self.share
        least = torch.tensor(self._densities, dtype=torch.float64).quantile(share, interpolation="lower")
        if density <= least:
            self._pool = [*self._pool, entry][-self.pool :]

    def _joint(self, x: torch.Tensor) -> tuple[torch.Tensor, list[Entry]]:
        """Return the logits of images with their neighbours, and their entries."""
        self._gathered = {}
        with deepest_module(self._network, x.shape) as deepest:
            own = self._logits(x)
            module, feature = deepest()
        entries: list[Entry] = [
            {key: value[i].clone() for key, value in {**self._gathered, _FEATURE: feature}.items()}
            for i in range(len(x))
        ]
        if not self._pool:
            return own, entries
        fused, self._shared = [], []
        for f in feature:
            neighbours, mixed = self._with_neighbours(f)
            fused.append(mixed)
            self._shared.append(neighbours)
        with self._statistics.using(self._pooled), replaced_output(module, torch.stack(fused)):
            return self._logits(x), entries

    def _with_neighbours(self, f: torch.Tensor) -> tuple[list[Entry], torch.Tensor]:
        """Return the entries nearest to a feature ``(F, ...)``, and the feature fused with theirs."""
        others = torch.stack([_resized(entry[_FEATURE].to(f), f.shape[1:]) for entry in self._pool])
        cosines = F.cosine_similarity(others.flatten(1), f.flatten()[None])
        near, which = cosines.topk(min(self.neighbours, len(self._pool)))
        r = near.mean()
        weights = (r * near.softmax(0)).reshape(-1, *[1] * f.ndim)
        return [self._pool[i] for i in which.tolist()], (1 - r) * f + (weights * others[which]).sum(0)

    def _gather(self, layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the statistics of each image and keep them for its entry; this is a rule."""
        check_size(x, samples=True)
        mean, variance = sample_statistics(x)
        name = self._names[layer]
        self._gathered |= {f"{name}.mean": mean.detach(), f"{name}.variance": variance.detach()}
        return mean, variance

    def _pooled(self, layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the statistics of each image together with its neighbours'; this is a rule."""
        name = self._names[layer]
        pooled = [
            _together([(mean, variance), *[(e[f"{name}.mean"].to(x), e[f"{name}.variance"].to(x)) for e in entries]])
            for mean, variance, entries in zip(*sample_statistics(x), self._shared)
        ]
        return torch.stack([mean for mean, _ in pooled]), torch.stack([variance for _, variance in pooled])


def class_compact_density(p: torch.Tensor, activation: str, pixels: int, generator: torch.Generator) -> list[float]:
    """Return the class-compact density of each image's prediction by random voxels, as in SicTTA's code; low is good.

    .. code-block:: text

        P = probabilities of the voxels, rows of Euclidean length 1;  G = PᵀP
        mean over the rows of G of the entropy of softmax(row)

    For sigmoid, each channel is a prediction of background and foreground, and the mean over the channels counts.

    Args:
        p: probabilities ``(B, C, ...)``.
        activation: ``sigmoid`` or ``softmax``.
        pixels: number of voxels, drawn without replacement; all where there are fewer.
        generator: CPU generator of the draw.
    """
    groups = p[:, None] if activation == "softmax" else torch.stack([1 - p, p], 2)
    densities = []
    for image in groups.flatten(3):
        drawn = torch.randperm(image.shape[-1], generator=generator)[:pixels].to(p.device)
        rows = F.normalize(image[..., drawn].transpose(1, 2), dim=-1)
        q = (rows.transpose(1, 2) @ rows).softmax(-1)
        densities.append(-(q * torch.log(q + 1e-5)).sum(-1).mean().item())
    return densities


def _together(parts: Sequence[tuple[Any, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and variance of equally many values with these means and variances."""
    means, variances = (torch.stack(values) for values in zip(*parts))
    mean = means.mean(0)
    return mean, (variances + means.square()).mean(0) - mean.square()


def _resized(feature: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    if feature.shape[1:] == torch.Size(size):
        return feature
    mode = _LINEAR[feature.ndim + 1]
    return F.interpolate(feature[None], size=tuple(size), mode=mode, align_corners=False)[0]
