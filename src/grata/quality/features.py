"""Features of a prediction and its image: the numbers from which its Dice is expected."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from .measures import Measures

__all__ = ["features", "in_words", "known_features", "logit"]

_LEAST = 1e-3
"""Kept away from 0 and 1 where a share is put on an open scale."""


def logit(share: float) -> float:
    """Return ``ln((p + ε)/(1 − p + ε))`` of a value from 0 to 1, with ε = 0.001."""
    return math.log((share + _LEAST) / (1 - share + _LEAST))


_OF_IMAGE = {
    "likeness": "where it is bright and dark",
    "mean": "its mean value",
    "std": "its contrast",
    "skew": "the spread of its values",
    "fine": "its fine texture",
    "coarse": "its coarse structure",
    "low": "how much of it is very dark",
    "high": "how much of it is very bright",
    "colour": "its colours",
}
_OF_SEGMENT = {
    "share": "the size of {}",
    "self_dice": "how sure the network is of {}",
    "confidence": "how sure the network is of {}",
    "components": "the number of parts of {}",
    "largest": "the largest part of {}",
    "holes": "the holes in {}",
    "border": "{} at the border of the image",
    "centre": "where {} lies",
}


def in_words(name: str) -> str:
    """Return what a feature is, in words for a reason.

    Args:
        name: name of a feature, see :func:`features`.
    """
    part, _, kind = name.rpartition("/")
    kind = kind if kind in _OF_SEGMENT else kind.partition("_")[0]
    return _OF_IMAGE[kind] if part == "image" else _OF_SEGMENT[kind].format(part)


def known_features(segments: Sequence[str], channels: int, dims: int) -> set[str]:
    """Return the names of all features of an image and its prediction, see :func:`features`.

    Args:
        segments: names of the segments.
        channels: number of channels of the image.
        dims: number of its spatial dimensions.
    """
    whole = {"image/likeness", *["image/colour"] * (channels > 1)}
    whole |= {f"image/{kind}_{k}" for kind in _OF_IMAGE.keys() - {"likeness", "colour"} for k in range(channels)}
    places = [kind for kind in _OF_SEGMENT if kind != "centre"] + [f"centre_{axis}" for axis in range(dims)]
    return whole | {f"{segment}/{kind}" for segment in segments for kind in places}


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
