"""Features of a prediction and its image: the numbers from which its Dice is expected."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from .measures import Measures

__all__ = ["features", "logit"]

_LEAST = 1e-3
"""Kept away from 0 and 1 where a share is put on an open scale."""


def logit(share: float) -> float:
    """Return ``ln((p + ε)/(1 − p + ε))`` of a value from 0 to 1, with ε = 0.001."""
    return math.log((share + _LEAST) / (1 - share + _LEAST))


def features(measures: Measures, typical: Sequence[float], source: bool = False) -> dict[str, float]:
    """Return the features of a prediction, by name.

    Statistics of layers are not among them: batch statistics take away the shifts that they show.

    Args:
        measures: signals of the image.
        typical: thumbnail of the source images, see :func:`grata.quality.thumbnail`.
        source: whether those of the source prediction are meant, not of the adapted one.
    """
    signals: Mapping[str, Sequence[float]] = measures.source if source else measures.adapted
    found = {f"image/{name}": value for name, value in measures.image.items()}
    found["image/likeness"] = sum(a * b for a, b in zip(measures.thumbnail, typical)) / len(typical)
    for k, name in enumerate(measures.segments):
        found |= {
            f"{name}/share": math.log(signals["share"][k] + 1e-4),
            f"{name}/self_dice": logit(signals["self_dice"][k]),
            f"{name}/confidence": logit(signals["confidence"][k]),
            f"{name}/components": math.log1p(signals["components"][k]),
            **{f"{name}/{key}": signals[key][k] for key in ("largest", "holes", "border")},
            **{f"{name}/{key}": signals[key][k] for key in signals if key.startswith("centre_")},
        }
    return found
