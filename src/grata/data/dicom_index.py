"""Index DICOM images by their headers: what each is, where it lies and what tells it from others of its series."""

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import generate_uid

from .dicom_file import BrokenFileError, Pixels, quiet_libraries, read_header
from .dicom_kinds import Defect, NoScan, find_defect, no_scan, sop_class
from .geometry import Plane, is_perpendicular, perpendicular
from .identifiers import patient_identifiers

__all__ = [
    "ATTRIBUTES",
    "Instance",
    "NO_MODALITY",
    "TIMES",
    "frame_of_reference",
    "number_or_text",
    "read_instance",
    "series_identifiers",
    "slice_length",
]

TIMES = ("AcquisitionDateTime", "AcquisitionTime", "ContentTime")
"""Times of day, which may identify the patient: only their order is shown."""

ATTRIBUTES = (
    "EchoTime", "EchoNumbers", "DiffusionBValue", "DiffusionGradientOrientation", "ComplexImageComponent", "ImageType",
    "TemporalPositionIdentifier", "TemporalPositionIndex", "TriggerTime", "NominalCardiacTriggerDelayTime",
    "NominalPercentageOfCardiacPhase", "CardiacCyclePosition", "FrameReferenceTime", "FlipAngle", "InversionTime",
    "RepetitionTime", "SequenceName", "KVP", "ConvolutionKernel", "ContrastBolusAgent", "StackID", "AcquisitionNumber",
    "Orientation", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", *TIMES,
)  # fmt: skip
"""Attributes that tell the volumes of one series from each other, those that say most about a volume first."""

NO_MODALITY = "DICOM"
"""Modality of an image whose header gives none."""

# Letters of a value that is shown.
_LONGEST_TEXT = 64
# Letters of a number by the standard.
_LONGEST_NUMBER = 16
# Series Numbers are 32 bits; a larger one leaves no room for that of the segmentation.
_LARGEST_NUMBER = 2**31 - 2000


@dataclass(frozen=True)
class Instance:
    """Header of one DICOM image file, as far as indexing needs it.

    Attributes:
        path: path of the file.
        uid: SOP Instance UID.
        series: Series Instance UID; empty when absent.
        modality: Modality in upper case, letters and digits only; ``"DICOM"`` when absent.
        number: Series Number; 0 when absent.
        description: Series Description; empty when absent.
        multiframe: whether the file is an enhanced multi-frame object.
        planes: one plane per frame; empty when the header lacks position, orientation or pixel spacing.
        frame_of_reference: Frame of Reference UID, derived from the series where it is absent.
        nominal_spacing: Spacing Between Slices (mm); None when absent.
        thickness: Slice Thickness (mm); None when absent.
        defect: why the file cannot be part of a volume; None when no reason is known.
        private: whether the SOP class is a maker's own.
        identifiers: strings that identify the patient and must not be shown.
        order: Instance Number; empty when absent.
        attributes: values of :data:`ATTRIBUTES`, Photometric Interpretation, Protocol Name and Cardiac Number of
            Images, as text; without those that are absent.
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
    defect: Defect | None
    private: bool
    identifiers: frozenset[str]
    order: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)


@quiet_libraries()
def read_instance(path: str | os.PathLike[str]) -> Instance | NoScan | None:
    """Index one file by its header.

    Args:
        path: path of any file.

    Returns:
        The instance; or what the object is, where it is DICOM but not a scan; or None for a file of another format.

    Raises:
        BrokenFileError: the file is DICOM by content or name, but empty, damaged or unreadable.
    """
    try:
        found = read_header(path)
        if found is None:
            return None
        header, pixels = found
        passed = no_scan(header, pixels)
        if passed is not None:
            return passed
        planes = _planes(header)
        return _instance(os.fspath(path), header, planes, _defect(header, planes, pixels))
    except BrokenFileError:
        raise
    except Exception as error:
        # pydicom raises OSError itself, without an error number.
        if isinstance(error, OSError) and error.errno is not None:
            raise BrokenFileError(f"it cannot be opened ({error.strerror})") from error
        # A damaged header makes pydicom raise any kind of exception, some only when an element is accessed.
        raise BrokenFileError("its DICOM header is damaged or truncated") from error


def series_identifiers(instances: Sequence[Instance]) -> frozenset[str]:
    """Return the strings of all instances that identify the patient and must not be shown."""
    return frozenset().union(*(instance.identifiers for instance in instances))


def frame_of_reference(header: Dataset) -> str:
    """Return the Frame of Reference UID of an image, derived from its series where the header has none."""
    given = str(header.get("FrameOfReferenceUID") or "")
    return given or str(generate_uid(entropy_srcs=[str(header.get("SeriesInstanceUID")), "FrameOfReferenceUID"]))


def _defect(header: Dataset, planes: Sequence[Plane], pixels: Pixels | None) -> Defect | None:
    try:
        return find_defect(header, planes, pixels)
    # A malformed value of an element that every image needs.
    except (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError):
        return Defect("its DICOM header is damaged: it has wrong values")


def _instance(path: str, header: Dataset, planes: tuple[Plane, ...], defect: Defect | None) -> Instance:
    return Instance(
        path=path,
        uid=str(header.get("SOPInstanceUID") or path),
        series=str(header.get("SeriesInstanceUID") or ""),
        modality=_modality(header),
        number=_series_number(header),
        description=str(header.get("SeriesDescription") or ""),
        multiframe="SharedFunctionalGroupsSequence" in header,
        planes=planes,
        frame_of_reference=frame_of_reference(header),
        nominal_spacing=slice_length(header, "SpacingBetweenSlices"),
        thickness=slice_length(header, "SliceThickness"),
        defect=defect,
        private=sop_class(header).is_private,
        identifiers=patient_identifiers(header),
        order=_text(_standard("InstanceNumber"), header),
        attributes=_attributes(header, planes),
    )


def _modality(header: Dataset) -> str:
    """Return the modality as upper case letters and digits only, because it becomes part of file names."""
    return re.sub(r"[^A-Z0-9]+", "", str(header.get("Modality") or "").upper())[:16] or NO_MODALITY


def _series_number(header: Dataset) -> int:
    with suppress(TypeError, ValueError, OverflowError):
        number = int(header.get("SeriesNumber") or 0)
        return number if 0 <= number < _LARGEST_NUMBER else 0
    return 0


def _planes(header: Dataset) -> tuple[Plane, ...]:
    """Return the plane of each frame; nothing where an element is missing or malformed."""
    try:
        if "SharedFunctionalGroupsSequence" in header:
            return _frame_planes(header)
        return (_plane(header, header.ImagePositionPatient, header.ImageOrientationPatient, header.PixelSpacing),)
    # A missing element raises AttributeError, KeyError or IndexError, a malformed one ValueError or TypeError.
    except (AttributeError, LookupError, TypeError, ValueError):
        return ()


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


def slice_length(header: Dataset, keyword: str) -> float | None:
    """Return a length in mm; None where it is absent or malformed, because no geometry is taken from it."""
    with suppress(AttributeError, LookupError, TypeError, ValueError):
        if "SharedFunctionalGroupsSequence" in header:
            header = header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        length = float(header[keyword].value)
        return length if math.isfinite(length) else None
    return None


def _attributes(header: Dataset, planes: Sequence[Plane]) -> dict[str, str]:
    keywords = (*ATTRIBUTES, "PhotometricInterpretation", "ProtocolName", "CardiacNumberOfImages")
    values = {keyword: _text(_standard(keyword), header) for keyword in keywords}
    for keyword, readers in _PRIVATE.items():
        found = (_text(read, header) for read in readers)
        values[keyword] = values[keyword] or next(filter(None, found), "")
    if planes and is_perpendicular(planes[0].orientation):
        cosines = np.asarray(planes[0].orientation)
        axis = int(np.abs(np.cross(cosines[:3], cosines[3:])).argmax())
        values["Orientation"] = ("sagittal", "coronal", "axial")[axis]
        values["ImageOrientationPatient"] = "\\".join(f"{value + 0.0:.2f}" for value in cosines)
    if "SharedFunctionalGroupsSequence" in header:
        # Each multi-frame file is a volume by itself.
        values["InstanceNumber"] = _text(_standard("InstanceNumber"), header)
    return dict(filter(all, values.items()))


def _text(read: Callable[[Dataset], Any], header: Dataset) -> str:
    """Return a value as text; empty where it is absent or cannot be read."""
    # Any exception, because pydicom decodes a value only now. None of these values is needed.
    with suppress(Exception):
        found = read(header)
        if found is None:
            return ""
        parts = found if isinstance(found, MultiValue | list | tuple) else [found]
        return "\\".join(number_or_text(part) for part in parts)
    return ""


def number_or_text(value: Any) -> str:
    """Return a value as text, a number in its shortest form."""
    text = " ".join(str(value).replace(",", " ").split())
    with suppress(TypeError, ValueError):
        # A date with a time, which is text, has more digits than any number that is compared.
        if len(text) <= _LONGEST_NUMBER or not isinstance(value, str):
            return f"{float(value):.{16 if isinstance(value, str) else 10}g}"
    # Without commas, which stand between the choices of a user.
    return "".join(letter for letter in text if letter.isprintable())[:_LONGEST_TEXT]


def _standard(keyword: str) -> Callable[[Dataset], Any]:
    return lambda header: header[keyword].value


def _private(group: int, creator: str, element: int) -> Callable[[Dataset], Any]:
    return lambda header: header.private_block(group, creator)[element].value


def _ge_b_value(header: Dataset) -> float:
    # GE adds a large number to mark values of its newer software.
    return float(_private(0x0043, "GEMS_PARM_01", 0x39)(header)[0]) % 1e6


def _ge_component(header: Dataset) -> str:
    return ("MAGNITUDE", "PHASE", "REAL", "IMAGINARY")[int(_private(0x0043, "GEMS_PARM_01", 0x2F)(header))]


# Where makers put what the standard has had an attribute for since then.
_PRIVATE: dict[str, tuple[Callable[[Dataset], Any], ...]] = {
    "DiffusionBValue": (
        _private(0x0019, "SIEMENS MR HEADER", 0x0C),
        _private(0x2001, "Philips Imaging DD 001", 0x03),
        _private(0x0065, "Image Private Header", 0x09),
        _ge_b_value,
    ),
    "DiffusionGradientOrientation": (_private(0x0019, "SIEMENS MR HEADER", 0x0E),),
    "ComplexImageComponent": (_ge_component,),
}
