"""Which prediction of an image is to be used, and whether it may be: from the signals to a verdict with its reasons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .calibration import Calibration, Expected
from .judgement import OK, REJECT, REVIEW
from .measures import Measures, mean

__all__ = ["Decision", "Range", "Thresholds", "decide"]

Range = tuple[float, float]
"""Least and greatest share of an image's voxels that a segment fills."""


@dataclass(frozen=True)
class Thresholds:
    """Bounds of the signals.

    Attributes:
        least_agreement: agreement of weak views below which an adapted prediction is not used. Of one network that
            batch statistics destroy, every image had at most 0.71; of all sound ones at least 0.81.
        same: agreement with the source prediction from which on both are the same for all purposes.
        greatest_ratio: how many times as large, or as small, as in the source prediction a segment may be. Its Dice
            with that prediction may be as low as that of one mask in another, of which one is so many times as large.
        sure: self-Dice of a source prediction that is not given up for one of quite another volume.
        less_sure: how much lower the self-Dice of a segment may be than in the source prediction, for a network that is
            not calibrated.
        much_changed: agreement with the source prediction below which a network that is less sure does not bear
            adaptation, and below which its views must agree well.
        trusted: agreement of weak views from which on a change as large as that is trusted, for a network that is not
            calibrated: the median of sound networks.
        far_less_sure: how much lower the mean self-Dice is where the network does not bear adaptation.
        doubtful: self-Dice below which a prediction is reviewed, for a network that is not calibrated.
        absurd: mean distance of the image's statistics from the source's from which on it is rejected: grey values a
            hundred times as high have 10 and more.
        review, reject: expected Dice, as a share of that at home, below which an image is reviewed or rejected.
        outside: how many times as large, or as small, as in any source image a segment may be.
    """

    least_agreement: float = 0.75
    same: float = 0.997
    greatest_ratio: float = 3.0
    sure: float = 0.8
    less_sure: float = 0.0
    much_changed: float = 0.8
    trusted: float = 0.9
    far_less_sure: float = 0.1
    doubtful: float = 0.75
    absurd: float = 8.0
    review: float = 0.85
    reject: float = 0.5
    outside: float = 2.0


@dataclass(frozen=True)
class Decision:
    """Which prediction is used, and what is to be thought of it.

    Attributes:
        used: ``adapted``, ``source`` or ``neither``.
        verdict: ``ok``, ``review`` or ``reject``.
        reasons: why, a sentence each.
        harmful: whether the source prediction is the better one.
        grave: whether that shows that the network does not bear adaptation, and is more than a little less sureness.
        of_adapted, of_source: expected Dice of each prediction; None: the network is not calibrated.
    """

    used: str
    verdict: str
    reasons: tuple[str, ...]
    harmful: bool
    grave: bool
    of_adapted: Expected | None = None
    of_source: Expected | None = None

    @property
    def expected(self) -> Expected | None:
        """Expected Dice of the better prediction; None: the network is not calibrated."""
        return self.of_source if self.harmful else self.of_adapted

    @property
    def keeps(self) -> bool:
        """Whether what was learnt from the image may be kept."""
        return not self.harmful and self.verdict != REJECT

    def without_adaptation(self, reason: str) -> Decision:
        """Return the decision for the source prediction; itself, if adaptation is not used anyway.

        Args:
            reason: why, a sentence.
        """
        if self.harmful or self.used != "adapted":
            return self
        return replace(self, used="source", reasons=(*self.reasons, reason), harmful=True)

    def described(self, quality: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keys of a journal: the signals, and what is expected by them.

        Args:
            quality: the image's signals, as :meth:`Measures.as_dict` gives them.

        Returns:
            The signals with what is expected of both predictions, and of each segment of the better one; the signals
            alone where the network is not calibrated.
        """
        expected, adapted, source = self.expected, self.of_adapted, self.of_source
        if expected is None or adapted is None or source is None:
            return dict(quality)
        by_segment = {
            name: {"expected_dice": round(dice, 4), **signals}
            for (name, signals), dice in zip(quality["segments"].items(), expected.segments)
        }
        both = {"expected_adapted": round(adapted.dice, 4), "expected_source": round(source.dice, 4)}
        return {**expected.as_dict(), **both, **quality, "segments": by_segment}


def decide(
    measures: Measures,
    thresholds: Thresholds,
    calibration: Calibration | None = None,
    adapts: bool = True,
    ranges: Sequence[Range | None] = (),
    remarks: Sequence[str] = (),
    suspect: bool = False,
) -> Decision:
    """Decide on one image.

    Args:
        measures: its signals.
        thresholds: bounds of the signals.
        calibration: what is known of the network from its source set; None: nothing.
        adapts: whether the prediction is another one than the source's.
        ranges: least and greatest share of the image that each segment may fill; None: as in the source images, if
            these are known.
        remarks: what is to be reviewed whatever the signals say.
        suspect: whether adaptation has just shown that the network may not bear it: of one that is not calibrated no
            great change is used then, and no other without views that agree well.
    """
    t = thresholds
    of_adapted, of_source = _expected(measures, calibration, adapts)
    changed = adapts and min(measures.agreement_source) < t.same
    destroyed = _destroyed(measures, t, of_adapted, of_source) if changed else []
    harm = destroyed
    if changed and not destroyed:
        harm = _less_sure(measures, t, of_adapted, of_source, calibration, suspect)
    used, expected, signals = ("adapted", of_adapted, measures.adapted)
    if harm:
        used, expected, signals = ("source", of_source, measures.source)
    faults, doubts = _objections(measures, signals, expected, calibration, t)
    doubts += remarks
    doubts += _out_of_range(measures.segments, signals["share"], ranges, calibration, t)
    grave = bool(destroyed or (harm and _much_changed(measures, calibration, t)))
    both = of_adapted, of_source
    if faults:
        return Decision("neither", REJECT, (*faults, *doubts, *harm), bool(harm), grave, *both)
    return Decision(used, REVIEW if doubts else OK, (*doubts, *harm), bool(harm), grave, *both)


def _much_changed(measures: Measures, calibration: Calibration | None, t: Thresholds) -> bool:
    """Return whether a harm that destroyed nothing shows that the network does not bear adaptation."""
    # what is expected of a known network holds for one image, and says nothing of the next
    return calibration is None and mean(measures.agreement_source) < t.much_changed


def _expected(
    measures: Measures, calibration: Calibration | None, adapts: bool
) -> tuple[Expected | None, Expected | None]:
    """Return what is expected of the adapted prediction and of the source prediction."""
    if calibration is None:
        return None, None
    of_adapted = calibration.expected(measures)
    return of_adapted, calibration.expected(measures, source=True) if adapts else of_adapted


def _objections(
    measures: Measures,
    signals: Mapping[str, Sequence[float]],
    expected: Expected | None,
    calibration: Calibration | None,
    t: Thresholds,
) -> tuple[list[str], list[str]]:
    """Return why a prediction is rejected, and why it is reviewed."""
    faults: list[str] = []
    doubts: list[str] = []
    if math.isfinite(measures.distance) and measures.distance > t.absurd:
        faults.append(
            f"the image is nothing like the source images (distance of its statistics {measures.distance:.1f})"
        )
    if calibration is not None and expected is not None:
        _by_expected(faults, doubts, expected, calibration, t)
    sure = mean(signals["self_dice"])
    if not any(signals["voxels"]):
        doubts.append("nothing is outlined")
    elif calibration is None and sure < t.doubtful:
        doubts.append(f"the network is not sure of what it outlines (expected Dice of its own mask {sure:.2f})")
    return faults, doubts


def _destroyed(m: Measures, t: Thresholds, adapted: Expected | None, source: Expected | None) -> list[str]:
    """Return what shows that adaptation destroyed the prediction."""
    reasons = []
    if m.agreement_views < t.least_agreement:
        reasons.append(
            "adaptation is not used: its predictions for mirrored or turned views of the image disagree "
            f"(agreement {m.agreement_views:.2f}, sound networks have {t.least_agreement:.2f} and more)"
        )
    if adapted is not None and source is not None and adapted.dice >= source.dice:
        # volumes may well differ where adaptation finds what the source network misses
        return reasons
    if not any(m.source["voxels"]) and any(m.adapted["voxels"]):
        reasons.append("adaptation is not used: it outlines something where the source network outlines nothing")
        return reasons
    reasons += _other_segments(m, t)
    mine, theirs = mean(m.adapted["self_dice"]), mean(m.source["self_dice"])
    if theirs - mine > t.far_less_sure:
        reasons.append(
            "adaptation is not used: it is far less sure than the source network (expected Dice of its own mask "
            f"{mine:.2f} against {theirs:.2f})"
        )
    return reasons


def _other_segments(m: Measures, t: Thresholds) -> list[str]:
    """Return which segments are quite others than those that the source network is sure of."""
    # two masks, one in the other, of which one is so many times as large, have this Dice
    least = 2 / (1 + t.greatest_ratio)
    return [
        f"adaptation is not used: {name} {_changed(ratio, alike, t.greatest_ratio)}"
        for name, ratio, alike, sure in zip(m.segments, m.ratios, m.agreement_source, m.source["self_dice"])
        if sure >= t.sure and not (1 / t.greatest_ratio <= ratio <= t.greatest_ratio and alike >= least)
    ]


def _less_sure(
    m: Measures,
    t: Thresholds,
    adapted: Expected | None,
    source: Expected | None,
    calibration: Calibration | None,
    suspect: bool,
) -> list[str]:
    """Return why the source prediction is to be trusted more than the adapted one."""
    reasons = []
    if calibration is not None and adapted is not None and source is not None:
        gain = adapted.dice - source.dice
        if gain < calibration.least_gain:
            both = f"from {source.dice:.3f} to {adapted.dice:.3f}"
            reasons.append(
                f"adaptation is not used: it lowers the expected Dice {both}"
                if gain < 0
                else f"adaptation is not used: it raises the expected Dice only {both}, too little to be relied on "
                f"(with this network from {calibration.least_gain:.3f} on)"
            )
        return reasons
    reasons += _distrusted(m, t, suspect)
    for name, mine, theirs in zip(m.segments, m.adapted["self_dice"], m.source["self_dice"]):
        if theirs - mine > t.less_sure:
            reasons.append(
                f"adaptation is not used: of {name} it is less sure than the source network (expected Dice of its own "
                f"mask {mine:.4f} against {theirs:.4f})"
            )
    return reasons


def _distrusted(m: Measures, t: Thresholds, suspect: bool) -> list[str]:
    """Return why a change is not trusted that nothing else speaks against."""
    much = mean(m.agreement_source) < t.much_changed
    views = (
        "its predictions for mirrored or turned views of the image agree too little for that (agreement "
        f"{m.agreement_views:.2f})"
    )
    alike = not m.agreement_views < t.trusted
    if suspect and (much or not alike):
        what = "it changes the prediction much" if much else views
        return [f"adaptation is not used: it has just harmed another image, and {what}"]
    return [] if alike or not much else [f"adaptation is not used: it changes the prediction much, and {views}"]


def _by_expected(
    faults: list[str], doubts: list[str], expected: Expected, calibration: Calibration, t: Thresholds
) -> None:
    if expected.dice >= t.review * calibration.typical:
        return
    words = (
        f"a Dice of {expected.dice:.2f} [{expected.low:.2f}, {expected.high:.2f}] is expected, "
        f"{calibration.typical:.2f} is usual at home"
    )
    if expected.familiarity < t.review and expected.strange:
        words += f"; least like the source images: {', '.join(expected.strange)}"
    (faults if expected.dice < t.reject * calibration.typical else doubts).append(words)


def _out_of_range(
    names: Sequence[str],
    shares: Sequence[float],
    ranges: Sequence[Range | None],
    calibration: Calibration | None,
    t: Thresholds,
) -> list[str]:
    """Return which segments are of a size that is not plausible: out of what was given, or far out of the source's."""
    unknown = [None] * len(names)
    known = unknown if calibration is None else calibration.ranges
    found = []
    for name, share, told, seen in zip(names, shares, ranges or unknown, known):
        least, greatest = told or seen or (0.0, 1.0)
        beyond = 1.0 if told else t.outside
        if share and not least / beyond <= share <= greatest * beyond:
            where = "plausible" if told else "in the source images"
            found.append(
                f"{name} fills {100 * share:.3g} % of the image, {100 * least:.3g} to {100 * greatest:.3g} % {where}"
            )
    return found


def _changed(ratio: float, alike: float, greatest: float) -> str:
    if not ratio:
        return "is gone, though the source network is sure of it"
    if math.isinf(ratio):
        return "is there, though the source network is sure that it is not"
    if 1 / greatest <= ratio <= greatest:
        return f"has a Dice of {alike:.2f} with the source prediction, of which that network is sure"
    return f"has {ratio:.1f} times the size of the source prediction, of which that network is sure"
