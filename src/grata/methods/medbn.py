"""MedBN: batch normalization about the median (CVPR 2024)."""

from __future__ import annotations

import torch

from ..normalization import Rule
from ..normalization.rules import median_statistics
from .base import Method, StepRecord
from .card import Card

__all__ = ["MedBN"]


class MedBN(Method):
    """The batch's median in place of its mean, without learning (MedBN, Park et al., CVPR 2024).

    .. code-block:: text

        η_c  = median over batch and space of z_c
        ρ²_c = mean over batch and space of (z_c − η_c)²
        z'_c = γ_c·(z_c − η_c)/√(ρ²_c + ε) + β_c

    The paper's subject is malicious images: a few of them hardly move the median of many images. In a batch of one
    image the median is over the image's own voxels; it is robust against anything that fills less than half of them,
    such as an artefact. The rule does not use the prediction, so it is the same for every task. The setting
    ``batch_statistics: median`` of a method that learns combines the two, as in the paper.

    Raises:
        GrataError: no layer of the network keeps running statistics, or a layer's statistics cannot be replaced.
    """

    name = "medbn"
    card = Card(
        title="MedBN",
        reference="Park et al., MedBN: robust test-time adaptation against malicious test samples, CVPR 2024, "
        "arXiv:2403.19326",
        year=2024,
        rule="normalization about the batch's median instead of its mean; no parameters are learned",
        changes="batch statistics",
        needs=("running statistics",),
    )
    learns = False

    def _rule(self) -> float | Rule | str:
        return median_statistics

    def _adapt(self, images: torch.Tensor) -> StepRecord:
        return StepRecord()
