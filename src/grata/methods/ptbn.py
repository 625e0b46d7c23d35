"""PTBN: prediction-time batch normalization."""

from __future__ import annotations

import torch

from ..normalization import Rule
from ..settings import setting
from .base import Method, StepRecord
from .card import Card

__all__ = ["PTBN"]


class PTBN(Method):
    """Batch normalization with the batch's own statistics, without learning (Nado et al. 2020, arXiv:2006.10963).

    .. code-block:: text

        μ = μ_batch,  σ² = σ²_batch,  in each batch normalization layer

    Raises:
        GrataError: no layer of the network keeps running statistics, so that nothing would change.
    """

    name = "ptbn"
    card = Card(
        title="PTBN",
        reference="Nado et al., Evaluating prediction-time batch normalization, 2020, arXiv:2006.10963",
        year=2020,
        rule="the batch's statistics replace the running ones; no parameters are learned",
        changes="batch statistics",
        needs=("running statistics",),
    )
    learns = False

    batch_statistics: float | str = setting(
        default=1.0,
        range="0 to 1, or median",
        help="weight of the batch's statistics; below 1 they are mixed with the source's; or median",
    )

    def _rule(self) -> float | Rule | str:
        return self.batch_statistics

    def _adapt(self, images: torch.Tensor) -> StepRecord:
        return StepRecord()
