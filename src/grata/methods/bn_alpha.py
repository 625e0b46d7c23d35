"""BN-α: source statistics mixed with batch statistics (NeurIPS 2020)."""

from __future__ import annotations

import torch

from ..normalization import Rule
from ..settings import number
from .base import Method, StepRecord
from .card import Card

__all__ = ["BNAlpha"]


class BNAlpha(Method):
    """Batch statistics mixed into the source's, without learning (BN-α, Schneider et al., NeurIPS 2020).

    .. code-block:: text

        μ = (1 − α)·μ_source + α·μ_batch,  σ² likewise,  in each batch normalization layer

    The paper gives the source the weight ``N/(N + n)``, for batches of n images and a prior that counts as N images;
    α is ``n/(N + n)``. The rule does not use the prediction, so it is the same for every task.

    Raises:
        GrataError: no layer of the network keeps running statistics, the statistics cannot be mixed, or ``alpha`` is
            out of range.
    """

    name = "bn_alpha"
    card = Card(
        title="BN-α",
        reference="Schneider et al., Improving robustness against common corruptions by covariate shift adaptation, "
        "NeurIPS 2020, arXiv:2006.16971",
        year=2020,
        rule="the batch's statistics are mixed into the running ones; no parameters are learned",
        changes="mixed statistics",
        needs=("running statistics",),
    )
    learns = False

    alpha: float = number(default=0.1, at_least=0, at_most=1, help="weight of the batch's statistics", in_state=False)

    def _rule(self) -> float | Rule | str:
        return self.alpha

    def _adapt(self, images: torch.Tensor) -> StepRecord:
        return StepRecord()
