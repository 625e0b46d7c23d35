"""BN-α: statistics between those of the source and those of the batch (NeurIPS 2020)."""

from __future__ import annotations

import torch
from torch import nn

from ..normalization import check_running_statistics
from .base import Method, StepRecord
from .card import Card
from .predictive import check_number

__all__ = ["BNAlpha"]


class BNAlpha(Method):
    """Batch statistics mixed into the source's, nothing learnt (BN-α, Schneider et al., NeurIPS 2020).

    .. code-block:: text

        μ = (1 − α)·μ_source + α·μ_batch,  σ² likewise,  in each batch normalization layer

    The paper's weight of the source is ``N/(N + n)`` for batches of n images and a prior worth of N; α is
    ``n/(N + n)``. The rule is the same for every task: it looks at no prediction.

    Args:
        network: the source network, with layers that keep running statistics.
        alpha: weight of the batch's statistics, 0 to 1.

    Raises:
        GrataError: no layer of the network keeps running statistics, they cannot be mixed, or ``alpha`` is out of
            range.
    """

    name = "bn_alpha"
    card = Card(
        title="BN-α",
        reference="Schneider et al., Improving robustness against common corruptions by covariate shift adaptation, "
        "NeurIPS 2020, arXiv:2006.16971",
        year=2020,
        rule="the batch's statistics are mixed into the running ones, nothing is learnt",
        changes="mixed statistics",
        needs=("running statistics",),
    )
    learns = False

    def __init__(self, network: nn.Module, *, alpha: float = 0.1) -> None:
        super().__init__(network, {}, check_number("alpha", alpha, low=0.0, high=1.0))
        check_running_statistics(self.name, network, self._statistics)

    def _adapt(self, images: torch.Tensor) -> StepRecord:
        return StepRecord()
