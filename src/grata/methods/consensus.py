"""Consensus: the source's statistics and corrected ones, each under its own weak view."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

from ..errors import GrataError
from ..files import expanded
from ..networks.wrappers import plain_naming
from ..normalization import BatchStatistics, Rule, batch_norm_layers, excess_rule, spread_of
from ..normalization.rules import instance_mix
from ..predictions import activate, logits_of, view_agreement
from ..settings import count, excluded, number, numbers, setting
from ..views import VIEWS
from .base import SKIPPED, StepRecord
from .card import Card
from .informed import InformedMethod
from .prediction import Computed, PredictionNetwork
from .state import Remembered

__all__ = ["Consensus", "self_dice"]

EXCESS = "excess"
"""Name of the statistics that correct what source images do not vary by."""

Member = tuple[float | str, str]
"""Statistics and weak view of a member."""

_SOURCE = 0.0
_OTHER_VIEWS = ("flip_w", "flip_h")


def _check_members(value: Any) -> list[Member]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise GrataError(f"must be a list of [statistics, view], got {value!r}.")
    return [_check_member(member) for member in value]


def _check_member(member: Any) -> Member:
    if isinstance(member, str) or not isinstance(member, Sequence) or len(member) != 2:
        raise GrataError(f"each member must be [statistics, view], such as [0, flip_w], got {member!r}.")
    statistics, view = member
    number = isinstance(statistics, int | float) and not isinstance(statistics, bool)
    if not (statistics == EXCESS or (number and 0 <= statistics <= 1)):
        raise GrataError(f"statistics must be {EXCESS} or a weight of the image's from 0 to 1, got {statistics!r}.")
    if view not in VIEWS:
        raise GrataError(f"there is no weak view {view!r}; there are {', '.join(VIEWS)}.")
    return (float(statistics) if number else EXCESS), view


class Consensus(InformedMethod):
    """Mean of a few predictions, each by other statistics and under another weak view; no gradient.

    .. code-block:: text

        members k: statistics and a weak view v
        statistics:  0 (the source's), 0 < α ≤ 1 (α·image + (1 − α)·source), or excess:
            μ = μ_source + (what the image's mean differs by, beyond tolerance·sd over source images),  log σ² likewise
        p_k = v⁻¹(σ(f_k(v(x))))
        s_k = mean over channels of 2·Σ(p_k·h_k)/(Σp_k + Σh_k),  h_k the hard mask of p_k      the Dice it expects
        prediction: Σ_k softmax(s/temperature)_k · p_k

    Statistics of one image hold what the scanner changed, and what the image shows. ``excess`` takes from an image only
    what source images do not vary by, which ``grata prepare`` measures. Its tolerance grows with depth, because shallow
    layers see the scanner and deep ones the content. Without prepared data such a member mixes
    ``mix`` of the image's statistics into the source's. A network without running statistics, or whose layers do not
    accept others, such as a TorchScript network, has the source's alone: then only the views differ.

    Members that are broken are left out. On the first ``probe`` batches of a stream, all statistics are tried under two
    views. Where the predictions of the two agree less than ``least_agreement``, as a mean over these batches, and less
    than those of the source do, the members of these statistics are left out from then on. Where those of the source
    agree less than ``least_agreement``, and no others are left, the source network alone predicts, without views.

    All statistics are those of one image, so that a prediction does not depend on the rest of the batch. Nothing but
    the agreements is remembered from image to image.

    Raises:
        GrataError: a setting is out of range, or the prepared data belong to other weights.
    """

    name = "consensus"
    card = Card(
        title="Consensus",
        reference="this project; see docs/which-method.md",
        year=2026,
        rule="mean of the predictions by the source's statistics and by corrected ones, each under another weak view, "
        "weighted by the Dice that each expects",
        changes="mixed statistics",
        forwards=4,
    )
    predicts_by = None

    members: Sequence[Member] = setting(
        default=[[0, "identity"], [0, "flip_h"], [EXCESS, "flip_w"], [EXCESS, "rot180"]],
        check=_check_members,
        range="list of [statistics, view]",
        help="members: statistics are 0 (the source's) to 1 (the image's), or excess; views are weak views",
    )
    tolerance: tuple[float, float] = numbers(
        default=(0.5, 3.0),
        length=2,
        at_least=0,
        help="difference that excess tolerates in the first layer and in the last one, in standard deviations over "
        "source images; between them it changes evenly",
    )
    mix: float = number(
        default=0.1, at_least=0, at_most=1, help="weight of the image's statistics in place of excess, if not prepared"
    )
    temperature: float | None = number(
        default=0.1, above=0, optional=True, help="temperature of the members' weights; null: equal weights"
    )
    least_agreement: float = number(
        default=0.75, at_least=0, at_most=1, help="agreement of two views below which members are left out; 0: never"
    )
    probe: int = count(default=3, at_least=0, help="number of first batches that the members are tried on")
    batch_statistics: float | Rule | str = excluded(why="its own follow from members. Leave the setting out.")

    _agreements = Remembered[dict[str, list[float]]]({})

    def _rule(self) -> float | Rule | str:
        return _SOURCE

    def _setup(self) -> None:
        super()._setup()
        if not self._can_mix():
            self.members = list(dict.fromkeys((_SOURCE, view) for _, view in self.members))
        self._rules = {statistics: self._rule_of(statistics) for statistics, _ in self.members}

    def _can_mix(self) -> bool:
        try:
            return bool(BatchStatistics(self._network, instance_mix(0.5)).layers)
        except GrataError:
            return False

    def _rule_of(self, statistics: float | str) -> float | Rule:
        if statistics == _SOURCE:
            return _SOURCE
        if isinstance(statistics, float):
            return instance_mix(statistics)
        spread = self._spread()
        return instance_mix(self.mix) if spread is None else excess_rule(spread, self.tolerance)

    def _spread(self) -> Mapping[nn.Module, list[torch.Tensor]] | None:
        if self.source_data is None:
            return None
        missing = isinstance(self.source_data, str | Path) and not expanded(self.source_data).is_file()
        prepared = None if missing else self.prepared()
        collected = {} if prepared is None else prepared.image_statistics
        found = spread_of(batch_norm_layers(self._network), collected, plain_naming(self.given))
        if found is None:
            warnings.warn(
                f"consensus: the prepared file {'is missing' if missing else 'has no statistics of source images'}, so "
                f"that members of {EXCESS} mix {self.mix} of the image's statistics into the source's. Run python -m "
                f"grata prepare{'' if missing else ' with --heads keep'}.",
                stacklevel=2,
            )
        return found

    def _predicting(self) -> nn.Module:
        return PredictionNetwork(self)

    @property
    def averages(self) -> bool:
        return any(statistics == _SOURCE for statistics, _ in self._left())

    def _adapt(self, images: torch.Tensor) -> StepRecord:
        if len(self._agreements.get(str(_SOURCE), [])) >= self.probe or self.least_agreement == 0:
            return StepRecord()
        with torch.no_grad():
            predictions = self._tried(images, self._predictions(images, self.members))
            agreements = self._agreements_of(predictions)
            if not all(torch.isfinite(p).all() for p in predictions.values()):
                return StepRecord(flags=("non_finite_logits", SKIPPED))
            self._agreements = {key: [*self._agreements.get(key, []), value] for key, value in agreements.items()}
            self.computed = Computed(images, before=self._combined(images, predictions))
        return StepRecord()

    def _predict(self, x: torch.Tensor) -> torch.Tensor:
        if (known := self._known(x)) is not None:
            return known
        return self._combined(x, self._predictions(x, self._left()))

    def _left(self) -> list[Member]:
        """Return the members that are not broken; with none but the source, whose views disagree, it alone."""
        means = {key: fmean(values) for key, values in self._agreements.items()}
        of_source = means.get(str(_SOURCE), 1.0)
        kept = {
            statistics
            for statistics in self._rules
            if statistics == _SOURCE or not means.get(str(statistics), 1.0) < min(self.least_agreement, of_source)
        }
        if kept == {_SOURCE} and of_source < self.least_agreement:
            return [(_SOURCE, "identity")]
        return [member for member in self.members if member[0] in kept] or [(_SOURCE, "identity")]

    def _predictions(self, x: torch.Tensor, members: Sequence[Member]) -> dict[Member, torch.Tensor]:
        """Return the probabilities ``(B, C, ...)`` of members, mapped back onto the images' grid."""
        found = {}
        for statistics, name in members:
            view = VIEWS[name]
            with self._statistics.using(self._rules.get(statistics, _SOURCE)):
                found[statistics, name] = view.inverse(activate(self._logits(view(x)), self.activation))
        return found

    def _tried(self, x: torch.Tensor, predictions: Mapping[Member, torch.Tensor]) -> dict[Member, torch.Tensor]:
        """Return the predictions, and so many more that all statistics, the source's too, are under two views."""
        found = dict(predictions)
        for statistics in dict.fromkeys([_SOURCE, *self._rules]):
            views = [view for (other, view) in predictions if other == statistics]
            more = [view for view in ("identity", *_OTHER_VIEWS) if view not in views][: max(0, 2 - len(views))]
            found |= self._predictions(x, [(statistics, view) for view in more])
        return found

    def _agreements_of(self, predictions: Mapping[Member, torch.Tensor]) -> dict[str, float]:
        """Return the agreement of the first two views under all statistics that have two."""
        by_statistics: dict[str, list[torch.Tensor]] = defaultdict(list)
        for (statistics, _), p in predictions.items():
            by_statistics[str(statistics)].append(p)
        background = self.activation == "softmax"
        pairs = {key: views[:2] for key, views in by_statistics.items() if len(views) > 1}
        return {key: view_agreement(views, background) for key, views in pairs.items()}

    def _combined(self, x: torch.Tensor, predictions: Mapping[Member, torch.Tensor]) -> torch.Tensor:
        """Return the logits of the weighted mean of the members that are left."""
        left = self._left()
        missing = [member for member in left if member not in predictions]
        predictions = {**predictions, **self._predictions(x, missing)}
        agreements = self._agreements_of({member: predictions[member] for member in left})
        # with other views around these, theirs counts
        if agreements and self.predict == "network":
            self.view_agreements.append(fmean(agreements.values()))
        p = torch.stack([predictions[member] for member in left])
        if self.temperature is None:
            return logits_of(p.mean(0), self.activation)
        expected = torch.stack([self_dice(part, self.activation) for part in p])
        weights = (expected / self.temperature).softmax(0)
        return logits_of((weights.reshape(*weights.shape, *[1] * (p.ndim - 2)) * p).sum(0), self.activation)


def self_dice(p: torch.Tensor, activation: str) -> torch.Tensor:
    """Return the Dice that a prediction expects of its own hard mask for each image, mean over channels: ``(B,)``.

    .. code-block:: text

        2·Σ(p·h) / (Σp + Σh),   h = p > ½ (sigmoid), or 1 where the class is the most probable one (softmax)

    Channel 0 of a softmax is background and left out. A channel without foreground counts as 0.

    Args:
        p: probabilities ``(B, C, ...)``.
        activation: ``sigmoid`` or ``softmax``.
    """
    if activation == "softmax":
        classes = torch.arange(p.shape[1], device=p.device).reshape(1, -1, *[1] * (p.ndim - 2))
        hard = (p.argmax(1, keepdim=True) == classes)[:, 1:]
        p = p[:, 1:]
    else:
        hard = p > 0.5
    p, h = p.flatten(2), hard.flatten(2).to(p)
    total = p.sum(-1) + h.sum(-1)
    return (2 * (p * h).sum(-1) / total.clamp_min(1e-12)).mean(1)
