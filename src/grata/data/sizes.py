"""Sizes that headers claim, checked against the file before anything is allocated."""

import gzip
import math
from collections.abc import Sequence
from typing import BinaryIO

from ..errors import GrataError

__all__ = ["LARGEST_PICTURE", "LARGEST_VOLUME", "check_picture_size", "check_volume_size", "read_to_end"]

LARGEST_VOLUME = 2**30
"""Most voxels of a volume, channels included: 4 GiB in single precision."""
LARGEST_PICTURE = 2**26
"""Most pixels of a picture: 0.8 GiB in colour and single precision."""

# What one byte of deflate can become at most.
_DEFLATE = 1032
_CHUNK = 2**20


def check_volume_size(
    name: str, shape: Sequence[int], itemsize: int, stored: int, compressed: bool, offset: int
) -> None:
    """Check that a file can hold the voxels that its header claims, and that they are not too many.

    Args:
        name: format and path of the file, to begin a message with.
        shape: sizes of all axes that the header claims.
        itemsize: number of bytes of a voxel.
        stored: number of bytes of the file of the voxels.
        compressed: whether they are compressed by deflate.
        offset: number of bytes before the voxels; those of a compressed file may be compressed too.

    Raises:
        GrataError: the voxels are too many, or more than the file can hold.
    """
    voxels = math.prod(int(size) for size in shape)
    claimed = f"{' × '.join(str(size) for size in shape)} voxels by its header"
    if offset + voxels * itemsize > stored * (_DEFLATE if compressed else 1):
        raise GrataError(
            f"{name} is truncated or damaged: it has {claimed}, which its {stored} bytes cannot hold. Copy or export "
            "it again."
        )
    if voxels > LARGEST_VOLUME:
        raise GrataError(
            f"{name} has {claimed}, more than {LARGEST_VOLUME}, which would fill the memory. Crop or resample it, or "
            "leave it out."
        )


def check_picture_size(name: str, size: tuple[int, int]) -> None:
    """Check that a picture has not too many pixels.

    Args:
        name: format and path of the file, to begin a message with.
        size: its number of columns and rows.

    Raises:
        GrataError: the pixels are too many.
    """
    if math.prod(size) > LARGEST_PICTURE:
        raise GrataError(
            f"{name} has more than {LARGEST_PICTURE / 1e6:.0f} megapixels by its header ({size[0]} × {size[1]}), which "
            "would fill the memory. Export it smaller, or leave it out."
        )


def read_to_end(file: BinaryIO | gzip.GzipFile) -> int:
    """Read the rest of a file: the check sum of a compressed one stands at its end.

    Returns:
        The number of bytes of the rest.

    Raises:
        Exception: the rest is damaged, or the check sum another.
    """
    count = 0
    while block := file.read(_CHUNK):
        count += len(block)
    return count
