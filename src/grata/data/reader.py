"""Read one scan for MONAI."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from .dicom import read_volume
from .nifti import is_nifti, read_nifti
from .pictures import is_label_picture, read_label_picture, read_picture

__all__ = ["ScanReader"]


class ScanReader(ImageReader):
    """Read a NIfTI file, the files of one DICOM series, or a picture, never with a guessed geometry.

    A DICOM series is checked as in :func:`grata.data.discover` and rescaled by its slope and intercept. A picture is
    turned as its EXIF orientation says; what is transparent in it is laid on black. The metadata hold geometry alone,
    nothing of the headers' text.

    Args:
        label: read pictures as label maps: a palette's indices in place of its colours, the 0 and 1 of a picture of one
            bit, and only what has a single value a pixel. Nothing else is read differently.

    Example:

        >>> from monai.transforms import LoadImaged
        >>> load = LoadImaged(keys="image", reader=ScanReader, ensure_channel_first=True)
        >>> volume = load(case)["image"]  # case as grata.data.discover returns it
    """

    def __init__(self, label: bool = False) -> None:
        self.label = label

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Return True: files are told by their content."""
        return True

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> tuple[str, ...]:
        """Return the paths.

        Nothing is read yet, because MONAI answers an exception raised here by trying its other readers, which take
        an incomplete series for a good one.
        """
        return tuple(str(path) for path in ensure_tuple(data))

    def get_data(self, img: Sequence[str]) -> tuple[np.ndarray, dict]:
        """Read array and metadata.

        Args:
            img: paths, as :meth:`read` returns them.

        Returns:
            The float32 array, (columns, rows, slices) for DICOM, as stored for NIfTI but without the third axis of a
            single slice, and (rows, columns) or (rows, columns, 3) for pictures, in 0..255 or the stored range of more
            than 8 bits; and the metadata with the RAS ``affine`` in mm. That of a picture is the identity, in pixels.

        Raises:
            GrataError: a file cannot be read, or a DICOM series is not one regular volume.
        """
        spatial_dims = 3
        if len(img) == 1 and is_nifti(img[0]):
            array, affine = read_nifti(img[0])
            if array.ndim == 2 or array.shape[2] == 1:
                array, spatial_dims = array.reshape(*array.shape[:2], *array.shape[3:]), 2
        elif len(img) == 1 and is_label_picture(img[0]):
            array = read_label_picture(img[0]) if self.label else read_picture(img[0])
            affine, spatial_dims = np.eye(4), 2
        else:
            volume = read_volume(img)
            array, affine = volume.array, volume.get_affine("RAS")
        meta = {
            MetaKeys.AFFINE: affine,
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.asarray(array.shape[:spatial_dims]),
            # MONAI's mark of an array without channel axis.
            MetaKeys.ORIGINAL_CHANNEL_DIM: math.nan if array.ndim <= spatial_dims else -1,
            MetaKeys.SPACE: SpaceKeys.RAS,
        }
        return np.ascontiguousarray(array), meta
