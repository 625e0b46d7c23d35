"""What a guard says of one image: verdict, the prediction to use, reasons in words, and the signals behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["OK", "REJECT", "REVIEW", "UNJUDGED", "VERDICTS", "Judgement", "worst"]

OK, REVIEW, REJECT, UNJUDGED = "ok", "review", "reject", "unjudged"

VERDICTS = (OK, REVIEW, REJECT, UNJUDGED)
"""Verdicts: nothing speaks against the segmentation; a person should look at it before it is used; it must not be used;
nothing could be measured, because the meaning of the network's output is unknown."""


@dataclass(frozen=True)
class Judgement:
    """What a guard says of one image.

    Attributes:
        verdict: one of :data:`VERDICTS`.
        used: which prediction is used: ``adapted``, ``source`` or ``neither``.
        reasons: why, a sentence each; empty where nothing speaks against the prediction.
        quality: expected Dice with its interval, where the network is calibrated, and the signals, as plain numbers.
        withheld: whether nothing of it should be written.
    """

    verdict: str
    used: str = "adapted"
    reasons: tuple[str, ...] = ()
    quality: Mapping[str, Any] = field(default_factory=dict)
    withheld: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for a record or a journal."""
        return {
            "verdict": self.verdict,
            "used": self.used,
            "reasons": list(self.reasons),
            "quality": dict(self.quality),
        }


def worst(verdicts: list[str]) -> str:
    """Return the worst of several verdicts; of none: ``unjudged``."""
    return max(verdicts, key=(UNJUDGED, OK, REVIEW, REJECT).index, default=UNJUDGED)
