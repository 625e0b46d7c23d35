"""Meaning of a network's output and range of its input, read from a bundle's own transforms."""

from __future__ import annotations

from collections.abc import Container, Iterator
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

__all__ = ["Head", "find_head", "is_unit_range"]

_RANGES = (
    ScaleIntensityRange,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentiles,
    ScaleIntensityRangePercentilesd,
)


@dataclass(frozen=True)
class Head:
    """Meaning of a network's output.

    Attributes:
        activation: ``softmax`` or ``sigmoid``; None: unknown.
        output: key of the logits in the dict that the network returns; None: the network returns the logits.
        source: name of the transform that the activation was read from, for messages.
    """

    activation: str | None = None
    output: str | None = None
    source: str = ""


def find_head(postprocessing: Any, key: str = "pred") -> Head:
    """Return the head of a network, by the transforms of its predictions.

    The first activation decides. Without an activation, an argmax means softmax, because logits and their softmax have
    the same argmax. A threshold alone means nothing, because it may apply to logits or to probabilities.

    Args:
        postprocessing: transform, usually a ``Compose``; None: there is none.
        key: key of the predictions.
    """
    transforms = list(_transforms(postprocessing))
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
    """Return whether the last change of intensity in ``preprocessing`` scales the image to 0..1.

    Args:
        preprocessing: transform, usually a ``Compose``; None: there is none.
        key: key of the image.
    """
    unit = False
    for transform in _transforms(preprocessing):
        keys = getattr(transform, "keys", None)
        # of a transform, not the method of a dict
        if isinstance(keys, Container) and key not in keys:
            continue
        scaler = getattr(transform, "scaler", transform)
        if isinstance(transform, ScaleIntensityd | ScaleIntensity):
            unit = scaler.factor is None and (scaler.minv, scaler.maxv) == (0.0, 1.0)
        elif isinstance(transform, _RANGES):
            unit = bool(scaler.clip) and (scaler.b_min, scaler.b_max) == (0.0, 1.0)
        elif isinstance(transform, NormalizeIntensityd | NormalizeIntensity):
            unit = False
    return unit


def _transforms(transform: Any) -> Iterator[Any]:
    """Yield ``transform`` itself, or the transforms of a ``Compose``, in order and at any depth."""
    if isinstance(transform, Compose):
        transform = transform.transforms
    if isinstance(transform, list | tuple):
        for item in transform:
            yield from _transforms(item)
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
