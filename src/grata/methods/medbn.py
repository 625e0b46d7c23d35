"""MedBN: batch normalization about the median (CVPR 2024)."""

from __future__ import annotations

import torch

from ..normalization import Rule
from ..normalization.rules import median_statistics
from .base import Method, StepRecord
from .card import Card

__all__ = ["MedBN"]


class MedBN(Method):
    """The batch's median in place of its mean, nothing learnt (MedBN, Park et al., CVPR 2024).

    .. code-block:: text

        η_c  = median over batch and space of z_c
        ρ²_c = mean over batch and space of (z_c − η_c)²
        z'_c = γ_c·(z_c − η_c)/√(ρ²_c + ε) + β_c

    The median of many images is hardly moved by a few malicious ones, which is what the paper is about. A batch of one
    image has no others: there the median is over its own voxels, and withstands what fills less than half of them, such
    as an artefact. The rule looks at no prediction, and is the same for every task. With a method that learns it is the
    setting ``batch_statistics: median`` of that method, as the paper combines it.

    Raises:
        GrataError: no layer of the network keeps running statistics, or a layer's cannot be exchanged.
    """

    name = "medbn"
    card = Card(
        title="MedBN",
        reference="Park et al., MedBN: robust test-time adaptation against malicious test samples, CVPR 2024, "
        "arXiv:2403.19326",
        year=2024,
        rule="normalization about the batch's median instead of its mean, nothing is learnt",
        changes="batch statistics",
        needs=("running statistics",),
    )
    learns = False

    def _rule(self) -> float | Rule | str:
        return median_statistics

    def _adapt(self, images: torch.Tensor) -> StepRecord:
        return StepRecord()
