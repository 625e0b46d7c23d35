"""Size of each structure in each segmentation, a result that needs no label."""

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
    """Measure the structures of one segmentation.

    Args:
        prediction: label map of shape ``(H, W)`` or ``(H, W, D)``.
        class_names: name of each label value, without the background 0.
        spacing: distance between neighbouring voxels along each axis, in mm; None for a picture, whose pixels have no
            size.
        includes: further label values that belong to a class too, by the label value of the class.

    Returns:
        One dict per class, in the order of ``class_names``: ``class``, and the size, which is ``voxels`` and
        ``volume_ml`` for a volume, ``area_px`` and ``area_mm2`` for a single slice, and ``area_px`` for a picture.
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
        rows: dicts with ``case``, ``site``, ``variant`` and the keys of :func:`case_volumes`, written in the order
            given. The table has a column for each size that any row has; a cell without a value is empty.
        path: file to write, in a folder that exists; an existing file is replaced.

    Raises:
        GrataError: the file cannot be written.
    """
    rows = list(rows)
    write_table(rows, (*_COLUMNS, *(key for key in _SIZES if any(key in row for row in rows))), path)
