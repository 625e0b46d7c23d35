"""Compare the sizes that compressed frames have with that of their image, before a decoder allocates them."""

import itertools
import struct

from pydicom import Dataset
from pydicom.encaps import generate_frames
from pydicom.uid import RLELossless

__all__ = ["BrokenFileError", "check_frames"]

_JPEG, _JPEG_2000 = b"\xff\xd8", b"\xff\x4f\xff\x51"
# Markers of JPEG and JPEG-LS after which the size of the frame stands.
_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
# Bytes that may precede the codestream of JPEG 2000 in its file format.
_LARGEST_BOXES = 2**12
# Length of the header of a frame of RLE: the number of its segments and where up to 15 of them begin.
_RLE_HEADER = 64
# Most that an encoder adds to a segment, for an even length.
_PADDING = 1


class BrokenFileError(Exception):
    """A DICOM image file that cannot be used; the message says why without naming the file."""


def check_frames(image: Dataset) -> None:
    """Check that no compressed frame has another size than the header of its image.

    Raises:
        BrokenFileError: a frame names another size or number of components, or would be inflated to another size.
    """
    is_rle = image.file_meta.TransferSyntaxUID == RLELossless
    expected = (int(image.Rows), int(image.Columns), int(image.get("SamplesPerPixel") or 1))
    for frame in generate_frames(image.PixelData, number_of_frames=int(image.get("NumberOfFrames") or 1)):
        if is_rle:
            _check_rle(frame, expected[0] * expected[1], expected[2] * -(-int(image.BitsAllocated) // 8))
            continue
        found = _jpeg_2000_size(frame) or _jpeg_size(frame)
        if found is not None and found != expected:
            raise BrokenFileError(
                f"a compressed frame has {found[0]} × {found[1]} pixels of {found[2]} components, but its header "
                f"announces {expected[0]} × {expected[1]} of {expected[2]}"
            )


def _check_rle(frame: bytes, pixels: int, planes: int) -> None:
    """Check that each segment of a frame of RLE, one for each byte of a pixel, is inflated to a byte for each pixel."""
    header = struct.unpack("<16I", frame[:_RLE_HEADER].ljust(_RLE_HEADER, b"\0"))
    places = [*header[1 : planes + 1], len(frame)]
    if header[0] != planes or places[0] < _RLE_HEADER or places != sorted(places):
        raise BrokenFileError("a frame compressed by RLE has other segments than one for each byte of a pixel")
    for start, end in itertools.pairwise(places):
        size = _inflated_size(memoryview(frame)[start:end], pixels + _PADDING)
        if not pixels <= size <= pixels + _PADDING:
            amount = "more" if size > pixels else f"{size} bytes"
            raise BrokenFileError(
                f"a segment of a frame compressed by RLE holds {amount}, but its header announces {pixels} pixels"
            )


def _inflated_size(segment: memoryview, most: int) -> int:
    """Return to how many bytes run lengths are inflated, without inflating them; any number above ``most`` for more."""
    size, place, end = 0, 0, len(segment)
    while place < end and size <= most:
        length = segment[place]
        if length < 128:
            size += min(length + 1, end - place - 1)
            place += length + 2
        elif length > 128:
            size += 257 - length if place + 1 < end else 0
            place += 2
        else:
            place += 1
    return size


def _jpeg_2000_size(frame: bytes) -> tuple[int, int, int] | None:
    """Return rows, columns and components of a frame of JPEG 2000, None for any other."""
    start = frame.find(_JPEG_2000, 0, _LARGEST_BOXES)
    values = frame[start + 8 : start + 42]
    if start < 0 or len(values) < 34:
        return None
    right, bottom, left, top, *_, components = struct.unpack(">8IH", values)
    return bottom - top, right - left, components


def _jpeg_size(frame: bytes) -> tuple[int, int, int] | None:
    """Return rows, columns and components of a frame of JPEG or JPEG-LS, None for any other."""
    place = 2 if frame.startswith(_JPEG) else len(frame)
    while place + 10 <= len(frame):
        _, marker, length, _, rows, columns, components = struct.unpack(">BBHBHHB", frame[place : place + 10])
        if marker in _FRAME_MARKERS:
            return rows, columns, components
        # A fill byte precedes a marker.
        place += 1 if marker == 0xFF else 2 + length
    return None
