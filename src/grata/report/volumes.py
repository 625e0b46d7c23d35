"""How large each structure is in each segmentation: what there is to read where there is no label."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.utils import convert_to_numpy

from .tables import write_table

__all__ = ["case_volumes", "write_volumes"]

_COLUMNS = ("case", "site", "variant", "class", "voxels", "volume_ml")


def case_volumes(
    prediction: np.ndarray | torch.Tensor, class_names: Mapping[int, str], spacing: Sequence[float]
) -> list[dict[str, Any]]:
    """Measure one segmentation.

    Args:
        prediction: label map of shape ``(H, W, D)``.
        class_names: name of each label value, without the background 0.
        spacing: distance between neighbouring voxels along each axis, in mm.

    Returns:
        One dict a class, in the order of ``class_names``: ``class``, ``voxels`` and ``volume_ml``.
    """
    values = convert_to_numpy(prediction)
    voxel = math.prod(float(mm) for mm in spacing) / 1000
    counts = {name: int((values == value).sum()) for value, name in class_names.items()}
    return [{"class": name, "voxels": count, "volume_ml": count * voxel} for name, count in counts.items()]


def write_volumes(rows: Iterable[Mapping[str, Any]], path: str | Path) -> None:
    """Write volume rows as CSV, whole or not at all.

    Args:
        rows: ``case``, ``site``, ``variant``, ``class``, ``voxels`` and ``volume_ml``, written in the order given.
        path: the file, in a folder that exists; an older one is replaced.

    Raises:
        GrataError: the file cannot be written.
    """
    write_table(rows, _COLUMNS, path)
