"""A learning rate that follows from how unlike its nearest neighbours a prediction is (DLTTA, IEEE TMI 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional as F

from ..errors import GrataError
from ..predictions import symmetric_divergence
from ..settings import count
from .memory import MemoryBank
from .rates import RATES, Rate, StepSignals

__all__ = ["DiscrepancyRate"]


class DiscrepancyRate(Rate):
    """Factor by the discrepancy between a prediction and those of the most similar images (DLTTA, Yang et al., 2022).

    .. code-block:: text

        q̄ = 1/n Σ_j q_j                                 predictions of the n images with the nearest features
        D = ½·mean_i [KL(p_i ‖ q̄_i) + KL(q̄_i ‖ p_i)]    over voxels, sum over the channels of a sigmoid
        factor = exp(D)

    The feature is the deepest one, averaged over space; the cosine says which are nearest. A batch's factor takes the
    mean of D over its images; images of one batch are not compared with each other. The factor is 1 until the memory
    holds as many images as there are neighbours. The memory keeps the prediction before each step, which saves a
    forward. The authors' code keeps the prediction after the step, and waits until the memory is full; one of its
    experiments multiplies by D itself.

    Predictions are kept on a coarse grid, where images of any size can be compared and the state stays small.
    """

    name = "discrepancy"

    neighbours: int = count(default=8, help="number of images that a prediction is compared with")
    size: int = count(default=20, help="number of images in the memory")
    grid: int = count(default=32, help="largest number of cells along each axis of the coarse grid")

    def _setup(self) -> None:
        if self.size < self.neighbours:
            raise GrataError(
                f"a memory of {self.size} images never holds {self.neighbours} neighbours: "
                "make it larger, or ask for fewer.",
                key="size",
            )
        self._memory = MemoryBank(self.size)

    def factor(self, signals: StepSignals) -> float:
        probabilities, features = signals.probabilities()
        coarse = self._pooled(probabilities.float(), [self.grid] * (probabilities.ndim - 2))
        discrepancies = []
        if len(self._memory) >= self.neighbours:
            discrepancies = [self._discrepancy(p, feature, signals.activation) for p, feature in zip(coarse, features)]
        for p, feature in zip(coarse, features):
            if p.isfinite().all() and feature.isfinite().all():
                self._memory.add(feature, p)
        mean = sum(discrepancies) / len(discrepancies) if discrepancies else 0.0
        return math.exp(mean) if math.isfinite(mean) else 1.0

    def _discrepancy(self, p: torch.Tensor, feature: torch.Tensor, activation: str) -> float:
        _, neighbours = self._memory.nearest(feature, self.neighbours)
        # Axes of fewer cells than others have are compared at the coarser of the two.
        shape = [min(sizes) for sizes in zip(*(q.shape[1:] for q in (p, *neighbours)))]
        p, *neighbours = (self._pooled(q[None], shape)[0] for q in (p, *neighbours))
        mean = torch.stack(neighbours).mean(0)
        return symmetric_divergence(p[None], mean[None], activation).mean().item()

    def forget(self) -> None:
        self._memory.forget()

    def state_dict(self) -> dict[str, Any]:
        return self._memory.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._memory.load_state_dict(state)

    def _pooled(self, probabilities: torch.Tensor, shape: list[int]) -> torch.Tensor:
        shape = [min(sizes) for sizes in zip(shape, probabilities.shape[2:])]
        pool: Any = F.adaptive_avg_pool2d if len(shape) == 2 else F.adaptive_avg_pool3d
        pooled: torch.Tensor = pool(probabilities, shape)
        return pooled


RATES["discrepancy"] = DiscrepancyRate
