"""NIfTI images: names, header checks, reading and writing in the image's own space."""

import os
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np

from ..errors import GrataError
from ..files import atomic_write

__all__ = ["check_nifti", "grid_difference", "is_nifti", "load_nifti", "nifti_stem", "read_nifti", "save_nifti"]

_EXTENSIONS = (".nii.gz", ".nii")


def is_nifti(path: str | os.PathLike[str]) -> bool:
    """Return whether the file's name ends in ``.nii`` or ``.nii.gz``."""
    return os.fspath(path).lower().endswith(_EXTENSIONS)


def nifti_stem(path: str | os.PathLike[str]) -> str:
    """Return the file's name without folder and without ``.nii`` or ``.nii.gz``."""
    name = Path(path).name
    for extension in _EXTENSIONS:
        if name.lower().endswith(extension):
            return name[: -len(extension)]
    return name


def load_nifti(path: str | os.PathLike[str]) -> nibabel.Nifti1Image:
    """Open a NIfTI file; the voxels are read later.

    Raises:
        GrataError: the file is empty, truncated within its header, not NIfTI, or may not be read.
    """
    if os.path.isfile(path) and not os.path.getsize(path):
        raise GrataError(f"NIfTI file '{path}' is empty (0 bytes): copy or export it again.")
    try:
        # nibabel takes a file that it may not read for one of an unknown format.
        open(path, "rb").close()
    except FileNotFoundError as error:
        raise GrataError(f"NIfTI file '{path}' is gone: it was there before. Put it back, or run again.") from error
    except OSError as error:
        raise GrataError(f"NIfTI file '{path}' cannot be read: {error.strerror}. Check its permissions.") from error
    try:
        return nibabel.load(path)
    # A damaged header makes nibabel raise any of a dozen kinds of exception, without a common base.
    except Exception as error:
        raise GrataError(
            f"NIfTI file '{path}' cannot be read: it is damaged, truncated or not NIfTI. Copy or export it again."
        ) from error


def check_nifti(image: nibabel.Nifti1Image, path: str | os.PathLike[str], spatial_dims: int = 3) -> None:
    """Check that a NIfTI header places the voxels in space without a guess.

    Args:
        image: the opened file.
        path: its path, for messages.
        spatial_dims: 3 refuses images of a single slice, 2 refuses volumes.

    Raises:
        GrataError: wrong number of spatial dimensions, a single slice across another axis than the third, complex
            values, another unit than mm, no or contradictory orientation, singular affine.
    """
    header = image.header
    found = sum(size > 1 for size in image.shape[:3])
    if found != spatial_dims:
        shape = " × ".join(str(size) for size in image.shape)
        raise GrataError(
            f"NIfTI file '{path}' is {found}D ({shape} voxels), but a {spatial_dims}D image is wanted. Give one, or leave "
            "this file out."
        )
    if spatial_dims == 2 and 1 in image.shape[:2]:
        raise GrataError(
            f"NIfTI file '{path}' is a single slice across its {'first' if image.shape[0] == 1 else 'second'} axis, but the "
            "third is wanted. Reorder its axes, or leave this file out."
        )
    if image.get_data_dtype().kind == "c":
        raise GrataError(f"NIfTI file '{path}' holds complex values: convert it to a magnitude image.")
    unit = header.get_xyzt_units()[0]
    if unit not in ("mm", "unknown"):
        raise GrataError(f"NIfTI file '{path}' is measured in {unit}, not in mm: convert it.")
    if not int(header["sform_code"]) and not int(header["qform_code"]):
        raise GrataError(
            f"NIfTI file '{path}' has no orientation (sform and qform codes are 0): left and right would be a guess. "
            "Convert it again from DICOM, or set its sform."
        )
    spacing = np.sqrt((image.affine[:3, :3] ** 2).sum(axis=0))
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine)) < 1e-9:
        raise GrataError(f"NIfTI file '{path}' has a singular or non-finite affine matrix: convert it again.")
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
    """Refuse a qform and an sform that cannot both be right; the sform counts where they describe different spaces."""
    try:
        qform, sform = image.get_qform(), image.get_sform()
    except ValueError:
        qform = sform = np.full((4, 4), np.nan)
    if not np.isfinite([qform, sform]).all():
        raise GrataError(
            f"NIfTI file '{path}' has an invalid qform or sform: convert it again, or set the code of the invalid one to 0."
        )
    mirrored = np.linalg.det(qform[:3, :3]) * np.linalg.det(sform[:3, :3]) < 0
    corners = _corners(image.shape)
    extent = float(np.linalg.norm((sform @ (corners[-1] - corners[0]))[:3]))
    same_space = int(image.header["sform_code"]) == int(image.header["qform_code"])
    displaced = 0.0
    if same_space:
        displaced = float(np.linalg.norm(corners @ (qform - sform).T, axis=1).max())
    # A qform is stored as a quaternion in single precision, headers round both, and a qform has no shear.
    if mirrored or displaced > max(1.0, 0.01 * extent):
        what = "left and right are exchanged" if mirrored else f"they differ by {displaced:.1f} mm"
        raise GrataError(
            f"NIfTI file '{path}' contradicts itself between its qform and its sform: {what}. Convert it again, or remove "
            "the wrong one (its code set to 0)."
        )


def _corners(shape: Sequence[int]) -> np.ndarray:
    """Homogeneous indices of the corner voxels, (8, 4)."""
    sizes = (*shape[:3], *[1] * (3 - len(shape)))
    return np.stack(np.meshgrid(*([0, size - 1] for size in sizes), [1], indexing="ij"), axis=-1).reshape(-1, 4)


def read_nifti(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read voxels and RAS affine.

    Returns:
        The float32 array as stored, (H, W, D) or with channels last, and the (4, 4) affine in mm.

    Raises:
        GrataError: the file cannot be read to its end.
    """
    image = load_nifti(path)
    try:
        return np.asarray(image.dataobj, dtype=np.float32), np.array(image.affine)
    # zlib.error is no OSError; RGB voxels raise TypeError or ValueError.
    except Exception as error:
        raise GrataError(
            f"NIfTI file '{path}': its voxels cannot be read. It is truncated or damaged, or has no grey values: copy or "
            "export it again."
        ) from error


def grid_difference(
    shape: Sequence[int], affine: np.ndarray, other_shape: Sequence[int], other_affine: np.ndarray
) -> str:
    """Compare two voxel grids.

    Args:
        shape, other_shape: sizes; only the first three axes count.
        affine, other_affine: (4, 4) matrices, mm.

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
    """Write a label map.

    Args:
        labels: uint8, (H, W, D) or (H, W).
        reference: the NIfTI image whose geometry is copied, or a (4, 4) RAS affine in mm.
        path: the file to write, atomically.

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
    """Copy what places the voxels, and no free text or extension: these may name the patient."""
    copy = header.__class__()
    for field in (
        "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
        "srow_x", "srow_y", "srow_z", "pixdim", "xyzt_units",
    ):  # fmt: skip
        copy[field] = header[field]
    return copy


def _mm(sizes: np.ndarray) -> str:
    return " × ".join(f"{size:g}" for size in sizes) + " mm"
