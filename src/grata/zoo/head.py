"""What a network's output means and what its input looks like, read off a bundle's own transforms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from monai.apps.pathology.transforms.post.dictionary import HoVerNetInstanceMapPostProcessingd
from monai.transforms import (
    Activations,
    Activationsd,
    AsDiscrete,
    AsDiscreted,
    Compose,
    NormalizeIntensity,
    NormalizeIntensityd,
    ScaleIntensity,
    ScaleIntensityd,
    ScaleIntensityRange,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentiles,
    ScaleIntensityRangePercentilesd,
)

__all__ = ["Head", "find_head", "is_unit_range", "transforms_of"]


@dataclass(frozen=True)
class Head:
    """What a network's output means.

    Attributes:
        activation: ``softmax`` or ``sigmoid``; None: nothing tells.
        output: key of the logits, for a network that returns a dict; None: it returns them.
        source: the transform that tells, for people.
    """

    activation: str | None = None
    output: str | None = None
    source: str = ""


def find_head(postprocessing: Any, key: str = "pred") -> Head:
    """The head of a network, by the transforms that its predictions go through.

    The first activation decides. Without one an argmax tells a softmax: it is the same of logits and of their softmax.
    A threshold alone tells nothing, since it may be one of logits or of probabilities.

    Args:
        postprocessing: a transform, usually a ``Compose``; None: there is none.
        key: of the predictions.
    """
    transforms = list(transforms_of(postprocessing))
    for transform in transforms:
        if isinstance(transform, HoVerNetInstanceMapPostProcessingd):
            mask = transform.instance_map_post_process.generate_watershed_mask
            return Head(_named(mask.activation), str(transform.nuclear_prediction_key), type(transform).__name__)
        activation = _activation(transform, key)
        if activation is not None:
            return Head(activation, None, type(transform).__name__)
    for transform in transforms:
        if _takes_argmax(transform, key):
            return Head("softmax", None, f"argmax of {type(transform).__name__}")
    return Head()


def is_unit_range(preprocessing: Any, key: str = "image") -> bool:
    """Whether images come out of ``preprocessing`` in 0..1: its last change of intensity is a scaling to that."""
    unit = False
    for transform in transforms_of(preprocessing):
        if key not in getattr(transform, "keys", (key,)):
            continue
        scaler = getattr(transform, "scaler", transform)
        if isinstance(transform, ScaleIntensityd | ScaleIntensity):
            unit = scaler.factor is None and (scaler.minv, scaler.maxv) == (0.0, 1.0)
        elif isinstance(transform, _RANGES):
            unit = bool(scaler.clip) and (scaler.b_min, scaler.b_max) == (0.0, 1.0)
        elif isinstance(transform, NormalizeIntensityd | NormalizeIntensity):
            unit = False
    return unit


_RANGES = (
    ScaleIntensityRange,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentiles,
    ScaleIntensityRangePercentilesd,
)


def transforms_of(transform: Any) -> Iterator[Any]:
    """``transform`` itself, or what a ``Compose`` holds, in order and however deep."""
    if isinstance(transform, Compose):
        transform = transform.transforms
    if isinstance(transform, list | tuple):
        for item in transform:
            yield from transforms_of(item)
    elif transform is not None:
        yield transform


def _activation(transform: Any, key: str) -> str | None:
    if isinstance(transform, Activationsd) and key in transform.keys:
        at = transform.keys.index(key)
        return "softmax" if transform.softmax[at] else "sigmoid" if transform.sigmoid[at] else None
    return _named(transform) if isinstance(transform, Activations) else None


def _named(activation: Activations) -> str | None:
    return "softmax" if activation.softmax else "sigmoid" if activation.sigmoid else None


def _takes_argmax(transform: Any, key: str) -> bool:
    if isinstance(transform, AsDiscreted):
        return key in transform.keys and bool(transform.argmax[transform.keys.index(key)])
    return isinstance(transform, AsDiscrete) and bool(transform.argmax)
