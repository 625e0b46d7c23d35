"""DUA: dynamic unsupervised adaptation of running statistics (CVPR 2022)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import nn

from ..errors import GrataError
from ..normalization import BatchStatistics, Rule, batch_norm_layers, check_running_statistics
from ..normalization.rules import check_size, running_statistics
from ..settings import count, excluded, number
from ..views import default_views
from .base import SKIPPED, StepRecord
from .card import Card
from .predictive import PredictiveMethod

__all__ = ["DUA", "DUARecord"]

_MULTIPLE = 32


@dataclasses.dataclass(frozen=True)
class DUARecord(StepRecord):
    """Record of one update of the running statistics.

    Attributes:
        momentum: weight of the image's statistics; 0 after enough images.
    """

    momentum: float = 0.0


class DUA(PredictiveMethod):
    """Running statistics that follow the images with a decaying momentum (DUA, Mirza et al., CVPR 2022).

    .. code-block:: text

        m_k = decay·m_{k−1},  m_0 = 0.1                                   of the k-th image since the source
        μ_running ← (1 − m_k − 0.005)·μ_running + (m_k + 0.005)·μ_views,  σ² likewise (unbiased)
        prediction with the running statistics

    The statistics μ_views are those of a batch of 64 views of one image: random crops, flipped and turned. In the
    forward that measures them, each layer normalizes by the views' own statistics. After 80 images the running
    statistics stay as they are. If a volume is larger than the window, each batch of windows that the method adapts to
    counts as an image: the momentum decays with every batch, and the limit of 80 comes sooner. The authors' code
    reports the best of all steps by test error, which needs labels; here the last step counts.

    The rule does not depend on the task. For segmentation a view is a crop of half the size along each axis, rounded up
    to a multiple of 32 (common networks divide by it), or the whole image where it is smaller. Together the 64 crops
    cost as much as 16 images of 512 x 512. For volumes of 48 x 64 x 48 the crops are 32 x 32 x 32, and cost as much as
    14 volumes. A network that accepts images of one size only needs ``crop: 1``; then the views are flips and turns of
    the whole image, and cost as much as 64 images. If a batch has several images, they share the views.

    To save memory, the views pass through the network in parts of ``chunk``; each part is one of the forwards that the
    card counts. Each part is normalized by its own statistics, and the update takes mean and variance over all parts.
    With ``chunk`` of at least ``views`` there is one part: exactly the batch of the paper.

    Raises:
        GrataError: no layer keeps running statistics, a layer cannot normalize by given ones, or a setting is out of
            range; by ``adapt``: the network does not accept crops.
    """

    name = "dua"
    card = Card(
        title="DUA",
        reference="Mirza et al., The norm must go on: dynamic unsupervised domain adaptation by normalization, CVPR "
        "2022, arXiv:2112.00463",
        year=2022,
        rule="running statistics follow those of 64 flipped and turned crops of each image, with a decaying momentum",
        changes="running statistics",
        needs=("running statistics",),
        forwards=5,
    )

    views: int = count(default=64, help="number of views of an image")
    decay: float = number(default=0.94, at_least=0, at_most=1, help="decay of the momentum")
    momentum: float = number(default=0.1, at_least=0, at_most=1, help="momentum m_0 at the source")
    least: float = number(default=0.005, at_least=0, at_most=1, help="constant that is added to the momentum")
    samples: int = count(default=80, help="number of batches after which the statistics no longer change")
    crop: float = number(
        default=0.5,
        above=0,
        at_most=1,
        help="size of a view along each axis as a share of the image's; 1: the whole image",
    )
    chunk: int = count(default=16, help="number of views in one forward")
    batch_statistics: float | Rule | str = excluded(
        why="it predicts by the running statistics that it changes. Leave the setting out."
    )

    def _check_network(self) -> None:
        # the update needs layers that accept a rule: checking with one refuses all others
        check_running_statistics(self.name, self.given, BatchStatistics(self._network, self._gather))

    def _collect(self) -> dict[str, Any]:
        return {
            f"{name}.{part}": getattr(layer, part)
            for name, layer in batch_norm_layers(self.given)
            for part in ("running_mean", "running_var")
        }

    def _rule(self) -> float | Rule | str:
        return 0.0

    def _adapt(self, images: torch.Tensor) -> DUARecord:
        if self.batches >= self.samples:
            return DUARecord()
        momentum = min(1.0, self.momentum * self.decay ** (self.batches + 1) + self.least)
        crops = self._crops(images)
        self._sums: dict[nn.Module, list[torch.Tensor]] = {}
        with torch.no_grad(), self._statistics.using(self._gather):
            for start in range(0, len(crops), self.chunk):
                self._pass(torch.cat(crops[start : start + self.chunk]), images)
        if not all(torch.isfinite(part).all() for sums in self._sums.values() for part in sums):
            return DUARecord(flags=("non_finite_statistics", SKIPPED))
        for layer, (n, total, squares) in self._sums.items():
            mean = total / n
            variance = (squares / n - mean.square()).clamp_min(0) * n / (n - 1).clamp_min(1)
            running_mean, running_variance = running_statistics(layer)
            running_mean.lerp_(mean.to(running_mean), momentum)
            running_variance.lerp_(variance.to(running_variance), momentum)
        self._sums = {}
        return DUARecord(momentum=momentum)

    def _pass(self, crops: torch.Tensor, images: torch.Tensor) -> None:
        try:
            self._logits(crops)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError) as error:
            if crops.shape[2:] == images.shape[2:]:
                raise
            taken, given = ("x".join(map(str, x.shape[2:])) for x in (crops, images))
            raise GrataError(
                f"{type(self.given).__name__} does not take crops of {taken} from images of {given} ({error}). "
                "Set crop to 1: the views are flips and turns of the whole image then, at a higher cost.",
                key="crop",
            ) from error

    def _gather(self, layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the statistics of the present views and add them to the sums; this is the rule of the update."""
        check_size(x)
        values = x.transpose(0, 1).flatten(1)
        variance, mean = torch.var_mean(values, 1, correction=0)
        count = torch.tensor(float(values.shape[1]), dtype=torch.float64, device=x.device)
        sums = [count, count * mean.double(), count * (variance.double() + mean.double().square())]
        before = self._sums.get(layer)
        self._sums[layer] = sums if before is None else [a + b for a, b in zip(before, sums)]
        return mean, variance

    def _crops(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return ``views`` crops ``(1, C, ...)`` drawn by the method's generator, flipped and turned without a change
        of shape.
        """
        size = images.shape[2:]
        crop = [min(n, math.ceil(n * self.crop / _MULTIPLE) * _MULTIPLE) for n in size]
        turns = default_views(crop)
        crops = []
        for index in range(self.views):
            corner = [self._draw(n - c + 1) for n, c in zip(size, crop)]
            window = tuple(slice(a, a + c) for a, c in zip(corner, crop))
            turn = turns[self._draw(len(turns))]
            sample = index % len(images)
            crops.append(turn(images[sample : sample + 1][(slice(None), slice(None), *window)]))
        return crops

    def _draw(self, count: int) -> int:
        return int(torch.randint(count, (1,), generator=self.generator))
