"""Files that another library reads: damage, guesses and sizes are found before it sees them."""

import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from monai.transforms import MapTransform
from monai.utils import ensure_tuple

from .pictures import picture_size
from .volume_files import check_whole, is_volume_file

__all__ = ["CheckFilesd", "check_file"]

# Other libraries read TIFF of more kinds than Pillow does, and volumes in it.
_PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp"})


def check_file(path: str | os.PathLike[str]) -> None:
    """Check a file before another library reads it.

    Such libraries take truncated files for whole ones and a missing voxel size for 1 mm, and allocate what a header
    claims. What has another format than those checked here passes.

    Args:
        path: file; NIfTI, MetaImage, NRRD, PNG, JPEG and BMP are checked.

    Raises:
        GrataError: the file is truncated or damaged, its header leaves the size of its voxels to a guess, or it claims
            to be larger than the file can hold or than the memory.
    """
    if is_volume_file(path):
        check_whole(path)
    elif Path(path).suffix.lower() in _PICTURES:
        picture_size(path)


class CheckFilesd(MapTransform):
    """Transform that checks the files of images before a transform of another library loads them.

    Arrays, folders and names of nothing pass: the transform behind this one says what it makes of them.

    Raises:
        GrataError: raised by the call, see :func:`check_file`.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(data):
            for value in ensure_tuple(data[key]):
                if isinstance(value, str | os.PathLike) and os.path.isfile(value):
                    check_file(value)
        return dict(data)
