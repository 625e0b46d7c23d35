"""The guard that every entrance has unless it is switched off: it measures quality, decides, and watches the stream."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean
from typing import Any

import torch
from torch.utils._pytree import tree_map

from ..errors import GrataError
from ..methods import Method
from ..methods.predictive import logits_in
from ..networks.parameters import has_digest
from ..predictions import ACTIVATIONS
from ..quality import (
    REJECT,
    UNJUDGED,
    Calibration,
    Decision,
    Judgement,
    LayerStatistics,
    Measures,
    Segmentation,
    Thresholds,
    decide,
    layer_statistics,
    measure,
    segmentation,
    soft_overlap,
)
from ..settings import Settings, choice, count, number, setting
from ..views import VIEWS
from .familiar import ABSURD
from .guard import Again, Guard, Verdict
from .known import check_calibration, check_segments

__all__ = ["DRIFT_RESET", "NOT_ADAPTED", "ON_REJECT", "PROBABILITIES", "SAID", "QualityGuard", "make_guard"]

ON_REJECT = ("source", "withhold", "keep")
"""What is written of a rejected image: the source network's prediction, nothing, or the prediction as it is."""

NOT_ADAPTED = "not_adapted"
"""Flag of a case that the network was not adapted to, because it does not bear adaptation."""

DRIFT_RESET = "drift_reset"
"""Flag of a case after which the method was put back to the source network, because it had drifted away from it."""

PROBABILITIES = "output_is_probability"
"""Flag of a case whose prediction holds probabilities where logits were said to be."""

SAID = {
    ABSURD: "nothing is learned from it: its grey values are nothing like those of the source images",
    PROBABILITIES: "the network's output already is a probability, which is activated a second time",
}
"""What is to be reviewed of a case that has a flag."""

_DRIFTED = "adaptation is not used: what was learnt so far has led away from the source network, and is forgotten"

_OTHER_WEIGHTS = (
    "the calibration was made for other weights of the network and does not count. Make one by python -m grata "
    "calibrate, or give null"
)

_MOSTLY = 0.67
"""Moving share of harmed cases from which on adaptation is given up: that of five, one after the other."""

_FARTHER = 0.05
"""Fall of the agreement with the source prediction after which the views are asked anew."""

_ALIKE = 0.99
"""Agreement with the source prediction from which on a harm does not count against the network."""

_BLURRED = -0.05
"""Expected gain from which on a mean of predictions is used that the source network has a part in: a mean is less sure
than its parts, and no worse for that."""

_BEGINNING = 8
"""Number of first images of a stream that its drift is measured against."""

_SLOW = 0.8
"""Weight of the past in the moving average of the agreement with the source."""


class QualityGuard(Settings):
    """Judges each prediction without labels, chooses between adapted and source, and watches the stream.

    After each prediction it measures signals of quality (:class:`grata.quality.Measures`), for which the source network
    predicts the case too. Where adaptation harmed, the source prediction is used and what was learnt is forgotten.
    A network that does not bear adaptation on the first images of a stream is recognized, and from then on predicted
    with as it is. A stream that drifts away from the source is brought back to it.

    Each image gets a verdict: ``ok``, ``review`` or ``reject``, with reasons.
    """

    name = "the guard"

    on_reject: str = choice(
        default="source",
        of=ON_REJECT,
        help="what becomes of a rejected image: the source network's prediction is used, nothing is written, or the "
        "prediction is used as it is",
    )
    calibration: Calibration | None = setting(
        default=None,
        check=check_calibration,
        range="file or null",
        help="file of grata calibrate: what is known of the network from its source set; null: nothing",
    )
    activation: str | None = choice(
        default=None,
        of=ACTIVATIONS,
        optional=True,
        help="activation of the network's output; null: what the method was told",
    )
    output: str | int | None = setting(
        default=None, help="key or index of the logits in the network's output; null: what the method was told"
    )
    segments: Sequence[str | Mapping[str, Any]] = setting(
        default=(),
        check=check_segments,
        range="list of names, or of mappings with label and range",
        help="names of the segments, in their order; range: least and greatest share of the image that one may fill",
    )
    view: str = choice(default="flip_w", of=tuple(VIEWS), help="view that a method without views is tried on")
    probe: int = count(
        default=3, at_least=0, help="number of first images of a stream on which a method without views is tried on one"
    )
    patience: int = count(
        default=3, help="number of images that adaptation harmed, each unharmed one less, before it is given up"
    )
    least_agreement: float = number(
        default=Thresholds.least_agreement,
        at_least=0,
        at_most=1,
        help="agreement of weak views below which an adapted prediction is not used",
    )
    drift: float = number(
        default=0.005,
        above=0,
        at_most=1,
        help="fall of the agreement with the source prediction, against the first images, after which the method is "
        "reset, if it is also more than their scatter",
    )

    def _setup(self) -> None:
        self._thresholds = Thresholds(least_agreement=self.least_agreement)
        self._averages = False
        self._labels = [segment if isinstance(segment, str) else segment["label"] for segment in self.segments]
        self._ranges = [None if isinstance(segment, str) else segment.get("range") for segment in self.segments]
        self.forget()

    def forget(self) -> None:
        """Forget what was seen: the next case is the first of a stream."""
        self._known: Method | None = None
        self._misfit = ""
        self._seen = 0
        self._harmed = 0
        self._share = 0.0
        self._given_up = ""
        self._first: list[float] = []
        self._recent = math.nan
        self._borne = 1.0

    def asks_source(self, method: Method) -> bool:
        """Return whether the source network predicts something else than the method, so that it is asked too."""
        return method.active and not method.predicts_as_source and not self._given_up

    @property
    def given_up(self) -> str:
        """Why adaptation was given up; empty: it was not."""
        return self._given_up

    def state_dict(self) -> dict[str, Any]:
        """Return what another process needs to judge as this one would: plain values."""
        return {
            "seen": self._seen,
            "harmed": self._harmed,
            "share": self._share,
            "given_up": self._given_up,
            "first": list(self._first),
            "recent": self._recent,
            "borne": self._borne,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``."""
        self._seen, self._harmed = int(state["seen"]), int(state["harmed"])
        self._share = float(state["share"])
        self._given_up, self._first = str(state["given_up"]), [float(value) for value in state["first"]]
        self._recent, self._borne = float(state["recent"]), float(state["borne"])

    def judge(
        self,
        method: Method,
        images: torch.Tensor,
        prediction: Any,
        record: Mapping[str, Any],
        again: Again,
        watched: LayerStatistics | None = None,
    ) -> Verdict:
        """Judge the prediction of a case.

        Args:
            method: method that was adapted to the case.
            images: images of the case, ``(B, C, ...)``.
            prediction: what was predicted; it is finite.
            record: record of the case so far.
            again: predicts images as the entrance does.
            watched: what reached the network's normalization layers in its prediction, where that is the source's.
        """
        try:
            return self._judged(method, images, prediction, record, again, watched)
        except _Unread as unread:
            unjudged = Judgement(UNJUDGED, reasons=(unread.reason,))
            return Verdict(prediction, judgements=[unjudged] * len(images), source=unread.source)

    def _judged(
        self,
        method: Method,
        images: torch.Tensor,
        prediction: Any,
        record: Mapping[str, Any],
        again: Again,
        watched: LayerStatistics | None,
    ) -> Verdict:
        activation, output = self._meaning(method)
        self._meet(method)
        plain = _plain(images)
        adapts = self.asks_source(method)
        adapted = _read(prediction, plain, activation, output)
        source, seen, statistics = prediction, adapted, watched or LayerStatistics()
        if adapts:
            with layer_statistics(method.network) as statistics, torch.no_grad():
                # with their metadata, which a prediction that is written needs
                source = again(images, True)
            seen = _read_source(source, plain, activation, output, adapted)
        alike = soft_overlap(adapted, seen)
        views = record.get("agreement", math.nan) if adapts else math.nan
        if not math.isfinite(views) and self._probes(adapts, float(alike.min())):
            views = self._agreement(again, plain, adapted, activation, output)
        names = self._names(adapted.masks.shape[1])
        distances = self._distances(method, statistics, plain, again)
        described, said = self.calibration is not None, _said(record)
        measured = _measured(plain, adapted, seen, distances, views, activation, names, described)
        self._averages = method.averages
        decisions = [self._decide(measures, adapts, said, plain.ndim - 2, plain.shape[1]) for measures in measured]
        self._note(views, decisions, float(alike.min()))
        bears = not self._given_up
        drifted = self._watch(adapts, decisions, float(alike.mean()), _has_learned(method))
        if drifted:
            # this case was predicted with what is forgotten after it
            decisions = _without_adaptation(decisions)
        judgements = [self._judgement(d, m.as_dict(), method.name, bears) for d, m in zip(decisions, measured)]
        used, keep = self._used(decisions, prediction, source), all(decision.keeps for decision in decisions)
        return Verdict(used, keep, {}, judgements, source, drifted, [DRIFT_RESET] * drifted)

    def _meet(self, method: Method) -> None:
        """Check that the calibration is that of the network, whose weights may be loaded after the method is made."""
        if self._known is method:
            return
        self._known, self._misfit = method, ""
        if self.calibration is not None and self.calibration.network:
            with method.source_network():
                fits = has_digest(method.given, self.calibration.network)
            self._misfit = "" if fits else _OTHER_WEIGHTS

    def _distances(
        self, method: Method, statistics: LayerStatistics, images: torch.Tensor, again: Again
    ) -> list[list[float]]:
        """Return the distances of the layers for each image of a batch; an absurd one is that of one image alone."""
        together = list(statistics.distances().values())
        if len(images) == 1 or not together or fmean(together) <= self._thresholds.absurd:
            return [together] * len(images)
        found = []
        for image in images.split(1):
            with layer_statistics(method.network) as alone, torch.no_grad():
                again(image, True)
            found.append(list(alone.distances().values()))
        return found

    def _decide(self, measures: Measures, adapts: bool, said: Sequence[str], dims: int, channels: int) -> Decision:
        count, remarks = len(measures.segments), list(said)
        calibration, ranges = self.calibration, self._ranges
        misfit = "" if calibration is None else calibration.misfit(count, channels, dims) or self._misfit
        if misfit:
            calibration, remarks = None, [misfit]
        if calibration is not None and self._averages:
            calibration = replace(calibration, least_gain=min(calibration.least_gain, _BLURRED))
        if any(ranges) and len(ranges) != count:
            remarks.append(f"ranges are given for {len(ranges)} segments, and the network has {count}: none counts")
        if len(ranges) != count:
            ranges = []
        return decide(measures, self._thresholds, calibration, adapts, ranges, remarks, self._harmed > 0)

    def _meaning(self, method: Method) -> tuple[str, Any]:
        """Return the activation of the network's output, and the key or index of the logits in it."""
        told = method.meaning
        activation = self.activation or told.get("activation")
        if activation is None:
            raise _Unread("nothing is known of the network's output: give activation, sigmoid or softmax")
        return activation, told.get("output") if self.output is None else self.output

    def _names(self, count: int) -> Sequence[str]:
        """Return the names of the segments, as given or as the calibration has them."""
        known = () if self.calibration is None else self.calibration.segments
        return self._labels or (known if len(known) == count else ())

    def _note(self, views: float, decisions: Sequence[Decision], least: float) -> None:
        self._seen += 1
        if views >= self._thresholds.trusted and not any(decision.harmful for decision in decisions):
            self._borne = min(self._borne, least)

    def _probes(self, adapts: bool, least: float) -> bool:
        """Return whether a view of the adapted network is worth a forward: on the first images, after harm, and where
        adaptation changed more than on any image on which views agreed.
        """
        if self._seen < self.probe:
            return True
        return adapts and (self._harmed > 0 or least < self._borne - _FARTHER)

    def _agreement(
        self, again: Again, images: torch.Tensor, adapted: Segmentation, activation: str, output: str | int | None
    ) -> float:
        view = VIEWS[self.view]
        if view.name == "identity":
            # a network that was not trained on mirrored images, which nothing could be asked of
            return math.nan
        with torch.no_grad():
            seen = logits_in(again(view(images), False), output)
        return float(soft_overlap(adapted, segmentation(view.inverse(seen), activation)).mean())

    def _judgement(self, decision: Decision, quality: dict[str, Any], method: str, bears: bool) -> Judgement:
        rejected = decision.verdict == REJECT
        used, reasons = decision.used, decision.reasons
        if not bears:
            used, reasons = "source", (*reasons, f"not adapted: this network does not bear {method}")
        if rejected and self.on_reject == "keep":
            used = "adapted"
            reasons = tuple(
                reason.replace("adaptation is not used: ", "adaptation is kept although ") for reason in reasons
            )
        elif rejected and self.on_reject == "source":
            used = "source"
        withheld = rejected and self.on_reject == "withhold"
        return Judgement(decision.verdict, used, reasons, decision.described(quality), withheld)

    def _used(self, decisions: Sequence[Decision], prediction: Any, source: Any) -> Any:
        """Return the prediction with those of the source network where they are used."""
        swapped = [d.used == "source" or (d.verdict == REJECT and self.on_reject != "keep") for d in decisions]
        if source is prediction or not any(swapped):
            return prediction
        if all(swapped):
            return source
        where = torch.tensor(swapped)

        def mixed(one: Any, other: Any) -> Any:
            if not isinstance(one, torch.Tensor) or one.shape[:1] != where.shape:
                return one
            # the clone of a MetaTensor keeps its metadata, of which each image has its own
            found, place = one.clone(), where.to(one.device)
            found[place] = _plain(other)[place]
            return found

        return tree_map(mixed, prediction, source)

    def _watch(self, adapts: bool, decisions: Sequence[Decision], agreement: float, learned: bool) -> bool:
        """Note a case of the stream; return whether what was learned in it leads away from the source."""
        if not adapts:
            return False
        if any(decision.verdict == REJECT for decision in decisions):
            # an image unlike those of the source shows nothing of network and method, and nothing is learned from it
            return False
        if all(decision.harmful for decision in decisions):
            # what changes next to nothing says nothing of the network
            return agreement < _ALIKE and self._harmed_again(decisions, learned)
        # one image that is well does not make up for several that were not
        self._harmed, self._share = max(0, self._harmed - 1), _SLOW * self._share
        return self._drifted(agreement)

    def _harmed_again(self, decisions: Sequence[Decision], learned: bool) -> bool:
        """Note a case that adaptation harmed; return whether to start anew, before the network itself is to blame."""
        self._harmed += all(decision.grave for decision in decisions)
        self._share = _SLOW * self._share + 1 - _SLOW
        if self._harmed < self.patience and self._share <= _MOSTLY:
            return False
        if learned:
            self._start_anew()
            # the network stays suspect
            self._harmed = min(1, self.patience - 1)
        elif self._harmed >= self.patience or self.calibration is None:
            self._given_up = "; ".join(dict.fromkeys(r for d in decisions for r in d.reasons))
        return learned

    def _start_anew(self) -> None:
        self._harmed, self._share, self._first, self._recent = 0, 0.0, [], math.nan

    def _drifted(self, agreement: float) -> bool:
        """Note an agreement with the source; return whether it has fallen far below that of the first images."""
        if len(self._first) < _BEGINNING:
            self._first.append(agreement)
            self._recent = fmean(self._first)
            return False
        self._recent = _SLOW * self._recent + (1 - _SLOW) * agreement
        # where scans differ much from one to the next, a few that agree less are no drift
        if fmean(self._first) - self._recent <= max(self.drift, _scatter(self._first)):
            return False
        self._start_anew()
        return True


def make_guard(guard: Any, **common: Any) -> Guard | QualityGuard | None:
    """Return the guard that is meant: true is the usual one, false and null are none, a mapping holds its settings.

    Args:
        guard: what was given.
        common: settings that an entrance gives unless ``guard`` does; None: not given.

    Raises:
        GrataError: a setting is not known or out of range, or it is something else.
    """
    if guard is None or guard is False:
        return None
    if guard is True or isinstance(guard, Mapping):
        given = {key: value for key, value in common.items() if value is not None}
        return _quality_guard({} if guard is True else dict(guard), given)
    if isinstance(guard, QualityGuard) or callable(guard):
        return guard
    raise GrataError(f"must be true, false or settings of the guard, got {guard!r}.", key="guard")


def _quality_guard(own: dict[str, Any], common: dict[str, Any]) -> QualityGuard:
    QualityGuard.check_names(own, "guard")
    try:
        return QualityGuard(**common | own)
    except GrataError as error:
        if error.head not in common or error.head in own:
            raise error.under("guard") from error
        # what a guard calls its calibration, entrances call quality
        raise GrataError(error.message, "quality" if error.head == "calibration" else error.key) from error


def _said(record: Mapping[str, Any]) -> list[str]:
    """Return what the flags of a case say is to be reviewed."""
    return [words for flag, words in SAID.items() if flag in record.get("flags", ())]


def _scatter(values: Sequence[float]) -> float:
    """Return the standard deviation of values by their successive differences, which a trend does not raise."""
    return math.sqrt(fmean((one - other) ** 2 for one, other in pairwise(values)) / 2)


def _has_learned(method: Method) -> bool:
    """Return whether a method holds what it learned from earlier cases than the one that it was just adapted to."""
    return method.learns and method.batches > 1


class _Unread(Exception):
    """Signal that a prediction cannot be read as segments.

    Args:
        reason: why, as the journal has it.
        source: what the source network predicted; None: it was not asked.
    """

    def __init__(self, reason: str, source: Any = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.source = source


def _read(prediction: Any, images: torch.Tensor, activation: str, output: str | int | None) -> Segmentation:
    """Return the segments of a prediction.

    Raises:
        _Unread: it is of another form; a case may not fail because of that.
    """
    try:
        logits = logits_in(prediction, output)
    except GrataError as error:
        raise _Unread(error.message) from error
    shape = tuple(logits.shape)
    if len(shape) != images.ndim or len(shape) not in (4, 5) or shape[0] != len(images) or not logits.numel():
        raise _Unread(
            f"the prediction is {shape}, not logits (B, C, ...) of the images, which are {tuple(images.shape)}"
        )
    if not logits.is_floating_point():
        raise _Unread(f"the prediction is {logits.dtype}, and logits are of a floating point type")
    if activation == "softmax" and shape[1] < 2:
        raise _Unread("softmax needs two or more output channels, and the prediction has one")
    return segmentation(logits, activation)


def _read_source(
    source: Any, images: torch.Tensor, activation: str, output: str | int | None, adapted: Segmentation
) -> Segmentation:
    try:
        seen = _read(source, images, activation, output)
    except _Unread as unread:
        raise _Unread(f"the source network: {unread.reason}", source) from unread
    if seen.masks.shape != adapted.masks.shape or not seen.probabilities.isfinite().all():
        raise _Unread("the prediction of the source network is not finite, or of another shape", source)
    return seen


def _without_adaptation(decisions: Sequence[Decision]) -> list[Decision]:
    return [decision.without_adaptation(_DRIFTED) for decision in decisions]


def _plain(images: Any) -> torch.Tensor:
    return images.as_tensor() if hasattr(images, "as_tensor") else images


def _measured(
    images: torch.Tensor, adapted: Segmentation, source: Segmentation, distances: list[list[float]], *known: Any
) -> list[Measures]:
    """Return the signals of each image of a batch."""
    mine = _each(adapted)
    theirs = mine if source is adapted else _each(source)
    return [measure(*one, *known) for one in zip(images, mine, theirs, distances)]


def _each(part: Segmentation) -> list[Segmentation]:
    """Return the segmentation of each image of a batch."""
    return [Segmentation(*both, part.step) for both in zip(part.probabilities.split(1), part.masks.split(1))]
