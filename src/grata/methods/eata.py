"""EATA: efficient anti-forgetting test-time adaptation (ICML 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from ..components.distributions import log_distributions
from ..components.filters import kept_mean, kept_share, maximal_entropy, voxel_entropy
from ..components.optimizer import MakeOptimizer
from ..prepared import require
from ..settings import number, override
from .base import SKIPPED
from .card import Card
from .gradient import GradientMethod, GradientRecord
from .state import Remembered

__all__ = ["EATA"]

_FOLLOWED = 0.9


class EATA(GradientMethod):
    """Weighted entropy minimization on reliable, new voxels, anchored to the source (EATA, Niu et al., ICML 2022).

    .. code-block:: text

        H_i  entropy of voxel i, p_i its distribution; E₀ = 0.4·H_max; m moving average of the p_i that were kept
        S  = {i : H_i < E₀  and  cos(p_i, m) < d}               reliable, not redundant; at first all that is reliable
        L  = mean_{i ∈ S} exp(E₀ − H_i)·H_i + 2000·Σ_k F_k (θ_k − θ⁰_k)²
        θ ← SGD(θ, ∇L, lr)                                      the weights exp(E₀ − H_i) carry no gradient
        m ← 0.9·m + 0.1·mean_{i ∈ S} p_i                        m starts at the first such mean

    Affine parameters of the normalization layers, batch statistics, online. F is the diagonal Fisher information of the
    source set, taken once by ``python -m grata prepare``; a parameter that the prediction did not depend on has none,
    and no anchor.

    To dense prediction it carries over as follows.

    - A sample is a voxel: p_i is the distribution over the classes, ``H_max = ln C``; a channel of a sigmoid map is a
      decision of its own, the distribution [p, 1 − p], with ``H_max = ln 2`` and a moving average of its own, and
      passes the filters by itself. When no voxel of the batch passes, no step is taken.
    - The paper's d is 0.05 for 1000 classes and 0.4 for 10. A sure prediction and an m that is uniform over C classes
      have a cosine of 1/√C, so that with few classes these d let nothing pass at all. In that unit they are 1.58 and
      1.26; here ``d = 1.26/√C``, with C = 2 for a channel of a sigmoid map: 0.89. A class is then redundant once it has
      more than about two thirds of what was kept, as background has from the first image on.

    Raises:
        GrataError: the Fisher information is missing, a setting is out of range, or the network has nothing to adapt;
            by ``adapt``: it is of other weights.
    """

    name = "eata"
    card = Card(
        title="EATA",
        reference="Niu et al., Efficient test-time model adaptation without forgetting, ICML 2022, arXiv:2204.02610",
        year=2022,
        rule="one step down the weighted entropy of the reliable and not redundant voxels, anchored to the source",
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
        help="bound E₀ of the reliable entropy, as a share of the highest entropy there is",
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

        # "not above" keeps what is not a number, so that the step is told as what it is
        kept = ~(entropy.detach() >= margin)
        if self._average is not None:
            kept = kept & ~(self._similarity(p) >= self.redundancy / math.sqrt(p.shape[2]))
        self._notes["kept"] = kept_share(kept)
        self._next_average = self._followed(p, kept)
        weighted = (margin - entropy.detach()).exp() * entropy
        return kept_mean(weighted, kept) + self.fisher_alpha * self._distance()

    def _similarity(self, p: torch.Tensor) -> torch.Tensor:
        """Cosine of each distribution ``(B, G, K, ...)`` with the moving average of its channel: ``(B, G, ...)``.

        It is -1, new whatever comes, for a channel of which nothing was kept yet.
        """
        assert self._average is not None
        average = self._average.to(p)
        average = average.reshape(1, *average.shape, *[1] * (p.ndim - 3))
        return torch.cosine_similarity(p, average, dim=2).where(average.isfinite().all(2), -1.0)

    def _followed(self, p: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """The moving average ``(G, K)`` with what is kept of ``p`` now; NaN for channels without any, ever."""
        p, kept = p.transpose(0, 1).flatten(3).transpose(1, 2).flatten(2), kept.transpose(0, 1).flatten(1)
        now = (p * kept[:, None]).sum(2) / kept.sum(1)[:, None]
        if self._average is None:
            return now
        before = self._average.to(now)
        followed = _FOLLOWED * before + (1 - _FOLLOWED) * now
        return torch.where(now.isnan(), before, torch.where(before.isnan(), now, followed))

    def _distance(self) -> torch.Tensor:
        """``Σ_k F_k (θ_k − θ⁰_k)²``."""
        parts = [
            (fisher.to(self.parameters[name]) * (self.parameters[name] - self._source[name]).square()).sum()
            for name, fisher in self._fisher.items()
        ]
        return torch.stack(parts).sum() if parts else torch.zeros(())
