"""Say what a DICOM object is: no scan at all, an image that cannot be part of a volume, or a slice of one."""

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
from pydicom import Dataset
from pydicom.datadict import dictionary_description
from pydicom.pixels import get_decoder
from pydicom.uid import UID, MediaStorageDirectoryStorage, RLELossless

from .dicom_file import BrokenFileError, Pixels, claimed_bytes
from .geometry import Plane, is_perpendicular

__all__ = ["Defect", "Kind", "NoScan", "find_defect", "image_type", "no_scan", "sop_class"]

# Objects that have rows and columns but were derived from images, not acquired.
_DERIVED_MODALITIES = {"SEG", "RTDOSE", "PR", "KO", "SR", "REG"}
_VOLUMETRIC = re.compile(r"(Legacy Converted )?(Enhanced )?(CT|MR|PET|Positron Emission Tomography) .*Image Storage")
# What makers write into Image Type of screenshots, dose reports and protocols.
_PICTURE_TYPE = re.compile(r"SCREEN[ _]?S|DOSE|PROTOCOL|CT_SOM\d+ PROT")
_LOCALIZER_TYPE = re.compile(r"LOCALI[SZ]ER|SCOUT|TOPOGRAM")
# Siemens's number of the slices in one image, in an element of its own and in its list of values.
_MOSAIC, _MOSAIC_NAME = (0x0019, "SIEMENS MR HEADER", 0x0A), b"NumberOfImagesInMosaic"
_CSA = (0x0029, "SIEMENS CSA HEADER", 0x10)
# Bytes from the name of an entry of that list to its first value, and letters of a value.
_CSA_ENTRY, _CSA_VALUE = 100, 12
# United Imaging's sequence of the frames of one image.
_UIH_FRAMES = (0x0065, 0x1051)

_BITS = {1, 8, 16, 32, 64}
# Run lengths stand for at most 128 bytes in two. Other codecs know no bound: a constant image takes next to nothing.
_RLE_RATIO = 64
_CODEC_RATIO = 1000
# Decoded size up to which any ratio is plausible, in bytes.
_SMALL = 2**27

_PLACES = (
    ("ImagePositionPatient", "Image Position", 3),
    ("ImageOrientationPatient", "Image Orientation", 6),
    ("PixelSpacing", "Pixel Spacing", 2),
)

# Elements without which pixels have no meaning, and those of them that floating-point pixels do without.
_PIXEL_ELEMENTS = ("PhotometricInterpretation", "SamplesPerPixel", "BitsAllocated", "BitsStored", "PixelRepresentation")
_INTEGER_ELEMENTS, _LARGEST_INTEGER = {"BitsStored", "PixelRepresentation"}, 16

# Largest number in single precision.
_LARGEST_VALUE = 3.4e38

_NO_PLACE = "its headers lack the position in the patient, or it is garbled"
_CONVERT = "Convert it to NIfTI, for example with dcm2niix, or export it as one image for each slice"


class Kind(Enum):
    """What is passed over, as one and as several are called."""

    OBJECT = ("object without an image", "objects without an image")
    PICTURE = ("image that is not a scan", "images that are not scans")
    LOCALIZER = ("localizer", "localizers")
    EMPTY = ("empty file", "empty files")
    COPY = ("copy of a file with the same content", "copies of files with the same content")


class NoScan(NamedTuple):
    """An object that is passed over.

    Attributes:
        kind: what it is.
        name: name of its SOP class; empty where that says nothing.
    """

    kind: Kind
    name: str = ""


class Defect(NamedTuple):
    """Why an image cannot be part of a volume.

    Attributes:
        reason: what is wrong, without the file's name.
        remedy: what helps; empty where the series is to be exported again.
    """

    reason: str
    remedy: str = ""


def sop_class(header: Dataset) -> UID:
    """Return the SOP Class UID; empty when absent."""
    return UID(str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or ""))


def image_type(header: Dataset) -> tuple[str, ...]:
    """Return the values of Image Type in upper case."""
    values = header.get("ImageType") or ()
    return tuple(str(value).upper() for value in ([values] if isinstance(values, str) else values))


def no_scan(header: Dataset, pixels: Pixels | None) -> NoScan | None:
    """Return what an object is that is not a scan, None for an image that may be one.

    Raises:
        BrokenFileError: the header is cut before it says what the object is.
    """
    name = _class_name(header)
    # A truncated image must not be mistaken for an object without pixels.
    without_pixels = pixels is None and name and "Image Storage" not in name
    if without_pixels or header.get("Modality") in _DERIVED_MODALITIES:
        return NoScan(Kind.OBJECT, name)
    if pixels is None:
        _check_whole(header)
    elif any(_LOCALIZER_TYPE.search(value) for value in image_type(header)):
        return NoScan(Kind.LOCALIZER)
    elif _is_picture(header, name):
        return NoScan(Kind.PICTURE, name)
    return None


def _class_name(header: Dataset) -> str:
    """Return what an object's SOP class is called; empty where it names none."""
    kind = sop_class(header)
    if kind == MediaStorageDirectoryStorage or "DirectoryRecordSequence" in header:
        return "DICOMDIR"
    return str(kind.name) if not kind or (kind.is_valid and not kind.is_private) else "private SOP class"


def _check_whole(header: Dataset) -> None:
    """Refuse the header of an image that ends too early."""
    if "SeriesInstanceUID" not in header or not sop_class(header):
        raise BrokenFileError("its DICOM header is truncated: it names no series")
    if "Rows" not in header or "Columns" not in header:
        raise BrokenFileError("its DICOM header is truncated: it is an image without rows and columns")


def _is_picture(header: Dataset, name: str) -> bool:
    """Return whether an image is a screenshot, a dose report or the like."""
    placed = bool(header.get("ImagePositionPatient") or header.get("PerFrameFunctionalGroupsSequence"))
    if "Secondary Capture" in name:
        return not placed or header.get("SamplesPerPixel", 1) != 1
    kinds = image_type(header)
    # A stack that lost its positions still has the size of its pixels.
    unmeasured = "SECONDARY" in kinds and not header.get("PixelSpacing") and _VOLUMETRIC.fullmatch(name) is not None
    return not placed and (unmeasured or any(_PICTURE_TYPE.search(value) for value in kinds))


def find_defect(header: Dataset, planes: Sequence[Plane], pixels: Pixels | None) -> Defect | None:
    """Return why an image cannot be part of a volume, None where no reason shows.

    Args:
        header: header of the image.
        planes: plane of each frame; empty where the header lacks what places them.
        pixels: pixel data as they begin, None where there are none.
    """
    if pixels is None or not pixels.size:
        return Defect("a file has no pixel data: it is truncated or holds only the header")
    return (
        _form_defect(header)
        or _picture_defect(header, planes)
        or (_frames_defect(header) if "SharedFunctionalGroupsSequence" in header else _slice_defect(header))
        or _size_defect(header, planes)
        or _scaling_defect(header)
        or _pixel_defect(header, planes, pixels)
    )


def _form_defect(header: Dataset) -> Defect | None:
    """Return in which form of its maker a volume is stored."""
    kinds = image_type(header)
    if any("MOSAIC" in value for value in kinds) or _mosaic_slices(header) > 1:
        return Defect("it is a mosaic, which holds the slices of a volume side by side in one image", _CONVERT)
    if _UIH_FRAMES in header or any("VFRAME" in value for value in kinds):
        return Defect("each of its images holds all slices of a volume in a form of its maker's (VFRAME)", _CONVERT)
    if sop_class(header).is_private:
        return Defect(
            "its images are of a private SOP class, which only the maker's software reads",
            "Export it in a standard form, such as MR Image Storage",
        )
    return None


def _mosaic_slices(header: Dataset) -> int:
    """Return how many slices an image holds by its maker's own elements; 0 where these say nothing."""
    # An element that is absent or malformed says nothing.
    with suppress(Exception):
        return int(_private(header, *_MOSAIC))
    with suppress(Exception):
        values = bytes(_private(header, *_CSA))
        place = values.index(_MOSAIC_NAME) + _CSA_ENTRY
        return int(values[place : place + _CSA_VALUE].split(b"\0")[0])
    return 0


def _private(header: Dataset, group: int, creator: str, element: int) -> Any:
    return header.private_block(group, creator)[element].value


def _picture_defect(header: Dataset, planes: Sequence[Plane]) -> Defect | None:
    """Return why an image is no slice of grey values."""
    name = sop_class(header).name
    if not planes and not _VOLUMETRIC.fullmatch(name):
        return Defect(
            f"its images ({name}) are planar or have no place in a volume",
            "Convert them to PNG for a bundle of 2D images, or leave them out by selecting others (modality, "
            "description)",
        )
    if header.get("SamplesPerPixel", 1) != 1:
        return Defect(f"it is a colour image ({header.SamplesPerPixel} samples per pixel), but grey values are needed")
    if header.get("PhotometricInterpretation", "MONOCHROME2") not in ("MONOCHROME1", "MONOCHROME2"):
        kind = re.sub(r"[^A-Z0-9_ ]", "?", str(header.PhotometricInterpretation))[:16]
        return Defect(f"its pixels are {kind}, but grey values are needed")
    return None


def _slice_defect(header: Dataset) -> Defect | None:
    frames = int(header.get("NumberOfFrames") or 1)
    if frames > 1:
        return Defect(f"it holds {frames} frames in one file, but not the position of each", _CONVERT)
    wrong = [text for keyword, text, count in _PLACES if not _has_numbers(header, keyword, count)]
    if wrong:
        return Defect(f"{_NO_PLACE} ({', '.join(wrong)})")
    return None


def _scaling_defect(header: Dataset) -> Defect | None:
    """Return what is wrong with the scaling of an image or of one of its frames."""
    groups = [
        *(header.get("SharedFunctionalGroupsSequence") or ()),
        *(header.get("PerFrameFunctionalGroupsSequence") or ()),
    ]
    scalings = [item for group in groups for item in group.get("PixelValueTransformationSequence") or ()]
    bits = int(header.get("BitsStored") or _LARGEST_INTEGER)
    return next(filter(None, (_defect_of_scaling(scaling, bits) for scaling in (header, *scalings))), None)


def _defect_of_scaling(scaling: Dataset, bits: int) -> Defect | None:
    slope, intercept = _number(scaling, "RescaleSlope", 1.0), _number(scaling, "RescaleIntercept", 0.0)
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        return Defect("its Rescale Slope or Rescale Intercept is not a finite number")
    if slope == 0:
        return Defect("its Rescale Slope is 0, which would make all values equal")
    if abs(slope) * 2.0**bits + abs(intercept) > _LARGEST_VALUE:
        return Defect("its Rescale Slope or Rescale Intercept is larger than any scan's: values would be infinite")
    return None


def _number(dataset: Dataset, keyword: str, default: float) -> float:
    value = dataset.get(keyword)
    return default if value is None or value == "" else float(value)


def _frames_defect(header: Dataset) -> Defect | None:
    frames = int(header.get("NumberOfFrames") or 1)
    found = len(header.get("PerFrameFunctionalGroupsSequence") or ())
    return None if found == frames else Defect(f"its header announces {frames} frames, but gives positions for {found}")


def _size_defect(header: Dataset, planes: Sequence[Plane]) -> Defect | None:
    if not planes:
        return Defect(f"{_NO_PLACE} ({', '.join(text for _, text, _ in _PLACES)})")
    if min(planes[0].size) < 1:
        return Defect("its header announces an image without rows or columns")
    orientations = np.asarray([plane.orientation for plane in planes])
    if np.isfinite(orientations).all() and not all(map(is_perpendicular, orientations)):
        return Defect("its Image Orientation (Patient) is not a pair of perpendicular unit vectors")
    return None


def _has_numbers(header: Dataset, keyword: str, count: int) -> bool:
    try:
        return len([float(value) for value in header[keyword].value]) == count
    # An element that is absent, empty, of another kind, or cannot be decoded.
    except (AttributeError, LookupError, NotImplementedError, TypeError, ValueError):
        return False


def _missing_defect(header: Dataset) -> Defect | None:
    """Return which elements are missing that give pixels their meaning."""
    is_large = int(header.get("BitsAllocated") or 0) > _LARGEST_INTEGER
    missing = [
        dictionary_description(keyword)
        for keyword in _PIXEL_ELEMENTS
        if header.get(keyword) in (None, "") and not (is_large and keyword in _INTEGER_ELEMENTS)
    ]
    return (
        Defect(f"its header lacks {' and '.join(missing)}, without which its pixels have no meaning")
        if missing
        else None
    )


def _pixel_defect(header: Dataset, planes: Sequence[Plane], pixels: Pixels) -> Defect | None:
    if missing := _missing_defect(header):
        return missing
    if header.get("BitsAllocated", 16) not in _BITS:
        return Defect(f"its header announces {header.BitsAllocated} bits for each pixel")
    syntax = header.file_meta.TransferSyntaxUID
    if not syntax.is_transfer_syntax:
        return Defect("its transfer syntax is unknown", "Export it again, uncompressed")
    if syntax.is_encapsulated != pixels.encapsulated:
        return Defect("its pixel data are not stored in the transfer syntax that its header names")
    claimed = claimed_bytes(header, len(planes))
    announced = f"its header announces {claimed} bytes of pixel data, but it holds {pixels.size}"
    if not pixels.encapsulated:
        return Defect(f"a file is truncated: {announced}") if pixels.size < claimed else None
    if syntax == RLELossless and claimed > _RLE_RATIO * pixels.size:
        return Defect(f"a file is damaged: {announced}, too few for any image of that size")
    if claimed > max(_SMALL, _CODEC_RATIO * pixels.size):
        return Defect(f"a file is damaged: {announced}, too few for any image of that size")
    return _decoder_defect(syntax)


def _decoder_defect(syntax: UID) -> Defect | None:
    remedy = "Export it again, uncompressed"
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        return Defect(f"its transfer syntax ({syntax.name}) cannot be decoded", remedy)
    if decoder.is_available:
        return None
    return Defect(f"no decoder for its transfer syntax ({syntax.name}) is installed", remedy)
