"""EATA: efficient anti-forgetting test-time adaptation (ICML 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from ..networks.wrappers import without_prefix
from ..optimization import MakeOptimizer
from ..predictions import kept_mean, kept_share, log_distributions, maximal_entropy, voxel_entropy
from ..settings import number, override
from .base import SKIPPED
from .card import Card
from .gradient import GradientMethod, GradientRecord
from .prepared import require
from .state import Remembered

__all__ = ["EATA"]

_FOLLOWED = 0.9


class EATA(GradientMethod):
    """Weighted entropy minimization on reliable, non-redundant voxels, with an anchor (EATA, Niu et al., ICML 2022).

    .. code-block:: text

        H_i  entropy of voxel i, p_i its distribution; E₀ = 0.4·H_max; m moving average of the p_i that were kept
        S  = {i : H_i < E₀  and  cos(p_i, m) < d}               reliable, not redundant; at first all that is reliable
        L  = mean_{i ∈ S} exp(E₀ − H_i)·H_i + 2000·Σ_k F_k (θ_k − θ⁰_k)²
        θ ← SGD(θ, ∇L, lr)                                      the weights exp(E₀ − H_i) carry no gradient
        m ← 0.9·m + 0.1·mean_{i ∈ S} p_i                        m starts at the first such mean

    The method adapts the affine parameters of the normalization layers with batch statistics, online. F is the diagonal
    Fisher information of the source set, computed once by ``python -m grata prepare``. A parameter that the prediction
    did not depend on has no Fisher information and no anchor.

    The method carries over to dense prediction as follows.

    - A sample is a voxel. With softmax, p_i is the distribution over the classes and ``H_max = ln C``. With sigmoid,
      each channel is a separate decision with the distribution [p, 1 − p], ``H_max = ln 2`` and its own moving average,
      and passes the filters separately. When no voxel of the batch passes, no step is taken.
    - The paper's d is 0.05 for 1000 classes and 0.4 for 10. A fully confident prediction and an m that is uniform over
      C classes have a cosine of 1/√C. With few classes these values of d would therefore let nothing pass. In units of
      1/√C they are 1.58 and 1.26; here ``d = 1.26/√C``, with C = 2 for a channel of a sigmoid map: 0.89. A class is
      then redundant once it makes up more than about two thirds of the kept voxels, as background does from the first
      image on.

    Raises:
        GrataError: the Fisher information is missing, a setting is out of range, or the network has nothing to adapt;
            by ``adapt``: the Fisher information belongs to other weights.
    """

    name = "eata"
    card = Card(
        title="EATA",
        reference="Niu et al., Efficient test-time model adaptation without forgetting, ICML 2022, arXiv:2204.02610",
        year=2022,
        rule="one step down the weighted entropy of the reliable, non-redundant voxels, anchored to the source",
        changes="affine parameters, batch statistics",
        needs=("affine parameters", "fisher"),
        forwards=2,
        backwards=1,
    )

    margin: float = number(
        default=0.4,
        above=0,
        at_most=1,
        why="or no voxel is reliable",
        help="bound E₀ of the reliable entropy, as a share of the highest possible entropy",
    )
    redundancy: float = number(
        default=1.26, above=0, why="or every voxel is redundant", help="bound d of the cosine, in units of 1/√C"
    )
    fisher_alpha: float = number(default=2000.0, at_least=0, help="weight of the anchor")
    optimizer_name: str | MakeOptimizer = override(default="SGD", alias="optimizer")
    lr: float = override(default=2.5e-4)
    optimizer_options: Mapping[str, Any] | None = override(default={"momentum": 0.9})

    _average = Remembered[torch.Tensor | None](None)

    def _setup(self) -> None:
        super()._setup()
        fisher = require(self.prepared(), "fisher", self.name)
        # a file of version 0.1 may hold the names that a wrapper gave
        fisher = {without_prefix(name): value for name, value in fisher.items()} | dict(fisher)
        self._fisher = {name: fisher[name].to(p) for name, p in self.parameters.items() if name in fisher}

    def _step(self, x: torch.Tensor) -> GradientRecord:
        record = super()._step(x)
        if SKIPPED not in record.flags:
            self._average = self._next_average
        return record

    def _loss(self, x: torch.Tensor) -> torch.Tensor:
        logits = self._logits(x)
        entropy = voxel_entropy(logits, self.activation)
        margin = self.margin * maximal_entropy(logits.shape[1], self.activation)
        p = log_distributions(logits.detach(), self.activation).exp()

        # "not above" keeps NaN, so that the step is reported as not finite
        kept = ~(entropy.detach() >= margin)
        if self._average is not None:
            kept = kept & ~(self._similarity(p) >= self.redundancy / math.sqrt(p.shape[2]))
        self._notes["kept"] = kept_share(kept)
        self._next_average = self._followed(p, kept)
        weighted = (margin - entropy.detach()).exp() * entropy
        return kept_mean(weighted, kept) + self.fisher_alpha * self._distance()

    def _similarity(self, p: torch.Tensor) -> torch.Tensor:
        """Return the cosine ``(B, G, ...)`` of each distribution ``(B, G, K, ...)`` with its channel's moving average.

        For a channel without kept voxels so far it is -1, so that no voxel is redundant.
        """
        assert self._average is not None
        average = self._average.to(p)
        average = average.reshape(1, *average.shape, *[1] * (p.ndim - 3))
        return torch.cosine_similarity(p, average, dim=2).where(average.isfinite().all(2), -1.0)

    def _followed(self, p: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """Return the moving average ``(G, K)``, updated with the kept voxels of ``p``; NaN for channels that never had
        any.
        """
        p, kept = p.transpose(0, 1).flatten(3).transpose(1, 2).flatten(2), kept.transpose(0, 1).flatten(1)
        now = (p * kept[:, None]).sum(2) / kept.sum(1)[:, None]
        if self._average is None:
            return now
        before = self._average.to(now)
        followed = _FOLLOWED * before + (1 - _FOLLOWED) * now
        return torch.where(now.isnan(), before, torch.where(before.isnan(), now, followed))

    def _distance(self) -> torch.Tensor:
        """Return ``Σ_k F_k (θ_k − θ⁰_k)²``."""
        parts = [
            (fisher.to(self.parameters[name]) * (self.parameters[name] - self._source[name]).square()).sum()
            for name, fisher in self._fisher.items()
        ]
        return torch.stack(parts).sum() if parts else torch.zeros(())
