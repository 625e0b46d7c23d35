"""DICOM images: recognize them by content, check that a series is one volume, and read it."""

import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import highdicom
import numpy as np
import pydicom
from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels import get_decoder
from pydicom.uid import UID, MediaStorageDirectoryStorage
from pydicom.valuerep import DSfloat

from ..errors import GrataError
from .geometry import (
    ORIENTATION_TOLERANCE,
    GeometryError,
    Plane,
    order_planes,
    perpendicular,
    spacing_tolerance,
)
from .identifiers import patient_identifiers, remove_identifiers

__all__ = [
    "BrokenFileError",
    "Instance",
    "align_header",
    "describe_series",
    "error_reason",
    "is_named_dicom",
    "quiet_libraries",
    "read_instance",
    "read_series",
    "read_volume",
    "series_geometry",
    "series_identifiers",
    "sort_series",
]

_Grid = TypeVar("_Grid", highdicom.Volume, highdicom.VolumeGeometry)

# Objects that have rows and columns but were derived from images, not acquired.
_DERIVED_MODALITIES = {"SEG", "RTDOSE", "PR", "KO", "SR", "REG"}
# highdicom's tolerance of the direction in which slices are stacked, which geometry.py has already checked.
_PERPENDICULAR_TOLERANCE = 0.01


class BrokenFileError(Exception):
    """A DICOM image file that cannot be used; the message says why without naming the file."""


@dataclass(frozen=True)
class Instance:
    """Header of one DICOM image file, as far as indexing needs it.

    Attributes:
        path: path of the file.
        uid: SOP Instance UID.
        series: Series Instance UID.
        modality: Modality in upper case, letters and digits only; ``"DICOM"`` when absent.
        number: Series Number; 0 when absent.
        description: Series Description; empty when absent.
        multiframe: whether the file is an enhanced multi-frame object.
        planes: one plane per frame; empty when the header lacks position, orientation or pixel spacing.
        frame_of_reference: Frame of Reference UID; empty when absent.
        nominal_spacing: Spacing Between Slices (mm); None when absent.
        thickness: Slice Thickness (mm); None when absent.
        defect: reason why the pixels cannot be used; empty when none is known.
        identifiers: strings that identify the patient and must not be shown.
    """

    path: str
    uid: str
    series: str
    modality: str
    number: int
    description: str
    multiframe: bool
    planes: tuple[Plane, ...]
    frame_of_reference: str
    nominal_spacing: float | None
    thickness: float | None
    defect: str
    identifiers: frozenset[str]


def is_named_dicom(path: str | os.PathLike[str]) -> bool:
    """Return whether a file's name has an extension of DICOM (``.dcm``, ``.dicom``, ``.ima``)."""
    return Path(path).suffix.lower() in {".dcm", ".dicom", ".ima"}


def read_instance(path: str | os.PathLike[str]) -> Instance | None:
    """Index one file by its header.

    Args:
        path: path of any file.

    Returns:
        The instance, or None for a file that is not a DICOM image (other formats, DICOMDIR, SEG, SR, RTSTRUCT, ...).

    Raises:
        BrokenFileError: the file is DICOM by content or name, but empty, damaged or unreadable.
    """
    try:
        with quiet_libraries(), open(path, "rb") as file:
            header = _read_to_pixels(file, is_named_dicom(path))
            if header is None or not _is_image(header):
                return None
            return _instance(os.fspath(path), header, os.fstat(file.fileno()).st_size - file.tell())
    except BrokenFileError:
        raise
    except OSError as error:
        raise BrokenFileError(f"it cannot be opened ({error.strerror or 'input/output error'})") from error
    # A damaged header makes pydicom raise any kind of exception, some only when an element is accessed.
    except Exception as error:
        raise BrokenFileError("its DICOM header is damaged or truncated") from error


def sort_series(instances: Sequence[Instance]) -> list[Instance]:
    """Check that the instances of one series form one regular volume, and sort them along the slice normal.

    Args:
        instances: all instances of one series, in any order.

    Returns:
        The instances in the order of the volume's slices; a single one for enhanced multi-frame.

    Raises:
        GeometryError: slices are missing, mixed, duplicate or irregular; the message says which.
    """
    for instance in instances:
        if instance.defect:
            raise GeometryError(instance.defect)
    if len({instance.uid for instance in instances}) < len(instances):
        raise GeometryError("it has duplicate slices: the same instances are stored in more than one file")
    if len({instance.frame_of_reference for instance in instances}) > 1:
        raise GeometryError("its slices have different frames of reference")
    if any(instance.multiframe for instance in instances) and len(instances) > 1:
        raise GeometryError(f"it holds {len(instances)} files, some of them multi-frame: several volumes in one series")
    planes = [plane for instance in instances for plane in instance.planes]
    order = order_planes(planes, instances[0].nominal_spacing, instances[0].thickness)
    return list(instances) if instances[0].multiframe else [instances[index] for index in order]


def describe_series(paths: Sequence[str | os.PathLike[str]], identifiers: frozenset[str]) -> str:
    """Return what messages call a series: its number of files and its first file, without the patient's identity."""
    count = f"{len(paths)} files, the first" if len(paths) > 1 else "file"
    return f"DICOM series of {count} {_shown(paths[0], identifiers)}"


def read_series(paths: Sequence[str | os.PathLike[str]]) -> list[Instance]:
    """Index the files of one series by their headers, and check that they form one regular volume.

    Args:
        paths: files of the series, in any order.

    Returns:
        The instances in the order of the volume's slices.

    Raises:
        GrataError: a file cannot be read, or the files are not one regular volume.
    """
    instances = [_read_known_instance(path, number, len(paths)) for number, path in enumerate(paths, 1)]
    name = describe_series(paths, series_identifiers(instances))
    if len({instance.series for instance in instances}) > 1:
        raise GrataError(f"{name}: the files belong to several series. Give the files of one series.")
    try:
        return sort_series(instances)
    except GeometryError as error:
        raise GrataError(
            f"{name} cannot be used: {error}. Export the series again, complete and without other series."
        ) from error


def read_volume(paths: Sequence[str | os.PathLike[str]]) -> highdicom.Volume:
    """Read a series as one volume, with the modality's rescaling (slope and intercept, or lookup table) applied.

    Args:
        paths: files of one series in any order, or the single file of an enhanced multi-frame object.

    Returns:
        A float32 volume of shape (columns, rows, slices). Its slices follow the cross product of the row and the column
        direction. Its ``get_affine("RAS")`` maps voxel indices to mm.

    Raises:
        GrataError: a file cannot be read or decoded, or the files are not one regular volume.
    """
    ordered = read_series(paths)
    identifiers = series_identifiers(ordered)
    geometry = series_geometry(ordered)
    try:
        with quiet_libraries():
            read = _read_multiframe if ordered[0].multiframe else _read_slices
            volume = read(ordered, identifiers, geometry.spacing[2])
    except GrataError:
        raise
    # Decoders and highdicom raise exceptions of any kind.
    except Exception as error:
        name = describe_series(paths, identifiers)
        raise GrataError(
            f"{name} cannot be read ({error_reason(error, identifiers)}). Export the series again, uncompressed if "
            "necessary."
        ) from error
    # Slices may be rounded differently. The geometry comes from the headers, as it does for what is written.
    return geometry.with_array(_column_row_slice(volume).array)


def series_geometry(ordered: Sequence[Instance]) -> highdicom.VolumeGeometry:
    """Return the voxel grid of :func:`read_volume`, computed from the headers alone.

    Args:
        ordered: instances of one series, as :func:`sort_series` returns them.
    """
    planes = [plane for instance in ordered for plane in instance.planes]
    first = planes[0]
    heights = np.asarray([plane.position for plane in planes]) @ np.cross(first.orientation[:3], first.orientation[3:])
    geometry = highdicom.VolumeGeometry.from_attributes(
        # highdicom stacks frames against the normal.
        image_position=planes[int(np.argmax(heights))].position,
        image_orientation=first.orientation,
        rows=first.size[0],
        columns=first.size[1],
        pixel_spacing=first.spacing,
        spacing_between_slices=float(np.ptp(heights)) / (len(heights) - 1),
        number_of_frames=len(heights),
        coordinate_system="PATIENT",
        frame_of_reference_uid=ordered[0].frame_of_reference,
    )
    return _column_row_slice(geometry)


def align_header(header: Dataset, plane: Plane, spacing: float) -> None:
    """Write one orientation and spacing into a header, because the slices or frames of a series may round differently.

    Args:
        header: header of a slice or of an enhanced multi-frame object; it is changed in place.
        plane: plane whose orientation and pixel spacing hold for the whole series.
        spacing: distance between slices, in mm; it is also the slice thickness where the header gives none.
    """
    orientation, measures = header, header
    if "SharedFunctionalGroupsSequence" in header:
        shared = header.SharedFunctionalGroupsSequence[0]
        for keyword in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
            frames = header.PerFrameFunctionalGroupsSequence
            if keyword not in shared:
                setattr(shared, keyword, frames[0][keyword].value)
            for frame in frames:
                frame.pop(keyword, None)
        orientation, measures = shared.PlaneOrientationSequence[0], shared.PixelMeasuresSequence[0]
    orientation.ImageOrientationPatient = [DSfloat(value, auto_format=True) for value in plane.orientation]
    measures.PixelSpacing = [DSfloat(value, auto_format=True) for value in plane.spacing]
    # Some scanners write the gap between slices here, or a wrong value.
    measures.SpacingBetweenSlices = DSfloat(spacing, auto_format=True)
    if not measures.get("SliceThickness"):
        measures.SliceThickness = DSfloat(spacing, auto_format=True)


def _column_row_slice(volume: _Grid) -> _Grid:
    """Reorder highdicom's axes (slice, row, column) to those of :func:`read_volume`."""
    return volume.permute_spatial_axes((2, 1, 0)).ensure_handedness(highdicom.AxisHandedness.RIGHT_HANDED, flip_axis=2)


def _read_to_pixels(file: BinaryIO, named_dicom: bool) -> Dataset | None:
    size = os.fstat(file.fileno()).st_size
    if not size:
        # DICOM files often have a name without extension, or a UID as their name, which ends in a number.
        if named_dicom or re.fullmatch(r"(\.\d+)?", Path(file.name).suffix):
            raise BrokenFileError("it is empty (0 bytes)")
        return None
    try:
        return pydicom.dcmread(file, stop_before_pixels=True)
    except InvalidDicomError as error:
        if named_dicom:
            raise BrokenFileError("it is named as DICOM but has no DICOM header: it is truncated or damaged") from error
        return None


def _is_image(header: Dataset) -> bool:
    if header.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        return False
    if "SOPClassUID" not in header or "SeriesInstanceUID" not in header:
        raise BrokenFileError("its DICOM header is truncated: it names no series")
    if "Rows" in header and "Columns" in header:
        return header.get("Modality") not in _DERIVED_MODALITIES
    if header.SOPClassUID.name.endswith("Image Storage"):
        raise BrokenFileError("its DICOM header is truncated: it is an image without rows and columns")
    return False


def _instance(path: str, header: Dataset, pixel_bytes: int) -> Instance:
    multiframe = "SharedFunctionalGroupsSequence" in header
    try:
        planes = _frame_planes(header) if multiframe else (_slice_plane(header),)
        nominal_spacing = _slice_length(header, multiframe, "SpacingBetweenSlices")
        thickness = _slice_length(header, multiframe, "SliceThickness")
    # A missing element raises AttributeError, KeyError or IndexError, a malformed one ValueError or TypeError.
    except (AttributeError, LookupError, TypeError, ValueError):
        planes, nominal_spacing, thickness = (), None, None
    return Instance(
        path=path,
        uid=str(header.get("SOPInstanceUID") or path),
        series=str(header.SeriesInstanceUID),
        modality=_modality(header),
        number=_series_number(header),
        description=str(header.get("SeriesDescription") or ""),
        multiframe=multiframe,
        planes=planes,
        frame_of_reference=str(header.get("FrameOfReferenceUID") or ""),
        nominal_spacing=nominal_spacing,
        thickness=thickness,
        defect=_defect(header, planes, pixel_bytes),
        identifiers=patient_identifiers(header),
    )


def _modality(header: Dataset) -> str:
    """Return the modality as upper case letters and digits only, because it becomes part of file names."""
    return re.sub(r"[^A-Z0-9]+", "", str(header.get("Modality") or "").upper()) or "DICOM"


def _series_number(header: Dataset) -> int:
    try:
        return int(header.get("SeriesNumber") or 0)
    except (TypeError, ValueError):
        return 0


def _slice_plane(header: Dataset) -> Plane:
    return _plane(header, header.ImagePositionPatient, header.ImageOrientationPatient, header.PixelSpacing)


def _frame_planes(header: Dataset) -> tuple[Plane, ...]:
    shared = header.SharedFunctionalGroupsSequence[0]

    def group(frame: Dataset, keyword: str) -> Dataset:
        return (frame if keyword in frame else shared)[keyword][0]

    return tuple(
        _plane(
            header,
            group(frame, "PlanePositionSequence").ImagePositionPatient,
            group(frame, "PlaneOrientationSequence").ImageOrientationPatient,
            group(frame, "PixelMeasuresSequence").PixelSpacing,
        )
        for frame in header.PerFrameFunctionalGroupsSequence
    )


def _plane(header: Dataset, position: Sequence, orientation: Sequence, spacing: Sequence) -> Plane:
    first, cosines, distances = (tuple(float(value) for value in values) for values in (position, orientation, spacing))
    if (len(first), len(cosines), len(distances)) != (3, 6, 2):
        raise ValueError("wrong number of values")
    return Plane(first, perpendicular(cosines), distances, size=(int(header.Rows), int(header.Columns)))


def _slice_length(header: Dataset, multiframe: bool, keyword: str) -> float | None:
    if multiframe:
        measures = header.SharedFunctionalGroupsSequence[0].get("PixelMeasuresSequence")
        header = measures[0] if measures else Dataset()
    length = header.get(keyword)
    return None if length is None else float(length)


def _defect(header: Dataset, planes: tuple[Plane, ...], pixel_bytes: int) -> str:
    if header.get("SamplesPerPixel", 1) != 1:
        return f"it is a colour image ({header.SamplesPerPixel} samples per pixel), but grey values are needed"
    if header.get("PhotometricInterpretation", "MONOCHROME2") not in ("MONOCHROME1", "MONOCHROME2"):
        return f"its pixels are {header.PhotometricInterpretation}, but grey values are needed"
    if not planes or not header.get("FrameOfReferenceUID"):
        return (
            "its headers lack the position in the patient (Image Position, Image Orientation, Pixel Spacing or Frame "
            "of Reference)"
        )
    if "NumberOfFrames" in header and int(header.NumberOfFrames) != len(planes):
        return f"its header announces {header.NumberOfFrames} frames, but gives positions for {len(planes)}"
    if pixel_bytes <= 0:
        return "a file has no pixel data: it is truncated or holds only the header"
    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        return "a file does not name its transfer syntax"
    if syntax.is_encapsulated:
        return _decoder_defect(syntax)
    expected = header.Rows * header.Columns * len(planes) * header.get("BitsAllocated", 16) // 8
    if not syntax.is_deflated and pixel_bytes < expected:
        return f"a file is truncated: its header announces {expected} bytes of pixel data, but it holds {pixel_bytes}"
    return ""


def _decoder_defect(syntax: UID) -> str:
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        return f"its transfer syntax ({syntax.name}) cannot be decoded"
    if decoder.is_available:
        return ""
    return f"no decoder for its transfer syntax ({syntax.name}) is installed"


def _read_known_instance(path: str | os.PathLike[str], number: int, count: int) -> Instance:
    # The file is not named: without its header, nothing says which parts of the name are the patient's.
    name = f"File {number} of {count} of the DICOM series"
    try:
        instance = read_instance(path)
    except BrokenFileError as error:
        raise GrataError(f"{name} cannot be used: {error}. Make it readable, or export the series again.") from error
    if instance is None:
        raise GrataError(f"{name} is not a DICOM image. Give the image files of one DICOM series.")
    return instance


def series_identifiers(instances: Sequence[Instance]) -> frozenset[str]:
    """Return the strings of all instances that identify the patient and must not be shown."""
    return frozenset().union(*(instance.identifiers for instance in instances))


def _read_slices(ordered: Sequence[Instance], identifiers: frozenset[str], spacing: float) -> highdicom.Volume:
    datasets = []
    for instance in ordered:
        try:
            dataset = pydicom.dcmread(instance.path)
            align_header(dataset, ordered[0].planes[0], spacing)
            # Decode here, where the file is known; pydicom keeps the array for highdicom.
            dataset.pixel_array  # noqa: B018
        except Exception as error:
            raise GrataError(
                f"DICOM file {_shown(instance.path, identifiers)}: its pixel data cannot be decoded "
                f"({error_reason(error, identifiers)}). The file is damaged or its transfer syntax is not supported. "
                "Export the series again, uncompressed if necessary."
            ) from error
        datasets.append(dataset)
    return highdicom.get_volume_from_series(
        datasets,
        dtype=np.float32,
        apply_real_world_transform=False,
        # The presentation LUT would invert the values of MONOCHROME1.
        apply_presentation_lut=False,
        orientation_tol=ORIENTATION_TOLERANCE,
        atol=_distance_tolerance(spacing),
        perpendicular_tol=_PERPENDICULAR_TOLERANCE,
    )


def _read_multiframe(ordered: Sequence[Instance], identifiers: frozenset[str], spacing: float) -> highdicom.Volume:
    (instance,) = ordered
    dataset = pydicom.dcmread(instance.path)
    align_header(dataset, instance.planes[0], spacing)
    return highdicom.Image.from_dataset(dataset, copy=False).get_volume(
        dtype=np.float32,
        apply_real_world_transform=False,
        apply_presentation_lut=False,
        atol=_distance_tolerance(spacing),
        perpendicular_tol=_PERPENDICULAR_TOLERANCE,
    )


def _distance_tolerance(spacing: float) -> float:
    """Return a tolerance in mm for highdicom, which compares with the mean distance; the checks use the median."""
    return 2 * spacing_tolerance(spacing)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Suppress the warnings and log messages of pydicom and highdicom, whose paths and values may name the patient."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    levels = [logger.level for logger in loggers]
    try:
        # The level of a parent also applies to the loggers below it.
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def error_reason(error: Exception, identifiers: frozenset[str]) -> str:
    """Return a library's error message as one line, cut after 200 characters, without the patient's identity.

    Args:
        error: exception that the library raised.
        identifiers: strings that identify the patient.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return remove_identifiers(text if len(text) <= 200 else f"{text[:200]}…", identifiers)


def _shown(path: str | os.PathLike[str], identifiers: frozenset[str]) -> str:
    return f"'{remove_identifiers(Path(path).name, identifiers)}'"
