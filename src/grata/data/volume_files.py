"""Volumes in one file: NIfTI, MetaImage and NRRD, told apart by name."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import GrataError
from .itk_files import ITK_ENDINGS, check_whole_itk, is_itk, load_itk, read_itk
from .nifti import (
    NIFTI_ENDINGS,
    check_dimensions,
    check_nifti,
    check_whole_nifti,
    is_nifti,
    load_nifti,
    nifti_stem,
    read_nifti,
)

__all__ = [
    "VOLUME_ENDINGS",
    "check_volume_file",
    "check_whole",
    "fourth_axis_size",
    "is_volume_file",
    "read_volume_file",
    "volume_format",
    "volume_grid",
    "volume_stem",
]

VOLUME_ENDINGS = (*NIFTI_ENDINGS, *ITK_ENDINGS)
"""How the names of volumes in one file end, or of their headers."""


def is_volume_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a file's name ends like that of a NIfTI, MetaImage or NRRD file or header."""
    return is_nifti(path) or is_itk(path)


def volume_stem(path: str | os.PathLike[str]) -> str:
    """Return a volume file's name without folder and extension."""
    return nifti_stem(path) if is_nifti(path) else Path(path).stem


def volume_format(path: str | os.PathLike[str]) -> str:
    """Return what a case calls the format of a volume file: ``nifti`` or ``itk``."""
    return "nifti" if is_nifti(path) else "itk"


def volume_grid(path: str | os.PathLike[str]) -> tuple[Sequence[int], np.ndarray]:
    """Return the sizes of the axes and the RAS affine of a volume file, from its header.

    Raises:
        GrataError: the header cannot be read.
    """
    image = load_nifti(path) if is_nifti(path) else load_itk(path)
    return image.shape, np.asarray(image.affine)


def fourth_axis_size(path: str | os.PathLike[str]) -> int:
    """Return the number of channels, or of phases of the heart, along the fourth axis; 1 for a volume of three axes.

    Raises:
        GrataError: the header cannot be read, or there are more than four axes.
    """
    if not is_nifti(path):
        return load_itk(path).channels
    shape = load_nifti(path).shape
    if len(shape) > 4:
        raise GrataError(
            f"NIfTI file '{path}' has {len(shape)} axes, and can have four here. Save what it holds as files of four."
        )
    return shape[3] if len(shape) == 4 else 1


def check_volume_file(path: str | os.PathLike[str], spatial_dims: int) -> tuple[Sequence[int], np.ndarray]:
    """Check that a header gives the position of every voxel without a guess, and return what :func:`volume_grid` does.

    Args:
        path: NIfTI, MetaImage or NRRD file.
        spatial_dims: number of spatial dimensions that the image must have; an image of a single slice has 2.

    Raises:
        GrataError: the header cannot be used.
    """
    if is_nifti(path):
        image = load_nifti(path)
        check_nifti(image, path, spatial_dims)
        return image.shape, np.asarray(image.affine)
    shape, affine = volume_grid(path)
    check_dimensions(f"File '{path}'", shape, spatial_dims)
    return shape, affine


def check_whole(path: str | os.PathLike[str]) -> None:
    """Check that a volume file which another library reads is whole, and that nothing of its voxels' sizes is a guess.

    Args:
        path: NIfTI, MetaImage or NRRD file.

    Raises:
        GrataError: the file is truncated or damaged, or its header cannot be used.
    """
    (check_whole_nifti if is_nifti(path) else check_whole_itk)(path)


def read_volume_file(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read the voxels and the RAS affine of a volume file.

    Returns:
        The float32 array as stored, (H, W, D) or with channels last, and the (4, 4) affine in mm.

    Raises:
        GrataError: the file cannot be read completely.
    """
    return read_nifti(path) if is_nifti(path) else read_itk(path)
