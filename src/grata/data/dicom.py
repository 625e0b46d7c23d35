"""DICOM series: check that one is a volume, and read it."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import highdicom
import numpy as np
from pydicom import Dataset
from pydicom.valuerep import DSfloat

from ..errors import GrataError
from .dicom_file import BrokenFileError, quiet_libraries, read_file
from .dicom_index import Instance, frame_of_reference, read_instance, series_identifiers, slice_length
from .geometry import (
    ORIENTATION_TOLERANCE,
    GeometryError,
    Plane,
    order_planes,
    spacing_tolerance,
)
from .identifiers import remove_identifiers

__all__ = [
    "Instance",
    "align_header",
    "describe_series",
    "error_reason",
    "quiet_libraries",
    "read_series",
    "read_volume",
    "series_geometry",
    "series_identifiers",
    "sort_series",
]

_Grid = TypeVar("_Grid", highdicom.Volume, highdicom.VolumeGeometry)

# highdicom's tolerance of the direction in which slices are stacked, which geometry.py has already checked.
_PERPENDICULAR_TOLERANCE = 0.01


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
            raise GeometryError(*instance.defect)
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
        remedy = error.remedy or "Export the series again, complete and without other series"
        raise GrataError(f"{name} cannot be used: {error}. {remedy}.") from error


@quiet_libraries()
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
    if not np.isfinite(volume.array).all():
        raise GrataError(
            f"{describe_series(paths, identifiers)} has values that are not finite numbers after its scaling (Rescale "
            "Slope and Intercept, or a lookup table). Export the series again, or leave it out."
        )
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

    A Frame of Reference UID that is absent is added.

    Args:
        header: header of a slice or of an enhanced multi-frame object; it is changed in place.
        plane: plane whose orientation and pixel spacing hold for the whole series.
        spacing: distance between slices, in mm; it is also the slice thickness where the header gives none.
    """
    header.FrameOfReferenceUID = frame_of_reference(header)
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
    if not slice_length(header, "SliceThickness"):
        measures.SliceThickness = DSfloat(spacing, auto_format=True)


def _column_row_slice(volume: _Grid) -> _Grid:
    """Reorder highdicom's axes (slice, row, column) to those of :func:`read_volume`."""
    return volume.permute_spatial_axes((2, 1, 0)).ensure_handedness(highdicom.AxisHandedness.RIGHT_HANDED, flip_axis=2)


def _read_known_instance(path: str | os.PathLike[str], number: int, count: int) -> Instance:
    # The file is not named: without its header, nothing says which parts of the name are the patient's.
    name = f"File {number} of {count} of the DICOM series"
    try:
        instance = read_instance(path)
    except BrokenFileError as error:
        raise GrataError(f"{name} cannot be used: {error}. Make it readable, or export the series again.") from error
    if not isinstance(instance, Instance):
        raise GrataError(f"{name} is not a DICOM image. Give the image files of one DICOM series.")
    return instance


def _read_slices(ordered: Sequence[Instance], identifiers: frozenset[str], spacing: float) -> highdicom.Volume:
    datasets = []
    for instance in ordered:
        try:
            dataset = read_file(instance.path)
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
    dataset = read_file(instance.path)
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


def error_reason(error: Exception, identifiers: frozenset[str]) -> str:
    """Return a library's error message as one line, cut after 200 characters, without paths and the patient's identity.

    Args:
        error: exception that the library raised.
        identifiers: strings that identify the patient.
    """
    text = re.sub(r"(?<![\w.])/\S+", "…", " ".join(str(error).split())) or type(error).__name__
    return remove_identifiers(text if len(text) <= 200 else f"{text[:200]}…", identifiers)


def _shown(path: str | os.PathLike[str], identifiers: frozenset[str]) -> str:
    return f"'{remove_identifiers(Path(path).name, identifiers)}'"
