"""Tags of a scan's header that identify the scanner, and nothing about the patient."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import GrataError

if TYPE_CHECKING:
    import pydicom

__all__ = ["SCANNER", "check_tags", "scanner_tags"]

SCANNER = ("Manufacturer", "ManufacturerModelName", "StationName", "MagneticFieldStrength")
"""DICOM keywords that distinguish scanners."""

# In DICOM's order.
_DEVICE = (
    *("Modality", "Manufacturer", "InstitutionName", "StationName", "InstitutionalDepartmentName"),
    *("ManufacturerModelName", "ScanningSequence", "SequenceVariant", "MRAcquisitionType", "SliceThickness"),
    *("KVP", "MagneticFieldStrength", "DeviceSerialNumber", "SoftwareVersions", "ConvolutionKernel"),
    *("ReceiveCoilName", "TransmitCoilName"),
)
_NUMBERS = {"DS", "FL", "FD", "IS", "US", "SS", "UL", "SL"}
# No magnet has more tesla than this: larger values are in gauss, which some scanners write.
_GAUSS = 100.0
_NOMINAL = 0.5


def check_tags(tags: Sequence[str]) -> tuple[str, ...]:
    """Return ``tags`` in DICOM's order, each once, after checking that they describe the device and nothing else.

    Args:
        tags: DICOM keywords about the scanner (Manufacturer, ManufacturerModelName, StationName, InstitutionName,
            InstitutionalDepartmentName, Modality, MagneticFieldStrength, DeviceSerialNumber, SoftwareVersions,
            ReceiveCoilName, TransmitCoilName) or about its acquisition (ScanningSequence, SequenceVariant,
            MRAcquisitionType, KVP, ConvolutionKernel, SliceThickness).

    Raises:
        GrataError: a tag is not a DICOM keyword, or is not in this list, because it could hold the patient, the visit,
            a date or free text.
    """
    if isinstance(tags, str) or not isinstance(tags, Sequence) or not tags:
        raise GrataError(f"must be a list of DICOM keywords such as {list(SCANNER)}, got {tags!r}.", key="bank#tags")
    for keyword in tags:
        if keyword not in _DEVICE:
            if not _is_keyword(keyword):
                raise GrataError(f"{keyword!r} is not a DICOM keyword. Give some of {', '.join(_DEVICE)}.", "bank#tags")
            raise GrataError(
                f"{keyword} is not allowed: its value would be in file names, which may describe the device alone. "
                f"Give some of {', '.join(_DEVICE)}.",
                key="bank#tags",
            )
    return tuple(keyword for keyword in _DEVICE if keyword in tags)


def scanner_tags(meta: Mapping[str, Any], tags: Sequence[str], item: int | None = None) -> dict[str, str]:
    """Return the values of tags by keyword, from a scan's metadata or else from its file's header.

    Text loses its padding. A magnetic field of 1 T or more is rounded to half a tesla, because some software versions
    write 1.5 as 1.494. A weaker field and other numbers are rounded to two significant digits.

    Args:
        meta: metadata by the keys of MONAI's ITKReader (``0008|0070``) or PydicomReader (``00080070``), or by keywords;
            its ``filename_or_obj`` is a file of the series, or its folder.
        tags: DICOM keywords.
        item: index of the scan in a batch whose metadata was collated into ``meta``; None: ``meta`` is of one scan.

    Returns:
        Values that were found; missing tags are left out.
    """
    from monai.utils import ImageMetaKey

    found = {keyword: _text(keyword, _in_meta(meta, keyword, item)) for keyword in tags}
    if not any(found.values()):
        found = _in_header(_at(meta.get(ImageMetaKey.FILENAME_OR_OBJ), item), tags)
    return {keyword: value for keyword, value in found.items() if value}


def _is_keyword(keyword: Any) -> bool:
    # pydicom and torch are imported where they are needed, so that a bank can be listed without them.
    from pydicom.datadict import tag_for_keyword

    return isinstance(keyword, str) and tag_for_keyword(keyword) is not None


def _in_meta(meta: Mapping[str, Any], keyword: str, item: int | None) -> Any:
    number = f"{_tag(keyword):08X}"
    for key in (f"{number[:4]}|{number[4:]}".lower(), number, keyword):
        value = meta.get(key)
        if isinstance(value, Mapping):
            value = [_at(part, item) for part in value.get("Value", ())]
        elif value is not None:
            value = _at(value, item)
        if value not in (None, "", []):
            return value
    return None


def _tag(keyword: str) -> int:
    from pydicom.datadict import tag_for_keyword

    tag = tag_for_keyword(keyword)
    assert tag is not None  # check_tags refuses other words
    return tag


def _at(value: Any, item: int | None) -> Any:
    """Return the item's part of a collated value."""
    import torch

    if isinstance(value, torch.Tensor):
        value = value.tolist()
    return value[item] if item is not None and isinstance(value, list | tuple) else value


def _in_header(path: Any, tags: Sequence[str]) -> dict[str, str]:
    from ..data.dicom import quiet_libraries

    # pydicom decodes a value, and tells the log of it, when it is accessed.
    with quiet_libraries():
        header = _header(path, tags)
        return {keyword: _text(keyword, header.get(keyword)) for keyword in tags}


def _header(path: Any, tags: Sequence[str]) -> Mapping[str, Any] | pydicom.Dataset:
    """Return the header of a DICOM file, or of the first DICOM file in a folder; empty if there is none."""
    import pydicom

    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        return {}
    path = Path(path)
    files = sorted(child for child in path.iterdir() if child.is_file()) if path.is_dir() else [path]
    for file in files:
        # A damaged file is reported where it is read as an image.
        with contextlib.suppress(Exception):
            return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(tags))
    return {}


def _text(keyword: str, value: Any) -> str:
    import pydicom
    from pydicom.datadict import dictionary_VR

    values = value if isinstance(value, list | tuple | pydicom.multival.MultiValue) else [value]
    texts = [" ".join(str(v).replace("\0", " ").split()) for v in values if v is not None]
    if dictionary_VR(_tag(keyword)) in _NUMBERS:
        texts = [_number(keyword, text) for text in texts]
    return "\\".join(texts)


def _number(keyword: str, text: str) -> str:
    try:
        value = float(text)
    except ValueError:
        return text
    if keyword == "MagneticFieldStrength":
        value = value / 1e4 if value > _GAUSS else value
        if value >= 1:
            return f"{round(value / _NOMINAL) * _NOMINAL:g}"
    return f"{value:.2g}"
