"""NIfTI images: names, header checks, reading, and writing in the image's own space."""

import gzip
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, cast

import nibabel
import numpy as np
from nibabel.arrayproxy import ArrayProxy

from ..errors import GrataError
from ..files import absence, atomic_write
from .sizes import check_volume_size, read_to_end

__all__ = [
    "NIFTI_ENDINGS",
    "check_dimensions",
    "check_nifti",
    "check_whole_nifti",
    "grid_difference",
    "is_nifti",
    "is_nifti_pair",
    "load_nifti",
    "nifti_stem",
    "pair_image",
    "read_nifti",
    "save_nifti",
]

_PAIRS = (".hdr.gz", ".hdr")
NIFTI_ENDINGS = (".nii.gz", ".nii")
"""How the names of NIfTI volumes in one file end."""

_EXTENSIONS = (*NIFTI_ENDINGS, *_PAIRS)
# By their lengths; that of NIfTI-1 is ANALYZE's too.
_HEADERS = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
_MAGIC = {True: (b"n+1", b"n+2"), False: (b"ni1", b"ni2")}
_SPACES = range(6)
_UNITS = range(4)
# What nibabel repairs is harmless, once the header is checked, and its messages name no file.
_SILENT = logging.Logger("nibabel", logging.CRITICAL + 1)


def is_nifti(path: str | os.PathLike[str]) -> bool:
    """Return whether a file's name ends in ``.nii`` or ``.nii.gz``, or in ``.hdr`` or ``.hdr.gz`` as a pair's does."""
    return os.fspath(path).lower().endswith(_EXTENSIONS)


def nifti_stem(path: str | os.PathLike[str]) -> str:
    """Return a file's name without folder and without ``.nii``, ``.nii.gz``, ``.hdr`` or ``.hdr.gz``."""
    name = Path(path).name
    for extension in _EXTENSIONS:
        if name.lower().endswith(extension):
            return name[: -len(extension)]
    return name


def is_nifti_pair(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is the header of a NIfTI or ANALYZE pair: other formats have headers named ``.hdr`` too."""
    if not _is_pair(path):
        return False
    try:
        with _opened(path) as file:
            start = file.read(4)
    # A damaged compressed file raises one of several exceptions.
    except Exception:  # noqa: BLE001
        return True
    return not start or any(int.from_bytes(start, order) in _HEADERS for order in ("little", "big"))


def pair_image(path: str | os.PathLike[str]) -> Path | None:
    """Return the ``.img`` or ``.img.gz`` file that belongs to the header of a pair; None where there is none."""
    path = Path(path)
    stem = nifti_stem(path).lower()
    with os.scandir(path.parent) as entries:
        names = sorted(entry.name for entry in entries)
    # In upper case too, and the one that is compressed like its header first.
    ends = sorted((".img", ".img.gz"), key=lambda end: end.endswith(".gz") != path.name.lower().endswith(".gz"))
    return next((path.with_name(n) for end in ends for n in names if n.lower() == f"{stem}{end}"), None)


def load_nifti(path: str | os.PathLike[str]) -> nibabel.Nifti1Image:
    """Open a NIfTI file or pair; its voxels are read later.

    Raises:
        GrataError: the file is empty, truncated within its header, not NIfTI, or not readable by the user; its header
            is invalid, or claims more than the file can hold.
    """
    try:
        return _loaded(path)
    except GrataError:
        raise
    except FileNotFoundError as error:
        raise GrataError(f"NIfTI file '{path}' {absence(path)}. Put it back, or leave it out.") from error
    # A damaged header makes nibabel raise one of a dozen exceptions that have no common base.
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise GrataError(f"NIfTI file '{path}' cannot be read: {error.strerror}. Check its permissions.") from error
        what = _misnamed(path) or "it is damaged, truncated or not NIfTI. Copy or export it again"
        raise GrataError(f"NIfTI file '{path}' cannot be read: {what}.") from error


def _misnamed(path: str | os.PathLike[str]) -> str:
    """Return which name a file should have whose compression is not what its name says; empty for others."""
    with open(path, "rb") as file:
        start = file.read(4)
    if not os.fspath(path).lower().endswith(".gz"):
        return "it is compressed in spite of its name. Give it a name that ends in .gz" * start.startswith(b"\x1f\x8b")
    plain = any(int.from_bytes(start, order) in _HEADERS for order in ("little", "big"))
    return "it is not compressed in spite of its name. Give it a name that does not end in .gz" * plain


def _loaded(path: str | os.PathLike[str]) -> nibabel.Nifti1Image:
    if not os.path.getsize(path):
        raise GrataError(f"NIfTI file '{path}' is empty (0 bytes). Copy or export it again.")
    header = _header(path)
    voxels = _voxel_file(path)
    shape, dtype, offset = header.get_data_shape(), header.get_data_dtype(), int(header["vox_offset"])
    compressed = voxels.suffix.lower() == ".gz"
    check_volume_size(f"NIfTI file '{path}'", shape, dtype.itemsize, voxels.stat().st_size, compressed, offset)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    slope, inter = header.get_slope_inter()
    proxy = ArrayProxy(voxels, (shape, dtype, offset, slope or 1.0, inter or 0.0))
    kind = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
    return kind(proxy, header.get_best_affine(), header)


def _header(path: str | os.PathLike[str]) -> nibabel.Nifti1Header:
    """Read and check a header without its extensions, which may be large and name the patient."""
    with _opened(path) as file:
        block = file.read(max(_HEADERS))
    little, big = (int.from_bytes(block[:4], order) for order in ("little", "big"))
    length, order = (little, "<") if little in _HEADERS else (big, ">")
    kind = _HEADERS[length]
    header = kind(block[:length], order, check=False)
    _check_raw(header, path)
    header.check_fix(logger=_SILENT)
    return header


def _check_raw(raw: nibabel.Nifti1Header, path: str | os.PathLike[str]) -> None:
    """Check what nibabel would repair by a guess."""
    single = not _is_pair(path)
    magic = bytes(raw["magic"].item())[:3]
    if not single and magic not in _MAGIC[False]:
        raise GrataError(
            f"NIfTI file '{path}' is an ANALYZE 7.5 header, which has no orientation: left and right would be a guess. "
            "Convert it again from DICOM to NIfTI."
        )
    if magic not in _MAGIC[single]:
        raise GrataError(f"NIfTI file '{path}' is not NIfTI by its content. Copy or export it again.")
    for wrong, what in (*_wrong_fields(raw, single), *_wrong_geometry(raw)):
        if wrong:
            raise GrataError(f"NIfTI file '{path}' has an invalid header: {what}. Convert it again.")


def _wrong_fields(raw: nibabel.Nifti1Header, single: bool) -> list[tuple[bool, str]]:
    axes, offset = int(raw["dim"][0]), float(raw["vox_offset"])
    least = raw.single_vox_offset if single else 0
    scaled = np.isfinite([raw["scl_slope"], raw["scl_inter"]]).all()
    return [
        (not 1 <= axes <= 7, f"it has {axes} axes (dim[0])"),
        (bool((raw["dim"][1 : max(axes, 0) + 1] < 1).any()), "an axis has no voxels (dim)"),
        (not least <= offset < 2**40 or offset % 1 != 0, f"its voxels begin at byte {offset:g} (vox_offset)"),
        (not scaled, "the scaling of its values is not finite (scl_slope, scl_inter)"),
        (int(raw["xyzt_units"]) % 8 not in _UNITS, f"its unit of length is unknown ({int(raw['xyzt_units']) % 8})"),
    ]


def _wrong_geometry(raw: nibabel.Nifti1Header) -> list[tuple[bool, str]]:
    codes = {name: int(raw[f"{name}_code"]) for name in ("qform", "sform")}
    found = [(code not in _SPACES, f"the code of its {name} is unknown ({code})") for name, code in codes.items()]
    if codes["qform"]:
        handed = float(raw["pixdim"][0])
        found.append((handed not in (-1, 0, 1), f"the handedness of its qform is {handed:g} (pixdim[0])"))
        # With an sform, both are compared.
        found += [] if codes["sform"] else _wrong_qform(raw)
    return found


def _wrong_qform(raw: nibabel.Nifti1Header) -> list[tuple[bool, str]]:
    try:
        raw.get_qform_quaternion()
        is_rotation = True
    except ValueError:
        is_rotation = False
    zooms = raw["pixdim"][1:4][raw["dim"][1:4] > 1]
    sizes = " × ".join(f"{zoom:g}" for zoom in zooms)
    return [
        (not is_rotation, "its qform is no rotation (quatern)"),
        (not (np.isfinite(zooms) & (zooms > 0)).all(), f"its voxel size is {sizes} mm (pixdim)"),
    ]


def _voxel_file(path: str | os.PathLike[str]) -> Path:
    if not _is_pair(path):
        return Path(path)
    found = pair_image(path)
    if found is None:
        raise GrataError(
            f"NIfTI file '{path}' is the header of a pair, but '{nifti_stem(path)}.img' with its voxels is missing. "
            "Put it beside the header."
        )
    return found


def _is_pair(path: str | os.PathLike[str]) -> bool:
    return os.fspath(path).lower().endswith(_PAIRS)


def _opened(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file, and decompress it where its name ends in ``.gz``."""
    return cast(BinaryIO, gzip.open(path) if os.fspath(path).lower().endswith(".gz") else open(path, "rb"))


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
    check_dimensions(f"NIfTI file '{path}'", image.shape, spatial_dims)
    _check_values(image, path)
    # The unit of time, in the upper bits, does not matter.
    unit = nibabel.nifti1.unit_codes.label[int(header["xyzt_units"]) % 8]
    if unit not in ("mm", "unknown"):
        raise GrataError(f"NIfTI file '{path}' is measured in {unit}, not in mm. Convert it.")
    if not int(header["sform_code"]) and not int(header["qform_code"]):
        raise GrataError(
            f"NIfTI file '{path}' has no orientation (sform and qform codes are 0): left and right would be a guess. "
            "Convert it again from DICOM, or set its sform."
        )
    _check_affine(image, path)
    if int(header["sform_code"]) and int(header["qform_code"]):
        _check_agreement(image, path)
    _check_voxel_sizes(image, path)


def check_whole_nifti(path: str | os.PathLike[str]) -> None:
    """Check that a NIfTI file is whole, and that nothing of its voxels' sizes is a guess.

    It is for a file that another library reads. What does not change its voxels is up to that one: the number of axes,
    the orientation, a unit other than mm.

    Raises:
        GrataError: the file is truncated or damaged, its header is invalid or claims more than the file can hold, or it
            holds no grey values.
    """
    image = load_nifti(path)
    _check_values(image, path)
    _check_affine(image, path)
    _check_voxel_sizes(image, path)
    stored = cast(ArrayProxy, image.dataobj)
    needed = stored.offset + math.prod(stored.shape) * stored.dtype.itemsize
    try:
        with _opened(stored.file_like) as file:
            found = read_to_end(file)
    # A damaged compressed file raises one of several exceptions.
    except Exception as error:
        raise _unreadable(path) from error
    if found < needed:
        raise _unreadable(path)


def _check_values(image: nibabel.Nifti1Image, path: str | os.PathLike[str]) -> None:
    if image.get_data_dtype().kind == "V":
        raise GrataError(f"NIfTI file '{path}' holds colours, without grey values. Convert it to grey values.")
    if image.get_data_dtype().kind == "c":
        raise GrataError(f"NIfTI file '{path}' holds complex values. Convert it to a magnitude image.")


def _check_affine(image: nibabel.Nifti1Image, path: str | os.PathLike[str]) -> None:
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine)) < 1e-9:
        raise GrataError(f"NIfTI file '{path}' has a singular or non-finite affine matrix. Convert it again.")


def _check_voxel_sizes(image: nibabel.Nifti1Image, path: str | os.PathLike[str]) -> None:
    """Check that the two places of a header that give the voxel size agree."""
    zooms = np.asarray(image.header.get_zooms()[:3], dtype=float)
    spacing = np.sqrt((image.affine[:3, :3] ** 2).sum(axis=0))[: len(zooms)]
    if not np.allclose(spacing, zooms, rtol=0.01):
        raise GrataError(
            f"NIfTI file '{path}' contradicts itself: voxel size {_mm(zooms)} in pixdim, {_mm(spacing)} in its "
            "affine matrix. Convert it again, or correct the header."
        )


def check_dimensions(name: str, shape: Sequence[int], spatial_dims: int) -> None:
    """Check the number of spatial dimensions.

    Args:
        name: format and path of the file, to begin a message with.
        shape: sizes of its axes, of which the first three are spatial.
        spatial_dims: number of spatial dimensions that the image must have; an image of a single slice has 2.

    Raises:
        GrataError: the number is wrong, or a single slice lies across another axis than the third.
    """
    found = sum(size > 1 for size in shape[:3])
    if found != spatial_dims:
        shown = " × ".join(str(size) for size in shape)
        kind = f"is {found}D" if found else "has no axis in space of more than one voxel"
        raise GrataError(
            f"{name} {kind} ({shown} voxels), but a {spatial_dims}D image is needed. Give one, or leave this file out."
        )
    if spatial_dims == 2 and 1 in shape[:2]:
        axis = "first" if shape[0] == 1 else "second"
        raise GrataError(
            f"{name} is a single slice across its {axis} axis, but must be one across its third. Reorder its axes, or "
            "leave this file out."
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
    stored = cast(ArrayProxy, image.dataobj)
    try:
        with _opened(stored.file_like) as file:
            proxy = ArrayProxy(file, (stored.shape, stored.dtype, stored.offset, stored.slope, stored.inter))
            array = np.asarray(proxy, dtype=np.float32)
            if isinstance(file, gzip.GzipFile):
                # The check sum stands at the end.
                read_to_end(file)
    # zlib.error is not an OSError; RGB voxels raise TypeError or ValueError.
    except Exception as error:
        raise _unreadable(path) from error
    return array, np.array(image.affine)


def _unreadable(path: str | os.PathLike[str]) -> GrataError:
    return GrataError(
        f"NIfTI file '{path}': its voxels cannot be read. It is truncated, damaged or without grey values. Copy or "
        "export it again."
    )


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
