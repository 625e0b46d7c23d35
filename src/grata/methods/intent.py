"""InTEnt: an ensemble over statistics, weighted by entropy (2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..components.probabilities import logits_of
from ..errors import GrataError
from ..objectives import activate
from ..objectives.entropy import entropy_map
from .base import StepRecord
from .card import Card
from .predictive import PredictionNetwork, PredictiveMethod, check_number
from .ptbn import check_running_statistics

__all__ = ["InTEnt"]

_WEIGHTINGS = ("balance", "entropy", "uniform")


class InTEnt(PredictiveMethod):
    """Predictions with several mixes of source and image statistics, averaged (InTEnt, Dong et al., CVPRW 2024).

    .. code-block:: text

        p_k = σ(f(x; μ = (1 − m_k)·μ_source + m_k·μ_image, σ² likewise))       m_k = 0, 0.2, ..., 1
        b_k = min(H_fg, H_bg)/max(H_fg, H_bg)                                   of the entropy of p_k: balance
        p   = Σ_k b_k·p_k / Σ_k b_k

    H_fg and H_bg are the mean entropies over the voxels that p_k holds for foreground and for background. Entropy alone
    favours statistics with which the network finds nothing, and is sure of it; a network that outlines a structure is
    about as sure of its inside as of its outside. A prediction without foreground (or without background) has balance
    0; where all have, they count alike. Foreground are all classes but the first (softmax), all channels together
    (sigmoid). The abstract and the summaries of the paper name the balance of the two entropies; that it is their ratio
    is this package's reading.

    Each image has weights of its own, so that nothing is left for the next one; with a sliding window each window has.
    Nothing is learnt: all of the work is done in the prediction.

    Args:
        network: the source network, with layers that keep running statistics.
        mixes: weights m_k of the image's statistics, 0 to 1.
        weighting: ``balance``; ``entropy``: ``1 − H/H_max`` of the mean entropy over all voxels; ``uniform``.
        settings: see :class:`PredictiveMethod`; ``batch_statistics`` has no part in it.

    Raises:
        GrataError: no layer keeps running statistics, or they cannot be mixed; a setting is out of range.
    """

    name = "intent"
    card = Card(
        title="InTEnt",
        reference="Dong et al., Medical image segmentation with InTEnt: integrated entropy weighting for single "
        "image test-time "
        "adaptation, CVPR workshops 2024, arXiv:2402.09604",
        year=2024,
        rule="predictions with several mixes of source and image statistics, averaged by the balance of their "
        "entropies",
        changes="mixed statistics",
        needs=("running statistics",),
        episodic=True,
        forwards=6,
    )
    learns = False

    def __init__(
        self,
        network: nn.Module,
        *,
        mixes: Sequence[float] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
        weighting: str = "balance",
        **settings: Any,
    ) -> None:
        if isinstance(mixes, str) or not isinstance(mixes, Sequence) or not mixes:
            raise GrataError(f"mixes must be a list of numbers from 0 to 1, got {mixes!r}.")
        self.mixes = [check_number("mixes", mix, low=0.0, high=1.0) for mix in mixes]
        if weighting not in _WEIGHTINGS:
            raise GrataError(f"weighting must be one of {', '.join(_WEIGHTINGS)}, got {weighting!r}.")
        # one that is really a mix, so that layers which cannot are told of at once
        super().__init__(network, {}, **{"batch_statistics": 0.5, **settings})
        check_running_statistics(self.name, network, self._statistics)
        self.weighting = weighting
        self._prediction_network = PredictionNetwork(self, self._predict)

    @property
    def network(self) -> nn.Module:
        return self._prediction_network

    def _adapt(self, images: torch.Tensor) -> StepRecord:
        return StepRecord()

    def _predict(self, x: torch.Tensor) -> torch.Tensor:
        predictions = []
        for mix in self.mixes:
            with self._statistics.using(mix):
                logits = self._logits(x)
            predictions.append((activate(logits, self.activation), self._weight(logits)))
        weights = torch.stack([weight for _, weight in predictions])
        # where no prediction has both a foreground and a background they count alike
        weights = torch.where(weights.sum(0) > 0, weights, torch.ones_like(weights))
        weights = weights / weights.sum(0)
        shape = [-1] + [1] * (x.ndim - 1)
        total = sum(weight.reshape(shape) * p for weight, (p, _) in zip(weights, predictions))
        return logits_of(total, self.activation)

    def _weight(self, logits: torch.Tensor) -> torch.Tensor:
        """Weight of the prediction of each image: ``(B,)``, at least 0."""
        if self.weighting == "uniform":
            return torch.ones(len(logits), device=logits.device)
        entropy = entropy_map(logits, self.activation, self.entropy).flatten(1)
        if self.weighting == "entropy":
            classes, decisions = (logits.shape[1], 1) if self.activation == "softmax" else (2, logits.shape[1])
            highest = decisions * torch.log(torch.tensor(float(classes)))
            return (1 - entropy.mean(1) / highest).clamp_min(0)
        if self.activation == "softmax":
            foreground = logits.argmax(1) > 0
        else:
            foreground = (logits > 0).any(1)
        foreground = foreground.flatten(1)
        inside, outside = ((entropy * part).sum(1) / part.sum(1).clamp_min(1) for part in (foreground, ~foreground))
        tiny = torch.finfo(entropy.dtype).tiny
        balance = torch.minimum(inside, outside) / torch.maximum(inside, outside).clamp_min(tiny)
        return torch.where(foreground.any(1) & ~foreground.all(1), balance, torch.zeros_like(balance))
