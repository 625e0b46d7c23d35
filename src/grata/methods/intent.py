"""InTEnt: an ensemble over statistics, weighted by entropy (2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from ..normalization import Rule
from ..objectives.entropy import entropy_map
from ..predictions import activate, logits_of
from ..settings import choice, excluded, numbers
from .base import StepRecord
from .card import Card
from .predictive import PredictionNetwork, PredictiveMethod

__all__ = ["InTEnt"]

_WEIGHTINGS = ("balance", "entropy", "uniform")


class InTEnt(PredictiveMethod):
    """Average of predictions with several mixes of source and image statistics (InTEnt, Dong et al., CVPRW 2024).

    .. code-block:: text

        p_k = σ(f(x; μ = (1 − m_k)·μ_source + m_k·μ_batch, σ² likewise))       m_k = 0, 0.2, ..., 1
        H_k = (H_fg + H_bg)/2                                                   balanced entropy of p_k
        w   = softmax_k((max H − H_k)/(max H − min H))                          max and min over k
        p   = Σ_k w_k·p_k

    H_fg and H_bg are the mean entropies over the voxels that p_k predicts as foreground and as background. Where
    structures are small, the mean over all voxels is practically that of the background. It would favour statistics
    with which the network confidently finds nothing. In the balanced entropy, foreground and background have equal
    weight. Where p_k has no foreground or no background, H_k is the mean over all voxels. Predictions of equal entropy
    have equal weight.

    The paper segments one structure. Here every channel of a sigmoid prediction is a structure with its own weights.
    With softmax, H_k is computed in two steps: the mean entropy over the voxels of each class that p_k contains, then
    the mean of these over the classes. For two classes this is the formula above. The authors' code takes the image's
    statistics from one forward with the batch's statistics only, and also averages several networks. Here each layer
    takes the statistics of its input, which the layers before it have already normalized by their mix.

    Each image has its own weights, and leaves nothing for the next one; with a sliding window each window has its own.
    No parameters are learned: all of the work happens in the prediction.

    Raises:
        GrataError: no layer keeps running statistics, the statistics cannot be mixed, or a setting is out of range.
    """

    name = "intent"
    card = Card(
        title="InTEnt",
        reference="Dong et al., Medical image segmentation with InTEnt: integrated entropy weighting for single "
        "image test-time adaptation, CVPR workshops 2024, arXiv:2402.09604",
        year=2024,
        rule="predictions with several mixes of source and image statistics, averaged with weights from their balanced "
        "entropies",
        changes="mixed statistics",
        needs=("running statistics",),
        episodic=True,
        forwards=6,
    )
    predicts_by = None
    learns = False

    mixes: Sequence[float] = numbers(
        default=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
        at_least=0,
        at_most=1,
        kept_as=list,
        help="weights m_k of the batch's statistics",
    )
    weighting: str = choice(
        default="balance",
        of=_WEIGHTINGS,
        help="weights of the predictions: balance, from H_k as above; entropy, from H_k as the mean over all voxels; "
        "uniform, all equal",
    )
    batch_statistics: float | Rule | str = excluded(why="its own follow from mixes. Leave the setting out.")

    def _rule(self) -> float | Rule | str:
        # a real mix, so that layers that do not accept one are refused at once
        return 0.5

    def _predicting(self) -> nn.Module:
        return PredictionNetwork(self)

    def _adapt(self, images: torch.Tensor) -> StepRecord:
        return StepRecord()

    def _predict(self, x: torch.Tensor) -> torch.Tensor:
        predictions, entropies = [], []
        for mix in self.mixes:
            with self._statistics.using(mix):
                logits = self._logits(x)
            predictions.append(activate(logits, self.activation))
            entropies.append(self._mean_entropy(logits))
        weights = self._weights(torch.stack(entropies))
        shape = [*weights.shape[1:], *[1] * (x.ndim - 2)]
        return logits_of(sum(w.reshape(shape) * p for w, p in zip(weights, predictions)), self.activation)

    def _weights(self, entropies: torch.Tensor) -> torch.Tensor:
        """Return the predictions' weights, with sum 1, from their entropies ``(K, B, C)``, softmax ``(K, B, 1)``."""
        if self.weighting == "uniform":
            return torch.full_like(entropies, 1 / len(entropies))
        high = entropies.amax(0)
        span = high - entropies.amin(0)
        return ((high - entropies) / torch.where(span > 0, span, torch.ones_like(span))).softmax(0)

    def _mean_entropy(self, logits: torch.Tensor) -> torch.Tensor:
        """Return H_k of each decision between outcomes: ``(B, C)`` for sigmoid, ``(B, 1)`` for softmax."""
        if self.activation == "softmax":
            entropy = entropy_map(logits, self.activation, self._entropy)[:, None].flatten(2)
            outcome, outcomes = logits.argmax(1)[:, None].flatten(2), logits.shape[1]
        else:
            alone = logits.flatten(0, 1)[:, None]
            entropy = entropy_map(alone, self.activation, self._entropy).reshape(logits.shape).flatten(2)
            outcome, outcomes = (logits >= 0).long().flatten(2), 2
        if self.weighting != "balance":
            return entropy.mean(2)
        parts = [outcome == k for k in range(outcomes)]
        means = [(entropy * part).sum(2) / part.sum(2).clamp_min(1) for part in parts]
        return cast(torch.Tensor, sum(means) / sum(part.any(2).to(entropy) for part in parts))
