"""DyNo: dynamic normalization (MLMI 2024)."""

from __future__ import annotations

import torch
from torch import nn

from ..normalization import Rule
from ..normalization.rules import check_size, running_statistics
from ..settings import excluded
from .base import SKIPPED, StepRecord
from .card import Card
from .prediction import Computed, PredictionNetwork
from .predictive import PredictiveMethod
from .state import Remembered

__all__ = ["DyNo"]

Statistics = tuple[torch.Tensor, torch.Tensor]


class DyNo(PredictiveMethod):
    """Statistics of source, image and a synthetic domain between them, mixed by distance (DyNo, Fu et al., MLMI 2024).

    .. code-block:: text

        in each layer and channel: source s, image c, synthetic domain g = 0 of n = 0 images
        d_s = |μ_c − μ_s| + |σ²_c − σ²_s|,  d_g = |μ_c − μ_g| + |σ²_c − σ²_g|
        w_s, w_g = softmax(d_s, d_g)
        g ← (n·g + (s + c)/2)/(n + 1),  n ← n + 1                         mean and variance alike
        μ = w_g·μ_s + w_s/2·μ_g + w_s/2·μ_c,  σ² likewise                 the nearer domain weighs more

    The rule has no settings. As in the authors' code, the first image compares itself with a synthetic domain of zeros.
    There every forward counts as an image; here each batch that the method adapts to counts as one, so that views and
    windows of an image change nothing. All windows of a volume are normalized by the statistics that the last batch of
    windows gave. The variance is the biased one.

    Raises:
        GrataError: no layer keeps running statistics, or a layer cannot normalize by given ones.
    """

    name = "dyno"
    card = Card(
        title="DyNo",
        reference="Fu et al., DyNo: dynamic normalization based test-time adaptation for 2D medical image "
        "segmentation, MLMI 2024, LNCS 15241",
        year=2024,
        rule="running statistics, those of the image and those of a synthetic domain between them are mixed, the "
        "nearer with more weight",
        changes="mixed statistics; a synthetic domain beside the network",
        needs=("running statistics",),
    )
    predicts_by = None

    batch_statistics: float | Rule | str = excluded(why="its own follow from the images. Leave the setting out.")

    _seen = Remembered(0)
    _synthetic = Remembered[dict[str, torch.Tensor]]({})
    _mixed = Remembered[dict[str, torch.Tensor]]({})

    def _rule(self) -> float | Rule | str:
        return self._normalize

    def _setup(self) -> None:
        super()._setup()
        self._names = {layer: name for name, layer in self._network.named_modules()}

    def _predicting(self) -> nn.Module:
        return PredictionNetwork(self)

    def _adapt(self, images: torch.Tensor) -> StepRecord:
        before = self._synthetic, self._mixed
        self._synthetic, self._mixed = dict(self._synthetic), {}
        with torch.no_grad(), self._statistics.using(self._meet):
            logits = self._logits(images)
        if not torch.isfinite(logits).all():
            self._synthetic, self._mixed = before
            return StepRecord(flags=("non_finite_logits", SKIPPED))
        self._seen += 1
        self.computed = Computed(images, before=logits)
        return StepRecord()

    def _predict(self, x: torch.Tensor) -> torch.Tensor:
        if (known := self._known(x)) is not None:
            return known
        return self._logits(x)

    def _normalize(self, layer: nn.Module, x: torch.Tensor) -> Statistics:
        """Return the mixed statistics of the last batch; those of the source before the first."""
        name = self._names[layer]
        if f"{name}.mean" not in self._mixed:
            return running_statistics(layer)
        return self._mixed[f"{name}.mean"].to(x), self._mixed[f"{name}.variance"].to(x)

    def _meet(self, layer: nn.Module, x: torch.Tensor) -> Statistics:
        """Return the statistics for a new batch, after the synthetic domain has taken it in; this is a rule."""
        check_size(x)
        variance, mean = torch.var_mean(x.transpose(0, 1).flatten(1), 1, correction=0)
        image, source = (mean, variance), running_statistics(layer)
        name = self._names[layer]
        keys = f"{name}.mean", f"{name}.variance"
        synthetic = [self._synthetic.get(key, torch.zeros_like(mean)).to(x) for key in keys]

        distances = [sum(abs(a - b) for a, b in zip(image, other)) for other in (source, synthetic)]
        of_source, of_synthetic = torch.stack([torch.as_tensor(d) for d in distances]).softmax(0)
        n = self._seen
        grown = [(n * g + (s + c) / 2) / (n + 1) for g, s, c in zip(synthetic, source, image)]
        mixed = [of_synthetic * s + of_source / 2 * g + of_source / 2 * c for s, g, c in zip(source, grown, image)]
        self._synthetic |= dict(zip(keys, grown))
        self._mixed |= dict(zip(keys, mixed))
        return mixed[0], mixed[1]
