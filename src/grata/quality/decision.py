"""Which prediction of an image is to be used, and whether it may be: from the signals to a verdict with its reasons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .judgement import OK, REJECT, REVIEW
from .measures import Measures

if TYPE_CHECKING:
    from .calibration import Calibration, Expected

__all__ = ["Decision", "Thresholds", "decide"]


@dataclass(frozen=True)
class Thresholds:
    """Bounds of the signals, for networks of which nothing else is known.

    Attributes:
        least_agreement: agreement of weak views below which an adapted prediction is not used. Of one network that
            batch statistics destroy, every image had at most 0.71; of all sound ones at least 0.81.
        same: agreement with the source prediction from which on both are the same for all purposes.
        greatest_ratio: how many times as large, or as small, as in the source prediction a segment may be.
        sure: self-Dice of a source prediction that is not given up for one that differs strongly.
        loss_of_confidence: how much lower the self-Dice of the adapted prediction may be.
        doubtful: self-Dice below which a prediction is reviewed.
        hopeless: self-Dice below which it is rejected.
        probed_below: agreement with the source prediction below which the views of a method without views are asked.
        absurd: mean distance of the image's statistics from the source's from which on the image is rejected.
    """

    least_agreement: float = 0.75
    same: float = 0.97
    greatest_ratio: float = 3.0
    sure: float = 0.8
    loss_of_confidence: float = 0.1
    doubtful: float = 0.75
    hopeless: float = 0.55
    absurd: float = 4.0
    probed_below: float = 0.9


@dataclass(frozen=True)
class Decision:
    """Which prediction is used, and what is to be thought of it.

    Attributes:
        used: ``adapted``, ``source`` or ``neither``.
        verdict: ``ok``, ``review`` or ``reject``.
        reasons: why, a sentence each.
        harmful: whether adaptation made this prediction worse than the source's.
        expected: expected Dice of the prediction that is used; None: the network is not calibrated.
    """

    used: str
    verdict: str
    reasons: tuple[str, ...]
    harmful: bool
    expected: Expected | None = None


def decide(
    measures: Measures, thresholds: Thresholds, calibration: Calibration | None = None, adapts: bool = True
) -> Decision:
    """Decide on one image.

    Args:
        measures: its signals.
        thresholds: bounds of the signals.
        calibration: what is known of the network from its source set; None: nothing.
        adapts: whether the prediction is another one than the source's.
    """
    harm = _harm(measures, thresholds, calibration) if adapts else []
    used = "source" if harm else "adapted"
    faults, doubts, expected = _of_image(measures, thresholds, calibration, used, adapts)
    if faults:
        return Decision("neither", REJECT, (*faults, *doubts, *harm), bool(harm), expected)
    verdict = REVIEW if doubts else OK
    return Decision(used, verdict, (*doubts, *harm), bool(harm), expected)


def _harm(m: Measures, t: Thresholds, calibration: Calibration | None) -> list[str]:
    """Return why the adapted prediction is not used; empty: it is."""
    if min(m.agreement_source) >= t.same:
        return []
    reasons = []
    if m.agreement_views < t.least_agreement:
        reasons.append(
            f"adaptation is not used: its predictions for mirrored or turned views of the image disagree (agreement "
            f"{m.agreement_views:.2f}, at least {t.least_agreement:.2f} is expected)"
        )
    for name, ratio, sure in zip(m.segments, m.ratios, m.source["self_dice"]):
        outside = not 1 / t.greatest_ratio <= ratio <= t.greatest_ratio
        if outside and sure >= t.sure:
            reasons.append(f"adaptation is not used: {name} is {_times(ratio)} what the source network outlines")
    loss = _mean(m.source["self_dice"]) - _mean(m.adapted["self_dice"])
    if loss > t.loss_of_confidence:
        reasons.append(
            f"adaptation is not used: it is less sure of itself than the source network (expected Dice of its own "
            f"mask {_mean(m.adapted['self_dice']):.2f} against {_mean(m.source['self_dice']):.2f})"
        )
    return reasons


def _of_image(
    m: Measures, t: Thresholds, calibration: Calibration | None, used: str, adapts: bool
) -> tuple[list[str], list[str], Expected | None]:
    faults, doubts = [], []
    signals = m.adapted if used == "adapted" else m.source
    sure = _mean(signals["self_dice"])
    if math.isfinite(m.distance) and m.distance > t.absurd:
        faults.append(f"the image is nothing like the source images (distance of its statistics {m.distance:.1f})")
    if not any(signals["voxels"]):
        doubts.append("nothing is outlined")
    elif sure < t.hopeless:
        faults.append(f"the network is not sure of what it outlines (expected Dice of its own mask {sure:.2f})")
    elif sure < t.doubtful:
        doubts.append(f"the network is not very sure of what it outlines (expected Dice of its own mask {sure:.2f})")
    return faults, doubts, None


def _times(ratio: float) -> str:
    if ratio == 0:
        return "missing beside"
    return f"{ratio:.1f} times" if math.isfinite(ratio) else "there, against nothing in"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
