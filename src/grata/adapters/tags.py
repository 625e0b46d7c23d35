"""What a scan's headers tell of the scanner; nothing of the patient."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import GrataError

__all__ = ["SCANNER", "check_tags", "scanner_tags"]

SCANNER = ("Manufacturer", "ManufacturerModelName", "StationName", "MagneticFieldStrength")
"""Keywords that tell one scanner from another."""

# In DICOM's order.
_DEVICE = ("Modality", "Manufacturer", "InstitutionName", "StationName", "InstitutionalDepartmentName")
_DEVICE += ("ManufacturerModelName", "ScanningSequence", "SequenceVariant", "MRAcquisitionType", "SliceThickness")
_DEVICE += ("KVP", "MagneticFieldStrength", "DeviceSerialNumber", "SoftwareVersions", "ConvolutionKernel")
_DEVICE += ("ReceiveCoilName", "TransmitCoilName")
_NUMBERS = {"DS", "FL", "FD", "IS", "US", "SS", "UL", "SL"}
# Above what any magnet reaches in tesla: some scanners write gauss.
_GAUSS = 100.0
_NOMINAL = 0.5


def check_tags(tags: Sequence[str]) -> tuple[str, ...]:
    """``tags`` in DICOM's order, each once; they tell of the device and of nothing else.

    Args:
        tags: DICOM keywords: of the scanner (Manufacturer, ManufacturerModelName, StationName, InstitutionName,
            InstitutionalDepartmentName, Modality, MagneticFieldStrength, DeviceSerialNumber, SoftwareVersions,
            ReceiveCoilName, TransmitCoilName), or of how it makes images (ScanningSequence, SequenceVariant,
            MRAcquisitionType, KVP, ConvolutionKernel, SliceThickness).

    Raises:
        GrataError: one is no keyword, or none of these: it could tell of the patient, the visit or a date, or hold
            free text.
    """
    if isinstance(tags, str) or not isinstance(tags, Sequence) or not tags:
        raise GrataError(f"must be a list of DICOM keywords such as {list(SCANNER)}, got {tags!r}.", key="bank#tags")
    for keyword in tags:
        if keyword not in _DEVICE:
            if not _is_keyword(keyword):
                raise GrataError(f"{keyword!r} is not a DICOM keyword. Give such as {', '.join(SCANNER)}.", "bank#tags")
            raise GrataError(
                f"{keyword} is not taken: names of files would be made of it, and only what tells of the "
                f"device may be in them. Give some of {', '.join(_DEVICE)}.",
                key="bank#tags",
            )
    return tuple(keyword for keyword in _DEVICE if keyword in tags)


def scanner_tags(meta: Mapping[str, Any], tags: Sequence[str], item: int | None = None) -> dict[str, str]:
    """Values of tags, of a scan's metadata or else of its file's header, by keyword; those that are not there are left
    out.

    Text loses its padding. A magnetic field is taken to the nearest half tesla from 1 T on, since software versions
    write 1.5 as 1.494 too; below, and for other numbers, two significant digits count.

    Args:
        meta: as MONAI's ITKReader (``0008|0070``) or PydicomReader (``00080070``) give it, or with keywords; its
            ``filename_or_obj`` is a file of the series, or its folder.
        tags: keywords.
        item: place in the batch that ``meta`` was collated of; None: it is of a single scan.
    """
    from monai.utils import ImageMetaKey

    found = {keyword: _text(keyword, _in_meta(meta, keyword, item)) for keyword in tags}
    if not any(found.values()):
        header = _header(_at(meta.get(ImageMetaKey.FILENAME_OR_OBJ), item), tags)
        found = {keyword: _text(keyword, header.get(keyword)) for keyword in tags}
    return {keyword: value for keyword, value in found.items() if value}


def _is_keyword(keyword: Any) -> bool:
    from pydicom.datadict import tag_for_keyword

    return isinstance(keyword, str) and tag_for_keyword(keyword) is not None


def _in_meta(meta: Mapping[str, Any], keyword: str, item: int | None) -> Any:
    from pydicom.datadict import tag_for_keyword

    number = f"{tag_for_keyword(keyword):08X}"
    for key in (f"{number[:4]}|{number[4:]}".lower(), number, keyword):
        value = meta.get(key)
        if isinstance(value, Mapping):
            value = [_at(part, item) for part in value.get("Value", ())]
        elif value is not None:
            value = _at(value, item)
        if value not in (None, "", []):
            return value
    return None


def _at(value: Any, item: int | None) -> Any:
    """The item's part of a collated value."""
    import torch

    if isinstance(value, torch.Tensor):
        value = value.tolist()
    return value[item] if item is not None and isinstance(value, list | tuple) else value


def _header(path: Any, tags: Sequence[str]) -> Mapping[str, Any]:
    """The header of a DICOM file, or of the first one in a folder; empty where there is none."""
    import pydicom

    from ..data.dicom import quiet_libraries

    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        return {}
    path = Path(path)
    files = sorted(child for child in path.iterdir() if child.is_file()) if path.is_dir() else [path]
    for file in files:
        try:
            with quiet_libraries():
                return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(tags))
        # Whatever is wrong with a file is told where it is read as an image.
        except Exception:
            continue
    return {}


def _text(keyword: str, value: Any) -> str:
    import pydicom
    from pydicom.datadict import dictionary_VR, tag_for_keyword

    values = value if isinstance(value, list | tuple | pydicom.multival.MultiValue) else [value]
    texts = [" ".join(str(v).replace("\0", " ").split()) for v in values if v is not None]
    if dictionary_VR(tag_for_keyword(keyword)) in _NUMBERS:
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
