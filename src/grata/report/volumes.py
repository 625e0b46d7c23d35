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

_COLUMNS = ("case", "site", "variant", "class")
_SIZES = ("voxels", "volume_ml", "area_px", "area_mm2")


def case_volumes(
    prediction: np.ndarray | torch.Tensor,
    class_names: Mapping[int, str],
    spacing: Sequence[float] | None,
    includes: Mapping[int, Sequence[int]] | None = None,
) -> list[dict[str, Any]]:
    """Measure one segmentation.

    Args:
        prediction: label map of shape ``(H, W)`` or ``(H, W, D)``.
        class_names: name of each label value, without the background 0.
        spacing: distance between neighbouring voxels along each axis, in mm; None for a picture, whose pixels have no
            size.
        includes: for a label value, the further ones that its class takes in.

    Returns:
        One dict a class, in the order of ``class_names``: ``class``, and ``voxels`` and ``volume_ml`` of a volume,
        ``area_px`` and ``area_mm2`` of a single slice, ``area_px`` of a picture.
    """
    values = convert_to_numpy(prediction)
    count_key, size_key, per_unit = ("voxels", "volume_ml", 1000) if values.ndim == 3 else ("area_px", "area_mm2", 1)
    rows = []
    for value, name in class_names.items():
        count = int(np.isin(values, [value, *(includes or {}).get(value, ())]).sum())
        size = {} if spacing is None else {size_key: count * math.prod(float(mm) for mm in spacing) / per_unit}
        rows.append({"class": name, count_key: count, **size})
    return rows


def write_volumes(rows: Iterable[Mapping[str, Any]], path: str | Path) -> None:
    """Write volume rows as CSV, whole or not at all.

    Args:
        rows: ``case``, ``site``, ``variant`` and what :func:`case_volumes` gives, written in the order given. The table
            has the columns that some row has; a cell that its row does not have is empty.
        path: the file, in a folder that exists; an older one is replaced.

    Raises:
        GrataError: the file cannot be written.
    """
    rows = list(rows)
    write_table(rows, (*_COLUMNS, *(key for key in _SIZES if any(key in row for row in rows))), path)
