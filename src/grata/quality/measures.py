"""All signals of one case: of the adapted prediction, of the source's, and between them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .image import image_features, thumbnail
from .signals import Segmentation, class_compactness, shape_signals, soft_overlap

__all__ = ["Measures", "mean", "measure"]


@dataclass(frozen=True)
class Measures:
    """Signals of one image, as plain numbers.

    Attributes:
        segments: names of the segments.
        adapted: signals of each segment of the adapted prediction, by name: ``self_dice``, ``confidence``, ``share``,
            ``voxels``, and those of :func:`shape_signals`.
        source: the same of the source prediction.
        agreement_source: soft Dice of both predictions, by segment.
        agreement_views: agreement of the adapted prediction with those for weak views, 0 to 1; NaN: not measured.
        compactness: class-compact density of the adapted prediction.
        distances: distance of the image's statistics from the source's in each normalization layer.
        image: what the image looks like, see :func:`image_features`; empty: it is not described.
        thumbnail: see :func:`thumbnail`; empty: likewise.
    """

    segments: tuple[str, ...]
    adapted: Mapping[str, Sequence[float]]
    source: Mapping[str, Sequence[float]]
    agreement_source: Sequence[float]
    agreement_views: float
    compactness: float
    distances: Sequence[float]
    image: Mapping[str, float]
    thumbnail: Sequence[float]

    @property
    def ratios(self) -> list[float]:
        """Volume of each segment over that of the source prediction; 1 where both are empty."""
        return [
            1.0 if not mine and not theirs else mine / theirs if theirs else math.inf
            for mine, theirs in zip(self.adapted["voxels"], self.source["voxels"])
        ]

    @property
    def distance(self) -> float:
        """Mean distance over the layers; NaN: no layer keeps running statistics."""
        return sum(self.distances) / len(self.distances) if self.distances else math.nan

    def as_dict(self) -> dict[str, Any]:
        """Return what a journal holds of it: rounded, infinite and unknown values as they are."""
        by_segment = {
            name: {
                "voxels": int(self.adapted["voxels"][k]),
                "source_voxels": int(self.source["voxels"][k]),
                "ratio": _round(self.ratios[k]),
                "self_dice": _round(self.adapted["self_dice"][k]),
                "source_self_dice": _round(self.source["self_dice"][k]),
                "confidence": _round(self.adapted["confidence"][k]),
                "agreement_source": _round(self.agreement_source[k]),
                "components": int(self.adapted["components"][k]),
                "holes": _round(self.adapted["holes"][k]),
            }
            for k, name in enumerate(self.segments)
        }
        return {
            "agreement_views": _round(self.agreement_views),
            "agreement_source": _round(mean(self.agreement_source)),
            "self_dice": _round(mean(self.adapted["self_dice"])),
            "source_self_dice": _round(mean(self.source["self_dice"])),
            "class_compactness": _round(self.compactness),
            "distance": _round(self.distance),
            "segments": by_segment,
        }


def measure(
    image: torch.Tensor,
    adapted: Segmentation,
    source: Segmentation,
    distances: Sequence[float],
    agreement_views: float,
    activation: str,
    segments: Sequence[str] = (),
    described: bool = True,
) -> Measures:
    """Measure one image.

    Args:
        image: image ``(C, ...)`` as the network gets it.
        adapted: adapted prediction of this image alone, ``(1, K, ...)``.
        source: source prediction of it.
        distances: distance of each normalization layer, see :meth:`grata.quality.LayerStatistics.distances`.
        agreement_views: agreement of views; NaN: not measured.
        activation: ``sigmoid`` or ``softmax``.
        segments: names of the segments; others are numbered.
        described: whether to say what the image looks like, which a calibration alone asks for.
    """
    count = adapted.masks.shape[1]
    names = tuple(segments) if len(segments) == count else tuple(f"segment {k + 1}" for k in range(count))
    same = source is adapted
    mine = _of_segments(adapted)
    p = adapted.probabilities
    if activation == "softmax":
        p = torch.cat([1 - p.sum(1, keepdim=True), p], 1)
    return Measures(
        segments=names,
        adapted=mine,
        source=mine if same else _of_segments(source),
        agreement_source=[1.0] * count if same else soft_overlap(adapted, source)[0].tolist(),
        agreement_views=agreement_views,
        compactness=class_compactness(p, activation).item(),
        distances=list(distances),
        image=image_features(image) if described else {},
        thumbnail=thumbnail(image).tolist() if described else (),
    )


def _of_segments(prediction: Segmentation) -> dict[str, list[float]]:
    shapes = [shape_signals(mask.cpu().numpy()) for mask in prediction.masks[0]]
    return {
        "self_dice": prediction.self_dice()[0].tolist(),
        "confidence": prediction.confidence()[0].tolist(),
        "share": prediction.shares()[0].tolist(),
        "voxels": prediction.voxels()[0].tolist(),
        **{key: [shape[key] for shape in shapes] for key in shapes[0]},
    }


def mean(values: Sequence[float]) -> float:
    """Return the mean over segments."""
    return sum(values) / len(values)


def _round(value: float) -> float:
    return round(value, 4) if math.isfinite(value) else value
