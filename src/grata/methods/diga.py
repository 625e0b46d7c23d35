"""DIGA: dynamically instance-guided adaptation (CVPR 2023)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import GrataError
from ..normalization import Rule
from ..normalization.rules import instance_mix
from ..predictions import activate, logits_of
from ..settings import excluded, number, setting
from .base import SKIPPED, StepRecord
from .card import Card
from .predictive import PredictionNetwork, PredictiveMethod
from .state import Remembered

__all__ = ["DIGA"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}
_AREA: dict[int, Any] = {3: F.adaptive_avg_pool1d, 4: F.adaptive_avg_pool2d, 5: F.adaptive_avg_pool3d}


class DIGA(PredictiveMethod):
    """Statistics and class prototypes adapted to each image without a gradient (DIGA, Wang et al., CVPR 2023).

    .. code-block:: text

        distribution:  μ = 0.8·μ_source + 0.2·μ_image,  σ² likewise, in each layer and for each image
        semantics:     q_c(x) = mean of the features z where c is predicted with p_c ≥ 0.9          prototype
                       Q_c ← (1 − ρ)·Q_c + ρ·q_c(x)                                                  running, ρ = 0.1
                       s_c(q) = softmax_c(−‖z − q_c‖/temperature)
                       s = 0.8·s(Q) + 0.2·s(q(x))
        prediction:    p = 0.2·softmax(f(x)) + 0.8·s

    All numbers are those of the authors' code. From the second image on, that code computes the running prototypes from
    the ground truth; here they come from the prediction alone, as the paper intends. The prototype of a class starts
    with the first image that has confident voxels of that class. The authors' code gives a class without a prototype
    the score 0, which would erase small structures without confident voxels. Here such a class keeps its probability in
    s(·), and the other classes share the rest in proportion to their scores.

    The paper itself is about dense prediction. For sigmoid, each channel has two prototypes, one of its foreground
    (p ≥ 0.9) and one of its background (p ≤ 0.1), and its score compares the two. The feature is the input of a
    convolution: the last one whose input has more channels than the prediction (in a residual network, the input of the
    very last convolution may be the logits). The setting ``feature_layer`` names another layer. Features are compared
    at their own resolution: probabilities are averaged down to it, and scores are interpolated up from it.

    Raises:
        GrataError: no layer keeps running statistics, the statistics cannot be mixed, or a setting is out of range; by
            ``adapt``: there is no layer that gives the feature.
    """

    name = "diga"
    card = Card(
        title="DIGA",
        reference="Wang et al., Dynamically instance-guided adaptation: a backward-free approach for test-time domain "
        "adaptive semantic segmentation, CVPR 2023",
        year=2023,
        rule="running statistics mixed with each image's, prediction fused with the similarity to prototypes of "
        "confident voxels",
        changes="mixed statistics; prototypes beside the network",
        needs=("running statistics",),
        forwards=2,
    )
    predicts_by = None

    instance_weight: float = number(default=0.2, at_least=0, at_most=1, help="weight of the image's statistics")
    confidence: float = number(
        default=0.9, at_least=0, at_most=1, help="minimum probability of the voxels that form a prototype"
    )
    momentum: float = number(
        default=0.1, at_least=0, at_most=1, help="weight ρ of an image's prototypes in the running ones"
    )
    prototype_weight: float = number(
        default=0.2, at_least=0, at_most=1, help="weight of the scores by the image's own prototypes"
    )
    fusion: float = number(default=0.8, at_least=0, at_most=1, help="weight of the scores in the prediction")
    temperature: float = number(default=1.0, above=0, help="temperature of the distance to a prototype")
    feature_layer: str | None = setting(
        default=None,
        range="name of a module, or null",
        help="module whose input is the feature; null: the last convolution with more channels than the prediction",
    )
    batch_statistics: float | Rule | str = excluded(why="its own follow from instance_weight. Leave the setting out.")

    _prototypes = Remembered[torch.Tensor | None](None)

    def _rule(self) -> float | Rule | str:
        return instance_mix(self.instance_weight)

    def _setup(self) -> None:
        super()._setup()
        layers = dict(self.given.named_modules())
        if self.feature_layer is not None and self.feature_layer not in list(layers):
            raise GrataError(
                f"the network has no module {self.feature_layer!r}; its last is {list(layers)[-1]!r}.",
                key="feature_layer",
            )

    def _predicting(self) -> nn.Module:
        return PredictionNetwork(self)

    def _adapt(self, images: torch.Tensor) -> StepRecord:
        """Update the running prototypes with the batch."""
        with torch.no_grad():
            logits, feature = self._logits_and_feature(images)
            of_images = self._of_images(activate(logits, self.activation), feature)
        if not torch.isfinite(logits).all():
            return StepRecord(flags=("non_finite_logits", SKIPPED))
        for prototypes in of_images:
            self._prototypes = self._followed(prototypes)
        return StepRecord()

    def _predict(self, x: torch.Tensor) -> torch.Tensor:
        logits, feature = self._logits_and_feature(x)
        if self._prototypes is None:
            return logits
        p = activate(logits, self.activation)
        running = self._prototypes.to(feature)
        own = self._of_images(p, feature)
        scores = torch.stack(
            [
                (1 - self.prototype_weight) * self._scored(p[i], feature[i], running)
                + self.prototype_weight * self._scored(p[i], feature[i], own[i])
                for i in range(len(x))
            ]
        )
        return logits_of((1 - self.fusion) * p + self.fusion * scores, self.activation)

    def _scored(self, p: torch.Tensor, feature: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
        """Return the scores ``(C, ...)`` of one image with prediction ``p`` and feature ``(F, ...)``, by
        ``prototypes``.
        """
        known = prototypes.isfinite().all(-1)
        z = feature.flatten(1)
        # one prototype at a time, because all differences at once take the memory of all features times all classes
        distance = torch.stack([(z - q[:, None]).norm(dim=0) for q in torch.nan_to_num(prototypes).flatten(0, 1)])
        score = (-distance / self.temperature).reshape(*known.shape, -1).masked_fill(~known[..., None], -torch.inf)
        # a choice without any prototype gets no score
        score = torch.nan_to_num(score.softmax(1))
        grid = score.reshape(1, -1, *feature.shape[1:])
        if grid.shape[2:] != p.shape[1:]:
            grid = F.interpolate(grid, size=p.shape[1:], mode=_LINEAR[grid.ndim], align_corners=False)
        score = grid.reshape(*score.shape[:2], *p.shape[1:])
        given = self._outcomes(p[None])[0]
        mask = known.reshape(*known.shape, *[1] * (p.ndim - 1))
        unknown = (given * ~mask).sum(1, keepdim=True)
        scored = torch.where(mask, score * (1 - unknown), given)
        return scored[0] if self.activation == "softmax" else scored[:, 0]

    def _of_images(self, p: torch.Tensor, feature: torch.Tensor) -> list[torch.Tensor]:
        """Return the prototypes ``(G, K, F)`` of each image; NaN where no voxel is confident."""
        coarse = _AREA[p.ndim](p, feature.shape[2:]) if p.shape[2:] != feature.shape[2:] else p
        outcomes = self._outcomes(coarse).flatten(3)
        predicted = F.one_hot(outcomes.argmax(2), outcomes.shape[2]).movedim(-1, 2).bool()
        confident = (predicted & (outcomes >= self.confidence)).to(feature)
        z = feature.flatten(2)
        return [torch.einsum("gkn,fn->gkf", c, f) / c.sum(-1, keepdim=True) for c, f in zip(confident, z)]

    def _outcomes(self, p: torch.Tensor) -> torch.Tensor:
        """Return probabilities ``(B, G, K, ...)``: one choice among K classes, or for each of G channels a choice
        between foreground and background.
        """
        return p[:, None] if self.activation == "softmax" else torch.stack([p, 1 - p], 2)

    def _followed(self, prototypes: torch.Tensor) -> torch.Tensor:
        """Return the running prototypes, updated with an image's; where one of the two is missing, the other."""
        if self._prototypes is None:
            return prototypes
        before = self._prototypes.to(prototypes)
        mixed = (1 - self.momentum) * before + self.momentum * prototypes
        return torch.where(prototypes.isnan(), before, torch.where(before.isnan(), prototypes, mixed))

    def _logits_and_feature(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with _input_of(self._network, self.feature_layer, x.ndim) as feature:
            logits = self._logits(x)
            return logits, feature(logits.shape[1]).float()


@contextlib.contextmanager
def _input_of(network: nn.Module, layer: str | None, ndim: int) -> Iterator[Callable[[int], torch.Tensor]]:
    """Record the input of a layer, or of the last convolution whose input has more channels than the prediction.

    Yields:
        A function that takes the number of channels of the prediction and returns the feature ``(B, F, ...)`` of the
        last forward.

    Raises:
        GrataError: by that function, when there was no such input.
    """
    taken: list[torch.Tensor] = []

    def watch(module: nn.Module, inputs: Any) -> None:
        if not (inputs and isinstance(inputs[0], torch.Tensor) and inputs[0].ndim == ndim):
            return
        # an earlier input with no more channels than this one can no longer be the answer: free its memory
        taken[:] = [x for x in taken if layer is None and x.shape[1] > inputs[0].shape[1]]
        taken.append(inputs[0])

    def feature(channels: int) -> torch.Tensor:
        found = [x for x in taken if layer is not None or x.shape[1] > channels]
        if not found:
            raise GrataError(
                f"no convolution of this {type(network).__name__} takes more channels than it predicts. "
                "Name the module whose input is the feature; a TorchScript network cannot be looked into.",
                key="feature_layer",
            )
        return found[-1]

    watched = [
        module
        for name, module in network.named_modules()
        if (name == layer if layer is not None else isinstance(module, _CONVOLUTIONS))
    ]
    handles = [module.register_forward_pre_hook(watch) for module in watched]
    try:
        yield feature
    finally:
        for handle in handles:
            handle.remove()
