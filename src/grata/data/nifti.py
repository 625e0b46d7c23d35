"""NIfTI images: names, header checks, reading, and writing in the image's own space."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import nibabel
import numpy as np

from ..errors import GrataError
from ..files import atomic_write

__all__ = ["check_nifti", "grid_difference", "is_nifti", "load_nifti", "nifti_stem", "read_nifti", "save_nifti"]

_EXTENSIONS = (".nii.gz", ".nii")


def is_nifti(path: str | os.PathLike[str]) -> bool:
    """Return whether a file's name ends in ``.nii`` or ``.nii.gz``."""
    return os.fspath(path).lower().endswith(_EXTENSIONS)


def nifti_stem(path: str | os.PathLike[str]) -> str:
    """Return a file's name without folder and without ``.nii`` or ``.nii.gz``."""
    name = Path(path).name
    for extension in _EXTENSIONS:
        if name.lower().endswith(extension):
            return name[: -len(extension)]
    return name


def load_nifti(path: str | os.PathLike[str]) -> nibabel.Nifti1Image:
    """Open a NIfTI file; its voxels are read later.

    Raises:
        GrataError: the file is empty, truncated within its header, not NIfTI, or not readable by the user.
    """
    if os.path.isfile(path) and not os.path.getsize(path):
        raise GrataError(f"NIfTI file '{path}' is empty (0 bytes). Copy or export it again.")
    try:
        # nibabel would report a file without read permission as one of an unknown format.
        open(path, "rb").close()
    except FileNotFoundError as error:
        raise GrataError(f"NIfTI file '{path}' no longer exists. Put it back, or run again.") from error
    except OSError as error:
        raise GrataError(f"NIfTI file '{path}' cannot be read: {error.strerror}. Check its permissions.") from error
    try:
        # By these extensions nibabel opens NIfTI-1, or NIfTI-2, whose class derives from it.
        return cast(nibabel.Nifti1Image, nibabel.load(path))
    # A damaged header makes nibabel raise one of a dozen exceptions that have no common base.
    except Exception as error:
        raise GrataError(
            f"NIfTI file '{path}' cannot be read: it is damaged, truncated or not NIfTI. Copy or export it again."
        ) from error


def check_nifti(image: nibabel.Nifti1Image, path: str | os.PathLike[str], spatial_dims: int = 3) -> None:
    """Check that a NIfTI header gives the position of every voxel without a guess.

    Args:
        image: opened file.
        path: path of the file, for messages.
        spatial_dims: number of spatial dimensions that the image must have; an image of a single slice has 2.

    Raises:
        GrataError: the number of spatial dimensions is wrong, a single slice lies across another axis than the third,
            values are complex, the unit is not mm, the orientation is missing or contradictory, or the affine is
            singular.
    """
    header = image.header
    found = sum(size > 1 for size in image.shape[:3])
    if found != spatial_dims:
        shape = " × ".join(str(size) for size in image.shape)
        raise GrataError(
            f"NIfTI file '{path}' is {found}D ({shape} voxels), but a {spatial_dims}D image is needed. Give one, or "
            "leave this file out."
        )
    if spatial_dims == 2 and 1 in image.shape[:2]:
        axis = "first" if image.shape[0] == 1 else "second"
        raise GrataError(
            f"NIfTI file '{path}' is a single slice across its {axis} axis, but must be one across its third. Reorder "
            "its axes, or leave this file out."
        )
    if image.get_data_dtype().kind == "c":
        raise GrataError(f"NIfTI file '{path}' holds complex values. Convert it to a magnitude image.")
    unit = header.get_xyzt_units()[0]
    if unit not in ("mm", "unknown"):
        raise GrataError(f"NIfTI file '{path}' is measured in {unit}, not in mm. Convert it.")
    if not int(header["sform_code"]) and not int(header["qform_code"]):
        raise GrataError(
            f"NIfTI file '{path}' has no orientation (sform and qform codes are 0): left and right would be a guess. "
            "Convert it again from DICOM, or set its sform."
        )
    spacing = np.sqrt((image.affine[:3, :3] ** 2).sum(axis=0))
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine)) < 1e-9:
        raise GrataError(f"NIfTI file '{path}' has a singular or non-finite affine matrix. Convert it again.")
    if int(header["sform_code"]) and int(header["qform_code"]):
        _check_agreement(image, path)
    zooms = np.asarray(header.get_zooms()[:3], dtype=float)
    spacing = spacing[: len(zooms)]
    if not np.allclose(spacing, zooms, rtol=0.01):
        raise GrataError(
            f"NIfTI file '{path}' contradicts itself: voxel size {_mm(zooms)} in pixdim, {_mm(spacing)} in its "
            "affine matrix. Convert it again, or correct the header."
        )


def _check_agreement(image: nibabel.Nifti1Image, path: str | os.PathLike[str]) -> None:
    """Check that qform and sform do not contradict each other. They may differ where they describe different spaces."""
    try:
        qform, sform = image.get_qform(), image.get_sform()
    except ValueError:
        qform = sform = np.full((4, 4), np.nan)
    if not np.isfinite([qform, sform]).all():
        raise GrataError(
            f"NIfTI file '{path}' has an invalid qform or sform. Convert it again, or set the code of the invalid one "
            "to 0."
        )
    mirrored = np.linalg.det(qform[:3, :3]) * np.linalg.det(sform[:3, :3]) < 0
    corners = _corners(image.shape)
    extent = float(np.linalg.norm((sform @ (corners[-1] - corners[0]))[:3]))
    same_space = int(image.header["sform_code"]) == int(image.header["qform_code"])
    displaced = 0.0
    if same_space:
        displaced = float(np.linalg.norm(corners @ (qform - sform).T, axis=1).max())
    # A qform is a quaternion in single precision and has no shear, and headers round both: hence the tolerance.
    if mirrored or displaced > max(1.0, 0.01 * extent):
        what = "left and right are exchanged" if mirrored else f"they differ by {displaced:.1f} mm"
        raise GrataError(
            f"NIfTI file '{path}' contradicts itself between its qform and its sform: {what}. Convert it again, or set "
            "the code of the wrong one to 0."
        )


def _corners(shape: Sequence[int]) -> np.ndarray:
    """Return the homogeneous indices of the corner voxels, (8, 4)."""
    sizes = (*shape[:3], *[1] * (3 - len(shape)))
    return np.stack(np.meshgrid(*([0, size - 1] for size in sizes), [1], indexing="ij"), axis=-1).reshape(-1, 4)


def read_nifti(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read the voxels and the RAS affine of a NIfTI file.

    Returns:
        The float32 array as stored, (H, W, D) or with channels last, and the (4, 4) affine in mm.

    Raises:
        GrataError: the file cannot be read completely.
    """
    image = load_nifti(path)
    try:
        return np.asarray(image.dataobj, dtype=np.float32), np.array(image.affine)
    # zlib.error is not an OSError; RGB voxels raise TypeError or ValueError.
    except Exception as error:
        raise GrataError(
            f"NIfTI file '{path}': its voxels cannot be read. It is truncated, damaged or without grey values. Copy or "
            "export it again."
        ) from error


def grid_difference(
    shape: Sequence[int], affine: np.ndarray, other_shape: Sequence[int], other_affine: np.ndarray
) -> str:
    """Compare two voxel grids.

    Args:
        shape: sizes of the first grid; only the first three axes count.
        affine: affine of the first grid, (4, 4), mm.
        other_shape: sizes of the second grid.
        other_affine: affine of the second grid, (4, 4), mm.

    Returns:
        What differs, empty when the shapes are equal and no corner voxel is displaced by more than a tenth of a voxel:
        headers round.
    """
    first, second = ((*sizes[:3], *[1] * (3 - len(sizes))) for sizes in (shape, other_shape))
    if first != second:
        return f"shape {' × '.join(map(str, second))} instead of {' × '.join(map(str, first))}"
    displacement = float(np.linalg.norm(_corners(first) @ (affine - other_affine).T, axis=1).max())
    tolerance = 0.1 * float(np.linalg.norm(affine[:3, :3], axis=0).min())
    return f"an affine that displaces it by {displacement:.2f} mm" if displacement > tolerance else ""


def save_nifti(labels: np.ndarray, reference: nibabel.Nifti1Image | np.ndarray, path: str | os.PathLike[str]) -> None:
    """Write a label map as NIfTI, whole or not at all.

    Args:
        labels: label map, uint8, (H, W, D) or (H, W).
        reference: NIfTI image whose geometry is copied, or a (4, 4) RAS affine in mm.
        path: file to write.

    Raises:
        GrataError: the file cannot be written.
    """
    if isinstance(reference, np.ndarray):
        image = nibabel.Nifti1Image(labels, reference)
        image.set_qform(reference, code="scanner")
        image.set_sform(reference, code="scanner")
        image.header.set_xyzt_units("mm")
    else:
        header = _geometry_header(reference.header)
        image = reference.__class__(labels, reference.affine, header)
    image.header.set_data_dtype(np.uint8)
    image.header.set_slope_inter(1, 0)
    with atomic_write(path) as temporary:
        nibabel.save(image, temporary)


def _geometry_header(header: nibabel.Nifti1Header) -> nibabel.Nifti1Header:
    """Copy the geometry only: free text and extensions may name the patient."""
    copy = header.__class__()
    for field in (
        "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
        "srow_x", "srow_y", "srow_z", "pixdim", "xyzt_units",
    ):  # fmt: skip
        copy[field] = header[field]
    return copy


def _mm(sizes: np.ndarray) -> str:
    return " × ".join(f"{size:g}" for size in sizes) + " mm"
