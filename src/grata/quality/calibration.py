"""What is known of a network from its source set: plain numbers, from which the Dice of a prediction is expected."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Calibration", "Expected"]


@dataclass(frozen=True)
class Expected:
    """Dice that is expected of a prediction.

    Attributes:
        dice: expected Dice, mean over the segments, 0 to 1.
        low, high: ends of its 90 % interval.
    """

    dice: float
    low: float
    high: float

    def as_dict(self) -> dict[str, Any]:
        """Return the keys of a journal."""
        return {
            "expected_dice": round(self.dice, 4),
            "expected_low": round(self.low, 4),
            "expected_high": round(self.high, 4),
        }


@dataclass(frozen=True)
class Calibration:
    """What is known of a network from its source set."""

    values: Mapping[str, Any]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Calibration:
        raise NotImplementedError
