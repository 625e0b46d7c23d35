"""Read the data set of one DICOM file, whatever form it is stored in, without more memory than it can fill."""

import io
import logging
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pydicom
from pydicom import Dataset
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from .dicom_frames import BrokenFileError, check_frames

__all__ = [
    "BrokenFileError",
    "EmptyFileError",
    "Pixels",
    "claimed_bytes",
    "is_named_dicom",
    "quiet_libraries",
    "read_file",
    "read_header",
]

# Bytes to which a deflated header may be inflated; headers of a thousand frames have less than ten MiB.
_LARGEST_HEADER = 2**26
# Deflate stores no more than 258 bytes in two bits.
_DEFLATE_RATIO = 1032
_PIXEL_TAGS = {0x7FE00008, 0x7FE00009, 0x7FE00010}
_UNDEFINED_LENGTH = 0xFFFFFFFF
# Images have sequences within sequences down to the sixth level or so; libraries go down by recursion.
_DEEPEST = 32
# Where all is said frame by frame, what is shared may be an empty item, which must be there.
_FUNCTIONAL_GROUPS = {0x52009229, 0x52009230}
# Bytes that the empty items of a sequence may take.
_EMPTY_ITEMS = 64
_ITEM_TAGS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")


class EmptyFileError(BrokenFileError):
    """A file of 0 bytes whose name a DICOM file may have."""


def is_named_dicom(path: str | os.PathLike[str]) -> bool:
    """Return whether a file's name has an extension of DICOM (``.dcm``, ``.dicom``, ``.ima``)."""
    return Path(path).suffix.lower() in {".dcm", ".dicom", ".ima"}


class Pixels(NamedTuple):
    """Pixel data of a file, as far as their beginning shows.

    Attributes:
        size: greatest number of bytes that they can have.
        encapsulated: whether they are compressed.
    """

    size: int
    encapsulated: bool


def read_header(path: str | os.PathLike[str]) -> tuple[Dataset, Pixels | None] | None:
    """Read a file up to its pixel data.

    Args:
        path: path of any file.

    Returns:
        The header, whose ``file_meta`` names a transfer syntax, and the pixel data, None where there are none; or None
        for a file that is not DICOM.

    Raises:
        BrokenFileError: the file is DICOM by content or name, but empty or without a header, or its sequences are
            nested too deep.
        Exception: pydicom raises exceptions of any kind for a damaged header.
    """
    with quiet_libraries(), open(path, "rb") as file:
        if not _is_dicom(file, path):
            return None
        header, stream = _parse(file, stop_before_pixels=True)
        left = os.fstat(file.fileno()).st_size - file.tell()
        if isinstance(stream, _Inflated):
            left = stream.left(left)
        return header, _pixels(stream, left)


def read_file(path: str | os.PathLike[str], stop_before_pixels: bool = False) -> Dataset:
    """Read a DICOM image file, without sequences that have no items or empty ones, which mean nothing.

    Args:
        path: path of the file.
        stop_before_pixels: whether to leave out the pixel data and what follows them.

    Raises:
        Exception: as for :func:`read_header`.
    """
    with open(path, "rb") as file:
        if not _is_dicom(file, path):
            raise BrokenFileError("it is no longer a DICOM file")
        whole, stream = _parse(file, stop_before_pixels)
        if isinstance(stream, _Inflated) and not stop_before_pixels:
            stream.limit += claimed_bytes(whole, int(whole.get("NumberOfFrames") or 1))
            # What follows the pixel data is not needed, and may be inflated without end.
            whole.update(read_dataset(stream, False, True, stop_when=lambda tag, *_: tag not in _PIXEL_TAGS))
    if not stop_before_pixels and whole.file_meta.TransferSyntaxUID.is_encapsulated:
        check_frames(whole)
    for dataset in (whole, *(whole.get("SharedFunctionalGroupsSequence") or ())):
        _drop_empty_sequences(dataset)
    return whole


def claimed_bytes(header: Dataset, frames: int) -> int:
    """Return the number of bytes of the decoded pixel data that a header announces."""
    samples = int(header.get("SamplesPerPixel") or 1)
    pixels = int(header.Rows) * int(header.Columns) * frames * samples
    return pixels * int(header.get("BitsAllocated") or 16) // 8


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Suppress the warnings and log messages of pydicom and highdicom, whose paths and values may name the patient.

    It must hold as long as elements are accessed, not only while a file is read: pydicom decodes an element, and tells
    of its value, when it is accessed first. As ``@quiet_libraries()`` it holds for a whole function.
    """
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


class _Inflated(io.BytesIO):
    """Deflated data, inflated no further than it is read.

    Attributes:
        limit: number of bytes that may be inflated.
    """

    def __init__(self, file: BinaryIO, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self._file, self._inflater = file, zlib.decompressobj(-zlib.MAX_WBITS)

    def left(self, packed: int) -> int:
        """Return how many bytes can follow at most, with ``packed`` bytes of the file that were not read yet."""
        return self.getbuffer().nbytes - self.tell() + _DEFLATE_RATIO * (packed + len(self._inflater.unconsumed_tail))

    def read(self, size: int | None = -1) -> bytes:
        """Return the next bytes, all of them without a ``size``.

        Raises:
            BrokenFileError: more bytes are asked for than the limit allows.
        """
        start = self.tell()
        end = self.limit + 1 if size is None or size < 0 else start + size
        self.seek(0, io.SEEK_END)
        while self.tell() < min(end, self.limit + 1) and (piece := self._inflate(end - self.tell())):
            self.write(piece)
        if self.tell() > self.limit:
            raise BrokenFileError("it is deflated, and larger than its header announces")
        self.seek(start)
        return super().read(size)

    def _inflate(self, size: int) -> bytes:
        while not self._inflater.eof:
            packed = self._inflater.unconsumed_tail or self._file.read(2**16)
            if piece := self._inflater.decompress(packed, max(1, min(size, 2**20))):
                return piece
            if not packed:
                break
        return b""


def _is_dicom(file: BinaryIO, path: str | os.PathLike[str]) -> bool:
    """Return whether a file begins as DICOM files do, with the preamble or without it.

    Raises:
        BrokenFileError: it does not, but its name or its emptiness says that it should.
    """
    head = file.read(132)
    file.seek(0)
    if not head:
        # DICOM files often have a name without extension, or a UID as their name, which ends in a number.
        if is_named_dicom(path) or re.fullmatch(r"(\.\d+)?", Path(path).suffix):
            raise EmptyFileError("it is empty (0 bytes)")
        return False
    if head[128:] == b"DICM" or _begins_with_element(head):
        return True
    if is_named_dicom(path):
        raise BrokenFileError("it is named as DICOM but has no DICOM header: it is truncated or damaged")
    return False


def _begins_with_element(head: bytes) -> bool:
    """Return whether the first bytes are an element of group 0002 or 0008, with which all data sets begin."""
    for order in "<>":
        group, element = struct.unpack(f"{order}HH", head[:4].ljust(4, b"\xff"))
        if group not in (0x0002, 0x0008):
            continue
        if re.fullmatch(rb"UL\x04\x00|UL\x00\x04|OB\x00\x00|(CS|UI|SH|LO|DA|TM|DT|IS|PN).{2}", head[4:8], re.DOTALL):
            return True
        length = int.from_bytes(head[4:8], "little")
        value = head[8 : 8 + length]
        if element == 0:
            return order == "<" and length == 4
        # Group 0002 is always explicit; the first values of group 0008 are text.
        if order == "<" and group == 0x0008 and 0 < length <= 64 and length % 2 == 0:
            return re.fullmatch(rb"[\x20-\x7e]+\x00?", value) is not None
    return False


def _parse(file: BinaryIO, stop_before_pixels: bool) -> tuple[Dataset, BinaryIO]:
    """Return the elements of a file and the stream from which they were read.

    Of a deflated file, these are the elements before the pixel data alone: how much it may be inflated follows from
    them.
    """
    meta = _deflated_meta(file)
    if meta is None:
        file.seek(0)
        header: Dataset = pydicom.dcmread(file, stop_before_pixels=stop_before_pixels, force=True)
        _complete_syntax(header)
        _check_depth(header)
        return header, file
    stream = _Inflated(file, _LARGEST_HEADER)
    # No element of a data set has a group below 0008: zeros that are inflated without end would be read as such.
    header = read_dataset(stream, False, True, stop_when=lambda tag, *_: tag in _PIXEL_TAGS or tag >> 16 < 8)
    header.set_original_encoding(False, True)
    header.file_meta = meta
    _check_depth(header)
    return header, stream


def _deflated_meta(file: BinaryIO) -> FileMetaDataset | None:
    """Return the group 0002 of a deflated file, behind which the stream then stands; None for any other file."""
    head = file.read(2**12)
    if DeflatedExplicitVRLittleEndian.encode() not in head:
        return None
    file.seek(132 if head[128:132] == b"DICM" else 0)
    meta = FileMetaDataset(read_dataset(file, False, True, stop_when=lambda tag, *_: tag >> 16 != 2))
    return meta if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian else None


def _pixels(stream: BinaryIO, left: int) -> Pixels | None:
    """Return the pixel data, which begin where the stream stands, ``left`` bytes before its end."""
    start = stream.read(12)
    order = ">" if start[:2] == b"\x7f\xe0" else "<"
    if len(start) < 8 or struct.unpack(f"{order}HH", start[:4])[0] != 0x7FE0:
        return None
    explicit = re.fullmatch(rb"[A-Z]{2}", start[4:6]) is not None
    place = slice(8, 12) if explicit else slice(4, 8)
    (length,) = struct.unpack(f"{order}I", start[place].ljust(4, b"\0"))
    left = max(0, left - (12 if explicit else 8))
    encapsulated = length == _UNDEFINED_LENGTH
    return Pixels(left if encapsulated else min(length, left), encapsulated)


def _check_depth(header: Dataset) -> None:
    """Check that sequences lie in each other no deeper than recursion can follow.

    Raises:
        BrokenFileError: they do.
    """
    level = [header]
    for depth in range(_DEEPEST + 1):
        level = [item for dataset in level for item in _items(dataset, _DEEPEST - depth)]
        if not level:
            return
    raise _too_deep()


def _items(dataset: Dataset, levels: int) -> Iterator[Dataset]:
    """Yield the items of all sequences in a data set, without those that cannot have more than ``levels`` levels."""
    for tag in set(dataset.keys()).difference(_PIXEL_TAGS):
        element = dataset.get_item(tag)
        # Each level has an item's tag, so most sequences need not be converted.
        if isinstance(element.value, bytes) and sum(map(element.value.count, _ITEM_TAGS)) <= levels:
            continue
        try:
            element = dataset[tag]
        except RecursionError as error:
            raise _too_deep() from error
        # An element that nobody needs may be malformed.
        except Exception:  # noqa: BLE001
            continue
        if element.VR == "SQ":
            yield from element.value


def _too_deep() -> BrokenFileError:
    return BrokenFileError(f"its sequences are nested more than {_DEEPEST} deep")


def _drop_empty_sequences(dataset: Dataset) -> None:
    for tag in list(dataset.keys()):
        # Elements are not decoded here: one that nobody needs may be malformed.
        element = dataset.get_item(tag)
        known = dictionary_VR(tag) if dictionary_has_tag(tag) else None
        if "SQ" in (element.VR, known) and (not element.value or _has_empty_items(dataset, tag)):
            del dataset[tag]


def _has_empty_items(dataset: Dataset, tag: BaseTag) -> bool:
    """Return whether all items of a sequence are empty."""
    value = dataset.get_item(tag).value
    if tag in _FUNCTIONAL_GROUPS or (isinstance(value, bytes) and len(value) > _EMPTY_ITEMS):
        return False
    # A sequence that nobody needs may be malformed.
    with suppress(Exception):
        return not any(len(item) for item in dataset[tag].value)
    return False


def _complete_syntax(header: Dataset) -> None:
    """Name the transfer syntax that the encoding of a data set without preamble shows."""
    if header.file_meta.get("TransferSyntaxUID"):
        return
    implicit, little_endian = header.original_encoding
    explicit = ExplicitVRLittleEndian if little_endian else ExplicitVRBigEndian
    header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
