"""MONAI's reader of a scan: NIfTI, MetaImage, NRRD, DICOM series or picture."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from .dicom import read_volume
from .pictures import is_label_picture, read_label_picture, read_picture
from .volume_files import is_volume_file, read_volume_file

__all__ = ["ScanReader"]


class ScanReader(ImageReader):
    """Reader of a volume file (NIfTI, MetaImage, NRRD), the files of one DICOM series, or a picture.

    It never guesses a geometry. A DICOM series is checked as in :func:`grata.data.discover`, and rescaled by its slope
    and intercept. The EXIF orientation of a picture is applied, and its transparent parts become black. The metadata
    hold only the geometry and none of the headers' text.

    Args:
        label: whether to read pictures as label maps: indices into a palette instead of its colours, 0 and 1 for a
            picture of one bit, and one value per pixel required. Other formats are not affected.

    Example:

        >>> from monai.transforms import LoadImaged
        >>> load = LoadImaged(keys="image", reader=ScanReader, ensure_channel_first=True)
        >>> volume = load(case)["image"]  # doctest: +SKIP
    """

    def __init__(self, label: bool = False) -> None:
        self.label = label

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Return True: files are recognized by their content."""
        return True

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> tuple[str, ...]:
        """Return the paths.

        Nothing is read yet: on an exception raised here, MONAI would try its other readers, which accept an incomplete
        series.

        Args:
            data: path of a file, or paths of the files of one DICOM series.
            kwargs: ignored; part of MONAI's interface.
        """
        return tuple(str(path) for path in ensure_tuple(data))

    def get_data(self, img: Sequence[str]) -> tuple[np.ndarray, dict]:
        """Read the array and the metadata of a scan.

        Args:
            img: paths of the files, as :meth:`read` returns them.

        Returns:
            The float32 array and the metadata with the RAS ``affine`` in mm. The array's axes are (columns, rows,
            slices) for DICOM. They are as stored for other volumes, without the third axis of a single slice. They are
            (rows, columns) or (rows, columns, 3) for pictures, whose values are in 0..255, or in the stored range where
            it has more than 8 bits, and whose affine is the identity, in pixels.

        Raises:
            GrataError: a file cannot be read, or a DICOM series is not one regular volume.
        """
        spatial_dims = 3
        if len(img) == 1 and is_volume_file(img[0]):
            array, affine = read_volume_file(img[0])
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
            # NaN is MONAI's mark of an array without a channel axis.
            MetaKeys.ORIGINAL_CHANNEL_DIM: math.nan if array.ndim <= spatial_dims else -1,
            MetaKeys.SPACE: SpaceKeys.RAS,
        }
        return np.ascontiguousarray(array), meta
