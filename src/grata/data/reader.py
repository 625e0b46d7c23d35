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

__all__ = ["ScanReader"]


class ScanReader(ImageReader):
    """Read a NIfTI file or the files of one DICOM series, never with a guessed geometry.

    A DICOM series is checked as in :func:`grata.data.discover` and rescaled by its slope and intercept. The metadata
    hold geometry alone, nothing of the headers' text.

    Example:

        >>> from monai.transforms import LoadImaged
        >>> load = LoadImaged(keys="image", reader=ScanReader, ensure_channel_first=True)
        >>> volume = load(case)["image"]  # case as grata.data.discover returns it
    """

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
            The float32 array, (columns, rows, slices) for DICOM and as stored for NIfTI, and the metadata with the RAS
            ``affine`` in mm.

        Raises:
            GrataError: a file cannot be read, or a DICOM series is not one regular volume.
        """
        if len(img) == 1 and is_nifti(img[0]):
            array, affine = read_nifti(img[0])
        else:
            volume = read_volume(img)
            array, affine = volume.array, volume.get_affine("RAS")
        meta = {
            MetaKeys.AFFINE: affine,
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.asarray(array.shape[:3]),
            # MONAI's mark of an array without channel axis.
            MetaKeys.ORIGINAL_CHANNEL_DIM: math.nan if array.ndim <= 3 else -1,
            MetaKeys.SPACE: SpaceKeys.RAS,
        }
        return np.ascontiguousarray(array), meta
