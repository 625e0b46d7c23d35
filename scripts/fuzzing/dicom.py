"""DICOM files as lists of elements, which may say of themselves what is not so."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from io import BytesIO
from random import Random

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage

from .mutate import damage, odd_integer, zeros

__all__ = ["NAME", "SHAPE", "broken_series", "encoded", "enhanced", "series"]

NAME = "Mustermann"
"""Name of the patient, which nothing may show."""

SHAPE = (6, 5, 4)
"""Columns, rows and slices."""

_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_ITEM = 0xFFFEE000
_SYNTAX, _ROWS, _COLUMNS, _PIXELS = 0x00020010, 0x00280010, 0x00280011, 0x7FE00010
_DEFLATED, _RLE = b"1.2.840.10008.1.2.1.99\0", b"1.2.840.10008.1.2.5\0"
_SYNTAXES = (
    *(_DEFLATED, _RLE, b"1.2.840.10008.1.2\0", b"1.2.840.10008.1.2.2\0", b"1.2.840.10008.1.2.4.50"),
    *(b"1.2.840.10008.1.2.4.70", b"1.2.840.10008.1.2.4.80", b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.4.201\0"),
    *(b"1.2.840.10008.1.2.4.100\0", b"1.2.840.113619.5.2", b"1.2.3", b"", b"\0", b"no syntax", b"9" * 64),
)
_VALUES = (
    *(b"", b" ", b"\\", b"\\\\\\\\\\", b"0", b"-1", b"1", b"nan", b"inf", b"1e400", b"1e-400", b"abc", b"\xff\xfe"),
    *(b"\0\0", b"\1\0", b"\xff\xff", b"0\\0", b"1\\0\\0\\1\\0\\0", b"nan\\nan\\nan", b"9" * 400, b"1.2.3", b"1\0"),
    *(
        b"\x1b$)C\x0e",
        b"ISO_IR 192",
        b"ISO 2022 IR 87",
        b"nonsense",
        b"undefined ",
        b"2026-13-45",
        b"s" * 60,
        bytes(4096),
    ),
    *(b"^^^^", b"=\\=", b"MR", b"CT\\MR", b"ORIGINAL\\PRIMARY", b"DERIVED\\SECONDARY\\MOSAIC", b"MONOCHROME1"),
    *(b"RGB", b"PALETTE COLOR", b"\x10\0", b"\x20\0", b"\x0c\0", b"\x07\0", struct.pack("<I", 2**32 - 1)),
)


@dataclass(frozen=True)
class Element:
    """An element in explicit little endian.

    Attributes:
        tag: group and element.
        vr: value representation, two bytes.
        value: bytes, or the items of a sequence.
        claim: length that the header claims; None: that of the value.
    """

    tag: int
    vr: bytes
    value: bytes | list[list[Element]]
    claim: int | None = None

    def encode(self) -> bytes:
        """Return the element as it stands in a file."""
        value = self.value
        if not isinstance(value, bytes):
            items = [b"".join(element.encode() for element in item) for item in value]
            value = b"".join(_tag(_ITEM) + struct.pack("<I", len(item)) + item for item in items)
        claim = len(value) if self.claim is None else self.claim
        if self.vr in _LONG:
            return _tag(self.tag) + self.vr + struct.pack("<HI", 0, claim % 2**32) + value
        return _tag(self.tag) + self.vr + struct.pack("<H", claim % 2**16) + value


def _tag(tag: int) -> bytes:
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF)


def _parse(data: bytes) -> list[Element]:
    found, at = [], 0
    while at < len(data):
        group, element = struct.unpack_from("<HH", data, at)
        vr = data[at + 4 : at + 6]
        begin, length = at + 8, int.from_bytes(data[at + 6 : at + 8], "little")
        if vr in _LONG:
            begin, length = at + 12, int.from_bytes(data[at + 8 : at + 12], "little")
        at = begin + length
        value = data[begin:at]
        found.append(Element(group << 16 | element, vr, _items(value) if vr == b"SQ" else value))
    return found


def _items(data: bytes) -> list[list[Element]]:
    items, at = [], 0
    while at < len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        items.append(_parse(data[at + 8 : at + 8 + length]))
        at += 8 + length
    return items


def _encoded(elements: Iterable[Element]) -> bytes:
    return bytes(128) + b"DICM" + b"".join(element.encode() for element in elements)


def _saved(dataset: Dataset) -> list[Element]:
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return _parse(buffer.getvalue()[132:])


def _dataset(uid: str, number: int) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, f"{uid}.1.{number}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", uid
    dataset.FrameOfReferenceUID = f"{uid}.2"
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = f"{NAME}^Erika", "KH-4711", "19610824"
    dataset.PatientSex, dataset.AccessionNumber, dataset.ReferringPhysicianName = "F", "ACC9988", "Eisenbart"
    dataset.StudyID, dataset.StudyDate, dataset.StudyTime = "1", "20170503", "101112"
    dataset.Modality, dataset.SeriesNumber, dataset.SeriesDescription = "MR", 7, "T1"
    dataset.Manufacturer, dataset.InstanceNumber, dataset.SpecificCharacterSet = "Acme", number, "ISO_IR 192"
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.Rows, dataset.Columns = SHAPE[1], SHAPE[0]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    return dataset


def series(uid: str = "1.2.40") -> list[list[Element]]:
    """Return the slices of a good series; slice k holds ``k * 100`` and the numbers that follow."""
    slices = []
    for k in range(SHAPE[2]):
        dataset = _dataset(uid, k + 1)
        dataset.PixelSpacing, dataset.SliceThickness = [1.5, 1.5], 2.5
        dataset.ImageOrientationPatient, dataset.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-9, -8, 2.5 * k]
        dataset.PixelData = np.arange(k * 100, k * 100 + SHAPE[0] * SHAPE[1], dtype=np.uint16).tobytes()
        slices.append(_saved(dataset))
    return slices


def enhanced(uid: str = "1.2.41") -> list[list[Element]]:
    """Return a good enhanced multi-frame object."""
    dataset = _dataset(uid, 1)
    dataset.SOPClassUID, dataset.NumberOfFrames = EnhancedMRImageStorage, SHAPE[2]
    dataset.ImageType, dataset.ContentDate, dataset.ContentTime = ["ORIGINAL", "PRIMARY", "M", "NONE"], "20170503", "10"
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing, measures.SliceThickness = [1.5, 1.5], 2.5
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for k in range(SHAPE[2]):
        frame, content, position, values = (Dataset() for _ in range(4))
        content.StackID, content.InStackPositionNumber, content.DimensionIndexValues = "1", k + 1, [k + 1]
        position.ImagePositionPatient = [-9, -8, 2.5 * k]
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = k + 1, 0, "US"
        frame.FrameContentSequence, frame.PlanePositionSequence = [content], [position]
        frame.PixelValueTransformationSequence = [values]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    organization, index = Dataset(), Dataset()
    organization.DimensionOrganizationUID = index.DimensionOrganizationUID = "1.2.42"
    index.DimensionIndexPointer, index.FunctionalGroupPointer = 0x00209057, 0x00209111
    dataset.DimensionOrganizationSequence, dataset.DimensionIndexSequence = [organization], [index]
    dataset.PixelData = np.arange(SHAPE[0] * SHAPE[1] * SHAPE[2], dtype=np.uint16).tobytes()
    return [_saved(dataset)]


def encoded(slices: Iterable[Iterable[Element]]) -> list[bytes]:
    """Return the files of a series."""
    return [_encoded(elements) for elements in slices]


_ADDED = (
    Element(0x00280008, b"IS", b"0"),
    Element(0x00280008, b"IS", b"99999999"),
    Element(0x00283000, b"SQ", []),
    Element(0x00283000, b"SQ", [[]]),
    Element(0x52009229, b"SQ", []),
    Element(0x52009229, b"SQ", [[]]),
    Element(0x52009230, b"SQ", [[], []]),
    Element(0x00409096, b"SQ", [[]]),
    Element(0x00280120, b"SS", b"\xff\xff"),
    Element(0x00280103, b"US", b"\1\0\1\0"),
    Element(0x00280006, b"US", b"\1\0"),
    Element(0x60000010, b"US", b"\xff\xff"),
    Element(0x60003000, b"OW", bytes(10)),
    Element(0x7FE00008, b"OF", bytes(40)),
    Element(0x7FE00009, b"OD", bytes(80)),
    Element(0x00291010, b"OB", bytes(64)),
    Element(0x00291010, b"UN", b"x" * 200, 0xFFFFFFFF),
    Element(0x00081140, b"SQ", b"", 0xFFFFFFFF),
    Element(0x00081140, b"SQ", b"x" * 16, 0xFFFFFFFF),
    Element(0x00180088, b"DS", b"-2.5"),
    Element(0x00180088, b"DS", b"inf"),
    Element(0x00200110, b"IS", b"1.5"),
    Element(0x00181060, b"DS", b"nan"),
)


def _nested(rng: Random) -> Element:
    """Return sequences within each other, around nothing or a value that is none, with their lengths or without."""
    depth, whole = rng.choice((10, 30, 60, 400)), rng.random() < 0.5
    odd = (
        Element(0x00200032, b"DS", b"abc"),
        Element(0x00080005, b"US", b"1\0"),
        Element(0x00080005, b"CS", b"undefined "),
    )
    inner = rng.choice((b"", *(element.encode() + Element(0x00100010, b"PN", b"A^B ").encode() for element in odd)))
    for _ in range(depth):
        item = struct.pack("<I", len(inner) if whole else 2**32 - 1) + inner + (b"" if whole else _end(0xFFFEE00D))
        value = _tag(_ITEM) + item + (b"" if whole else _end(0xFFFEE0DD))
        element = Element(0x00081140, b"SQ", value, None if whole else 2**32 - 1)
        inner = element.encode()
    return element


def _end(tag: int) -> bytes:
    return _tag(tag) + bytes(4)


def _everywhere(elements: list[Element]) -> list[tuple[list[Element], int]]:
    """Return each element as its list and its place there, those inside sequences as well."""
    found = []
    for place, element in enumerate(elements):
        found.append((elements, place))
        if isinstance(element.value, list):
            found += [inner for item in element.value for inner in _everywhere(item)]
    return found


def _change(elements: list[Element], rng: Random) -> str:
    """Change one element in place, and return in words what was done."""
    holder, place = rng.choice(_everywhere(elements))
    element = holder[place]
    shown = f"({element.tag >> 16:04X},{element.tag & 0xFFFF:04X})"
    how = rng.choice(("value",) * 6 + ("vr", "length", "remove", "remove", "twice", "last", "add", "add", "deep"))
    if how == "value":
        value = rng.choice(_VALUES) if rng.random() < 0.7 else struct.pack("<q", odd_integer(rng) % 2**63)[:2]
        holder[place] = replace(element, value=value)
        return f"{shown} is {value[:20]!r}"
    if how == "vr":
        holder[place] = replace(element, vr=rng.choice((b"SQ", b"UN", b"US", b"FD", b"DS", b"UI", b"OW", b"??", b"AT")))
    elif how == "length":
        holder[place] = replace(element, claim=rng.choice((0, 1, 3, 60, 65534, 2**31 - 2, 2**32 - 2, 2**32 - 1)))
    elif how == "remove":
        del holder[place]
    elif how == "twice":
        holder.insert(place, element)
    elif how == "last":
        holder.append(holder.pop(place))
    else:
        added = rng.choice(_ADDED) if how == "add" else _nested(rng)
        elements.insert(next((i for i, e in enumerate(elements) if e.tag >= added.tag), len(elements)), added)
        return f"added ({added.tag >> 16:04X},{added.tag & 0xFFFF:04X}), {how}"
    return f"{shown} {how}"


def _put(elements: list[Element], tag: int, value: bytes, **more: int) -> None:
    for place, element in enumerate(elements):
        if element.tag == tag:
            elements[place] = replace(element, value=value, vr=b"OB" if tag == _PIXELS else element.vr, **more)


def _fragments(*fragments: bytes) -> bytes:
    """Return pixel data in fragments, after an empty table of offsets."""
    whole = [_tag(_ITEM) + struct.pack("<I", len(part)) + part for part in (b"", *fragments)]
    return b"".join(whole) + _end(0xFFFEE0DD)


def _claim(elements: list[Element], rng: Random) -> tuple[bytes, str]:
    """Return a file whose syntax promises other pixels than it holds, many of them perhaps."""
    how = rng.choice(("syntax", "syntax", "fragments", "runs", "sizes", "deflated", "blown up"))
    if how in ("runs", "sizes", "fragments"):
        side = rng.choice((64, 16000, 30000, 65535))
        for tag in (_ROWS, _COLUMNS):
            _put(elements, tag, struct.pack("<H", side))
    if how == "runs":
        # 128 zeros by two bytes
        frame = struct.pack("<16I", 2, 64, 64 + 2000, *[0] * 13) + b"\x81\0" * 2000
        _put(elements, _PIXELS, _fragments(frame), claim=2**32 - 1)
        _put(elements, _SYNTAX, _RLE)
    elif how in ("syntax", "fragments"):
        _put(elements, _SYNTAX, rng.choice(_SYNTAXES))
        if how == "fragments":
            parts = [rng.randbytes(rng.choice((0, 2, 64, 200))) for _ in range(rng.choice((0, 1, 4)))]
            _put(elements, _PIXELS, _fragments(*parts), claim=2**32 - 1)
    elif how in ("deflated", "blown up"):
        return _deflated(elements, rng, 64 if how == "blown up" else 0), how
    return _encoded(elements), how


def _deflated(elements: list[Element], rng: Random, chunks: int) -> bytes:
    _put(elements, _SYNTAX, _DEFLATED)
    meta = [element for element in elements if element.tag >> 16 == 2]
    rest = b"".join(element.encode() for element in elements if element.tag >> 16 != 2)
    # a block that is stored, not compressed, may stand before others
    stored = b"\0" + struct.pack("<HH", len(rest), len(rest) ^ 0xFFFF) + rest
    packed = stored + zeros(chunks)
    return _encoded(meta) + (damage(packed, rng)[0] if rng.random() < 0.3 else packed)


def broken_series(rng: Random) -> tuple[list[bytes], str]:
    """Return the files of a series with faults in one slice or in all, and in words what was done."""
    slices = enhanced() if rng.random() < 0.3 else series()
    files = [_encoded(elements) for elements in slices]
    how = rng.choice(("elements",) * 6 + ("bytes", "bytes", "claim", "claim", "no preamble"))
    everywhere = rng.random() < (0.8 if how == "claim" else 0.5)
    chosen = range(len(slices)) if everywhere else [rng.randrange(len(slices))]
    seed, done = rng.random(), ""
    for index in chosen:
        # the same fault in each
        again = Random(seed)
        if how == "elements":
            done = ", ".join(_change(slices[index], again) for _ in range(again.choice((1, 1, 1, 2, 4))))
            files[index] = _encoded(slices[index])
        elif how == "bytes":
            files[index], done = damage(files[index], again)
        elif how == "claim":
            files[index], done = _claim(slices[index], again)
        else:
            files[index], done = files[index][132:], "no preamble"
    return files, f"{len(chosen)} of {len(files)}: {done}"
