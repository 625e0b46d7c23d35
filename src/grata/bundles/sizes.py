"""Checks of the images of any bundle: of files before its own transforms load them, of sizes before they resample."""

from __future__ import annotations

from typing import Any

from monai.transforms import Compose, LoadImaged, Spacingd

from ..data import CheckVoxelsd
from ..data.whole import CheckFilesd

__all__ = ["check_sizes"]


def check_sizes(preprocessing: Any, max_voxels: int | None) -> None:
    """Let a check precede each ``LoadImaged`` and each ``Spacingd`` of a bundle's preprocessing.

    Args:
        preprocessing: transforms of the images; a ``Compose`` is changed in place, and what it holds.
        max_voxels: greatest number of voxels; None: no bound.
    """
    if not isinstance(preprocessing, Compose):
        return
    found: list[Any] = []
    for transform in preprocessing.transforms:
        check_sizes(transform, max_voxels)
        if isinstance(transform, LoadImaged) and not (found and isinstance(found[-1], CheckFilesd)):
            found.append(CheckFilesd(transform.keys, transform.allow_missing_keys))
        if isinstance(transform, Spacingd) and not (found and isinstance(found[-1], CheckVoxelsd)):
            target = transform.spacing_transform.pixdim.tolist()
            found.append(CheckVoxelsd(transform.keys, target, max_voxels, transform.allow_missing_keys))
        found.append(transform)
    preprocessing.transforms = tuple(found)
