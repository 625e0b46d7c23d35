"""What a model was trained on, by the fingerprint of its data set that nnU-Net keeps beside its plans."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.expected import differences_from_training

__all__ = ["difference_from_training", "training_images"]

_PICTURE = 999
"""Spacing that nnU-Net gives pictures across their plane."""


def training_images(folder: Path) -> dict[str, Any]:
    """Return what the images of a model's training set are like, as :class:`grata.data.CompareScand` expects it.

    Args:
        folder: folder of ``dataset_fingerprint.json``.

    Returns:
        Ranges of spacing, extent and size; of pictures those of their size, which differs more from one camera to the
        next. Nothing where there is no such file, or one of another form.
    """
    try:
        fingerprint = json.loads((folder / "dataset_fingerprint.json").read_text(encoding="utf-8"))
        spacings = np.asarray(fingerprint["spacings"], float).reshape(-1, 3)
        shapes = np.asarray(fingerprint["shapes_after_crop"], float).reshape(-1, 3)
        if (spacings == _PICTURE).any():
            return {"size": _ranges(shapes), "tolerance": 4}
        return {"spacing": _ranges(spacings), "extent": _ranges(spacings * shapes), "size": _ranges(shapes)}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}


def difference_from_training(expected: Mapping[str, Any], properties: Mapping[str, Any]) -> str:
    """Return how an image differs from the training images; empty: it does not, or nothing is known of them.

    Args:
        expected: what is known of them, see :func:`training_images`.
        properties: what nnU-Net's preprocessing says of the image.
    """
    shape = properties["shape_after_cropping_and_before_resampling"]
    return "; ".join(differences_from_training(expected, shape, properties["spacing"]))


def _ranges(values: np.ndarray) -> list[Sequence[float]]:
    ordered = np.sort(values, axis=1)
    return [(float(low), float(high)) for low, high in zip(ordered.min(0), ordered.max(0), strict=True)]
