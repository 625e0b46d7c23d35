"""Write a segmentation in the space of its scan, as NIfTI, MetaImage, NRRD, DICOM SEG or PNG."""

import hashlib
import json
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import nibabel
import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationTypeValues,
    SegmentDescription,
    segread,
)
from highdicom.sr import CodedConcept
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from .._version import __version__
from ..errors import GrataError
from ..files import atomic_write
from .carried import carry_over, clean_header, decode_texts, is_valid
from .dicom import (
    Instance,
    align_header,
    error_reason,
    quiet_libraries,
    read_series,
    series_geometry,
    series_identifiers,
)
from .dicom_file import read_file
from .geometry import Plane, order_planes
from .itk_files import save_itk
from .nifti import load_nifti, save_nifti
from .pictures import picture_size, save_label_picture
from .volume_files import volume_grid

__all__ = ["write_dicom_seg", "write_itk", "write_nifti", "write_png"]


_LO = 64
"""Greatest length of a DICOM attribute of this kind."""


def write_nifti(labels: np.ndarray, case: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a label map as NIfTI in the scan's own space.

    For a NIfTI scan, the sform, the qform and their codes, the voxel sizes and the units are those of the scan; none of
    its free text is copied. For any other scan, the affine is that of :class:`grata.data.ScanReader`. The same labels
    give the same bytes.

    Args:
        labels: label map of integers from 0 to 255, (H, W, D), or (H, W) for a single slice, on the voxels of the scan
            as ``ScanReader`` reads it.
        case: case of :func:`grata.data.discover` that is no picture.
        path: file to write, ``.nii.gz`` or ``.nii``; its folder exists.

    Raises:
        GrataError: the scan can no longer be read, or the file cannot be written.
        ValueError: ``labels`` has another shape than the scan, or values that are not integers from 0 to 255.
    """
    reference: nibabel.Nifti1Image | np.ndarray
    if case["format"] == "nifti":
        reference = load_nifti(case["image"])
        shape = reference.shape[:3]
    else:
        shape, reference = _grid(case)
    save_nifti(_checked(labels, _plane(shape)).reshape(shape), reference, path)


def write_itk(labels: np.ndarray, case: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a label map as MetaImage or NRRD in the scan's own space, with ITK's LPS coordinates.

    Args:
        labels: label map of integers from 0 to 255, (H, W, D), or (H, W) for a single slice, on the voxels of the scan
            as ``ScanReader`` reads it.
        case: case of :func:`grata.data.discover` that is no picture.
        path: file to write, ``.mha`` or ``.nrrd``; its folder exists.

    Raises:
        GrataError: the scan can no longer be read, or the file cannot be written.
        ValueError: ``labels`` has another shape than the scan, or values that are not integers from 0 to 255.
    """
    shape, affine = _grid(case)
    sizes = (*shape[:3], *[1] * (3 - len(shape)))
    save_itk(_checked(labels, _plane(shape)).reshape(sizes), affine, path)


def _grid(case: Mapping[str, Any]) -> tuple[tuple[int, ...], np.ndarray]:
    """Return the sizes of the spatial axes and the RAS affine of a case."""
    if case["format"] == "dicom":
        geometry = series_geometry(read_series(case["image"]))
        return geometry.spatial_shape, geometry.get_affine("RAS")
    shape, affine = volume_grid(case["image"])
    return tuple(shape[:3]), affine


def _plane(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that the reader gives: it drops the third axis of a single slice."""
    return shape[:2] if len(shape) == 3 and shape[2] == 1 else shape


def write_png(labels: np.ndarray, case: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a label map as PNG with a palette, in the size of its picture.

    The pixel values are the label values. The palette shows the background black and each label in a colour. The map
    fits the picture after its EXIF orientation; it contains no orientation of its own and none of the picture's text.
    The same labels give the same bytes.

    Args:
        labels: label map of integers from 0 to 255, (rows, columns), on the pixels of the picture as ``ScanReader``
            reads it.
        case: picture case of :func:`grata.data.discover`.
        path: file to write; its folder exists.

    Raises:
        GrataError: the picture can no longer be read, or the file cannot be written.
        ValueError: ``labels`` has another shape than the picture, or values that are not integers from 0 to 255.
    """
    save_label_picture(_checked(labels, picture_size(case["image"])), path)


def write_dicom_seg(
    labels: np.ndarray,
    case: Mapping[str, Any],
    segments: Sequence[Mapping[str, Any]],
    path: str | os.PathLike[str],
    algorithm: tuple[str, str] = ("GraTa", __version__),
    remark: str = "",
) -> None:
    """Write a label map as a binary DICOM SEG that refers to its source series, frame by frame.

    The UIDs are derived from the source series and the content; dates and times come from the source series. The same
    labels therefore give the same bytes. Frames without a segmented voxel are left out; where no voxel is segmented at
    all, the file holds empty frames for all slices.

    Args:
        labels: label map of integers from 0 to 255, (H, W, D), on the voxels of the scan as ``ScanReader`` reads it;
            0 is background.
        case: DICOM case of :func:`grata.data.discover`.
        segments: one mapping per segment. ``value``: its value in ``labels``. ``label``: its name. ``category``,
            ``type`` and, optionally, ``modifier`` of the type and ``anatomic_region``: triplets of code value, coding
            scheme and meaning. ``includes``, optionally: further values that belong to the segment, which then overlaps
            with their segments.
        path: file to write; its folder exists.
        algorithm: name and version of the algorithm that made the segmentation.
        remark: what is to be known of it, such as the verdict of a guard: a few words, which stand in Content
            Description; what exceeds its 64 characters is cut off.

    Raises:
        GrataError: the source series can no longer be read or lacks what a DICOM SEG needs, or the file cannot be
            written.
        ValueError: ``labels`` has another shape than the scan, or values that no segment describes.
    """
    instances = read_series(case["image"])
    geometry = series_geometry(instances)
    labels = _checked(labels, geometry.spatial_shape)
    thickness = float(geometry.spacing[2])
    unknown = sorted(set(np.unique(labels).tolist()) - {0} - {int(segment["value"]) for segment in segments})
    if unknown:
        raise ValueError(f"No segment describes the label values {unknown}")
    try:
        with quiet_libraries():
            sources = [_header(instance, instances[0].planes[0], thickness) for instance in instances]
            _prepare(sources[0])
            segmentation = _segmentation(sources, instances, labels, segments, algorithm, remark)
            with atomic_write(path) as temporary:
                segmentation.save_as(temporary)
                segread(temporary)
    # highdicom raises any of these for a missing or malformed attribute.
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise GrataError(
            f"No DICOM SEG can be made for case '{case['case']}': its series has missing or wrong attributes "
            f"({error_reason(error, series_identifiers(instances))}). Export the series again, or convert it to NIfTI, "
            "for which no DICOM SEG is written."
        ) from error


def _segmentation(
    sources: Sequence[Dataset],
    instances: Sequence[Instance],
    labels: np.ndarray,
    segments: Sequence[Mapping[str, Any]],
    algorithm: tuple[str, str],
    remark: str,
) -> Segmentation:
    uids = _Uids(sources[0], labels, segments, (*algorithm, remark) if remark else algorithm)
    date, time = _date_and_time(sources[0])
    segmentation = Segmentation(
        source_images=sources,
        pixel_array=_frames(labels, instances, segments),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[_description(number, segment, algorithm) for number, segment in enumerate(segments, 1)],
        series_instance_uid=uids("series"),
        # A high number puts it after the acquired series in a viewer's list.
        series_number=instances[0].number + 1000,
        sop_instance_uid=uids("instance"),
        instance_number=1,
        manufacturer=algorithm[0],
        manufacturer_model_name=algorithm[0],
        software_versions=algorithm[1],
        device_serial_number="none",
        content_description=_content_description(algorithm[0], remark),
        content_label="SEGMENTATION",
        series_description=f"{algorithm[0]} segmentation",
        content_date=date,
        content_time=time,
        omit_empty_frames=bool(labels.any()),
    )
    _fix_volatile(segmentation, date, time, uids("dimensions"))
    carry_over(sources[0], segmentation)
    return segmentation


def _content_description(algorithm: str, remark: str) -> str:
    """Return remark and algorithm, or as much of them as the attribute holds in whole words."""
    whole = f"Segmentation by {algorithm}"
    whole = f"{remark}: {whole}" if remark else whole
    return textwrap.shorten(whole if len(whole) <= _LO else remark or whole, _LO, placeholder="")


class _Uids:
    """Generator of UIDs that depend only on the source series and the content."""

    def __init__(
        self, source: Dataset, labels: np.ndarray, segments: Sequence[Mapping[str, Any]], algorithm: tuple[str, ...]
    ) -> None:
        content = hashlib.sha256(np.ascontiguousarray(labels).tobytes()).hexdigest()
        described = json.dumps([dict(segment) for segment in segments], sort_keys=True, default=list)
        # The volumes of one series have the same Series Instance UID, but no instance in common.
        self._entropy = [str(source.SeriesInstanceUID), str(source.SOPInstanceUID), content, described, *algorithm]

    def __call__(self, purpose: str) -> str:
        return generate_uid(entropy_srcs=[*self._entropy, purpose])


def _checked(labels: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != tuple(shape):
        raise ValueError(f"labels have shape {labels.shape}, but the scan has shape {tuple(shape)}")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() > 255:
        raise ValueError(f"labels must be integers from 0 to 255, got {labels.dtype} up to {labels.max()}")
    return labels.astype(np.uint8)


def _frames(labels: np.ndarray, instances: Sequence[Instance], segments: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return segment numbers, (frames, rows, columns), in the order of the source's files or frames.

    Where segments may overlap, return one mask per segment instead, (frames, rows, columns, segments).
    """
    if any(segment.get("includes") for segment in segments):
        masks = [np.isin(labels, [segment["value"], *segment.get("includes", ())]) for segment in segments]
        numbers = np.stack(masks, axis=-1).astype(np.uint8)
    else:
        numbers = np.zeros_like(labels)
        for number, segment in enumerate(segments, 1):
            numbers[labels == int(segment["value"])] = number
    order = order_planes([plane for instance in instances for plane in instance.planes])
    numbers = numbers.swapaxes(0, 2)
    frames = np.empty_like(numbers)
    frames[order] = numbers
    return frames


def _description(number: int, segment: Mapping[str, Any], algorithm: tuple[str, str]) -> SegmentDescription:
    region = segment.get("anatomic_region")
    description = SegmentDescription(
        segment_number=number,
        segment_label=segment["label"],
        segmented_property_category=CodedConcept(*segment["category"]),
        segmented_property_type=CodedConcept(*segment["type"]),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=algorithm[0], version=algorithm[1], family=codes.cid7162.ArtificialIntelligence
        ),
        anatomic_regions=[CodedConcept(*region)] if region else None,
    )
    if segment.get("modifier"):
        property_type = description.SegmentedPropertyTypeCodeSequence[0]
        property_type.SegmentedPropertyTypeModifierCodeSequence = [CodedConcept(*segment["modifier"])]
    return description


def _header(instance: Instance, plane: Plane, spacing: float) -> Dataset:
    header = read_file(instance.path, stop_before_pixels=True)
    align_header(header, plane, spacing)
    return header


def _prepare(header: Dataset) -> None:
    """Correct the header from which patient and study are taken, without a change to the image's content."""
    # Japanese and Korean headers use several character sets.
    decode_texts(header)
    header.SpecificCharacterSet = "ISO_IR 192"
    clean_header(header)


def _date_and_time(header: Dataset) -> tuple[str, str]:
    for prefix in ("Content", "Acquisition", "Series", "Study"):
        if header.get(f"{prefix}Date") and is_valid(header[f"{prefix}Date"]):
            time = f"{prefix}Time"
            known = header.get(time) and is_valid(header[time])
            return str(header[f"{prefix}Date"].value), str(header[time].value) if known else "000000"
    # The standard requires a date; the clock's would make every file differ.
    return "19000101", "000000"


def _fix_volatile(segmentation: Segmentation, date: str, time: str, dimensions_uid: str) -> None:
    """Replace what highdicom takes from the clock or draws at random."""
    segmentation.add_new("InstanceCreationDate", "DA", date)
    segmentation.add_new("InstanceCreationTime", "TM", time)
    for equipment in segmentation.get("ContributingEquipmentSequence", []):
        equipment.pop("ContributionDateTime", None)
    for item in (*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions_uid
