"""Compare the sizes that compressed frames name with that of their image, before a decoder allocates them."""

import struct

from pydicom import Dataset
from pydicom.encaps import generate_frames

__all__ = ["BrokenFileError", "check_frames"]

_JPEG, _JPEG_2000 = b"\xff\xd8", b"\xff\x4f\xff\x51"
# Markers of JPEG and JPEG-LS after which the size of the frame stands.
_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
# Bytes that may precede the codestream of JPEG 2000 in its file format.
_LARGEST_BOXES = 2**12


class BrokenFileError(Exception):
    """A DICOM image file that cannot be used; the message says why without naming the file."""


def check_frames(image: Dataset) -> None:
    """Check that no compressed frame has another size than the header of its image.

    Raises:
        BrokenFileError: a frame names another size or number of components.
    """
    expected = (int(image.Rows), int(image.Columns), int(image.get("SamplesPerPixel") or 1))
    for frame in generate_frames(image.PixelData, number_of_frames=int(image.get("NumberOfFrames") or 1)):
        found = _jpeg_2000_size(frame) or _jpeg_size(frame)
        if found is not None and found != expected:
            raise BrokenFileError(
                f"a compressed frame has {found[0]} × {found[1]} pixels of {found[2]} components, but its header "
                f"announces {expected[0]} × {expected[1]} of {expected[2]}"
            )


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
