"""Source: no adaptation; the first row of every table."""

from __future__ import annotations

import torch

from ..normalization import Rule
from .base import Method, StepRecord
from .card import Card

__all__ = ["Source"]


class Source(Method):
    """The source network as it is: running statistics, source weights."""

    name = "source"
    card = Card(
        title="Source",
        reference="no adaptation",
        year=0,
        rule="the source network as it is",
        changes="nothing",
    )
    learns = False
    predicts_as_source = True

    def _rule(self) -> float | Rule | str:
        return 0.0

    def _adapt(self, images: torch.Tensor) -> StepRecord:
        return StepRecord()
