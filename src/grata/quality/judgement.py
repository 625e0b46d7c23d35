"""What a guard says of one image: verdict, the prediction to use, reasons in words, and the signals behind them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = [
    "OK",
    "REJECTED",
    "REJECT",
    "REVIEW",
    "UNEXPECTED",
    "UNJUDGED",
    "VERDICTS",
    "Judgement",
    "exit_status",
    "verdict_in_words",
    "worst",
]

OK, REVIEW, REJECT, UNJUDGED = "ok", "review", "reject", "unjudged"

VERDICTS = (OK, REVIEW, REJECT, UNJUDGED)
"""Verdicts: nothing speaks against the segmentation; a person should look at it before it is used; it must not be used;
nothing could be measured, because the meaning of the network's output is unknown."""

UNEXPECTED = "unexpected"
"""Key of an image in a batch that says how it differs from the training images; empty: it does not."""

REJECTED = 3
"""Exit status of a run without faults in which something was rejected; 1 is for faults, 2 for a wrong command line."""


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
            "withheld": self.withheld,
            "reasons": list(self.reasons),
            "quality": dict(self.quality),
        }

    def doubted(self, reason: str) -> Judgement:
        """Return the judgement with a further reason, for which the image is to be reviewed at least."""
        return replace(self, verdict=worst([self.verdict, REVIEW]), reasons=(reason, *self.reasons))

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Judgement:
        """Return the judgement of which these are the values."""
        return cls(
            values["verdict"], values["used"], tuple(values["reasons"]), values["quality"], bool(values["withheld"])
        )


def verdict_in_words(judgement: Judgement) -> str:
    """Return a verdict in the few words that fit into a heading or a DICOM attribute."""
    words = f"verdict {judgement.verdict}"
    words += ", source prediction" if judgement.used == "source" else ""
    expected = judgement.quality.get("expected_dice")
    return words if expected is None else f"{words}, expected Dice {expected:.2f}"


def exit_status(failed: bool, judgements: Iterable[Judgement]) -> int:
    """Return the exit status of a run: 1 if something failed, :data:`REJECTED` if something was rejected, else 0."""
    if failed:
        return 1
    return REJECTED if any(judgement.verdict == REJECT for judgement in judgements) else 0


def worst(verdicts: list[str]) -> str:
    """Return the worst of several verdicts; of none: ``unjudged``."""
    return max(verdicts, key=(UNJUDGED, OK, REVIEW, REJECT).index, default=UNJUDGED)
