"""Checks that refuse unusable images and labels before the network sees them."""

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.inferers import SliceInferer, SlidingWindowInferer
from monai.transforms import Compose, MapTransform
from monai.utils import ImageMetaKey, ensure_tuple, ensure_tuple_rep

from ..checks import check_count, checked, constant
from ..errors import GrataError
from .pictures import is_picture
from .volume_files import is_volume_file

__all__ = [
    "MAX_VOXELS",
    "CheckExtentd",
    "CheckLabeld",
    "CheckScand",
    "CheckVoxelsd",
    "check_max_voxels",
    "check_voxels",
    "count_windows",
]

MAX_VOXELS = 2**27
"""Number of voxels of a resampled image from which on 24 GiB of memory may not be enough: that of 512 × 512 × 512."""


class CheckScand(MapTransform):
    """Transform that checks images after they were loaded channel-first.

    Args:
        keys: keys of the images, each of shape (C, H, W[, D]).
        channels: number of channels that the network takes.
        spatial_dims: number of spatial dimensions that the network takes.
        allow_missing_keys: whether a key may be absent.

    Raises:
        GrataError: raised by the call. The image has another number of spatial dimensions or channels, NaN or infinite
            values, or the same value everywhere. The message names the case, or the file where there is no case.
    """

    def __init__(
        self, keys: KeysCollection, channels: int = 1, spatial_dims: int = 3, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.channels = channels
        self.spatial_dims = spatial_dims

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        checked = dict(data)
        for key in self.key_iterator(checked):
            self._check(checked[key], _name(checked, key))
        return checked

    def _check(self, image: torch.Tensor, name: str) -> None:
        channels, *sizes = image.shape
        shape = " × ".join(str(size) for size in sizes)
        # A volume of a single slice counts as 2D, although it still has three axes.
        spatial_dims = len(sizes) - (len(sizes) == 3 and 1 in sizes)
        if spatial_dims != self.spatial_dims:
            raise GrataError(
                f"{name} is {spatial_dims}D ({shape} voxels), but this bundle needs {self.spatial_dims}D images. Give "
                f"it a {self.spatial_dims}D image."
            )
        if spatial_dims == 2 and {channels, self.channels} == {1, 3}:
            found, needed = ("grey", "colour") if self.channels == 3 else ("in colour", "grey values")
            raise GrataError(
                f"{name} is {found} ({channels} channel{'s' * (channels > 1)}), but this bundle needs {needed} "
                f"({self.channels}). Give it an image of the kind that the network was trained on: grey and colour are "
                "not converted into each other."
            )
        if channels != self.channels:
            raise GrataError(
                f"{name} has {channels} channels, but this bundle needs {self.channels}. Give it the sequence or "
                "channel that the network was trained on, and nothing else."
            )
        values = torch.as_tensor(image)
        bad = int((~torch.isfinite(values)).sum())
        if bad:
            raise GrataError(
                f"{name} has {bad} NaN or infinite values among {values.numel()} voxels. Repair or export it again."
            )
        if values.min() == values.max():
            raise GrataError(f"{name} has the same value ({values.min().item():g}) everywhere. Export it again.")


class CheckLabeld(MapTransform):
    """Transform that checks label maps after they were loaded, before anything is computed for their scan.

    Args:
        keys: keys of the label maps, each of shape (1, H, W[, D]).
        values: label values of the classes, without the background 0.
        allow_missing_keys: whether a key may be absent.

    Raises:
        GrataError: raised by the call. The label map has several channels or a value that belongs to no class. The
            message names the file.
    """

    def __init__(self, keys: KeysCollection, values: Sequence[int], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.values = [0, *(int(value) for value in values)]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        checked = dict(data)
        for key in self.key_iterator(checked):
            meta = checked[key].meta if isinstance(checked[key], MetaTensor) else {}
            self._check(torch.as_tensor(checked[key]), meta.get(ImageMetaKey.FILENAME_OR_OBJ, key))
        return checked

    def _check(self, label: torch.Tensor, path: str) -> None:
        known = ", ".join(map(str, self.values))
        if len(label) != 1:
            raise GrataError(f"Label '{path}' has {len(label)} channels. Give one label map with the values {known}.")
        unknown = label[~torch.isin(label, torch.tensor(self.values, dtype=label.dtype))].unique()
        if len(unknown):
            found = ", ".join(f"{value:g}" for value in unknown[:5].tolist())
            raise GrataError(
                f"Label '{path}' holds the values {found}, but the classes of this bundle are {known}. Correct the "
                "label or the key segments of the configuration, or remove the label."
            )


class CheckExtentd(MapTransform):
    """Transform that checks the size of an image after it was cropped to the structure it shows.

    Args:
        keys: keys of the images, each of shape (C, H, W[, D]).
        what: name of the structure, for the message.
        smallest: least number of pixels of the shortest side.
        aspect: greatest ratio of the longest to the shortest side.

    Raises:
        GrataError: raised by the call. The image is too small or too long. The message names the case, or the file
            where there is no case.
    """

    def __init__(self, keys: KeysCollection, what: str, smallest: int, aspect: float) -> None:
        super().__init__(keys)
        self.what = what
        self.smallest = smallest
        self.aspect = aspect

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(data):
            sizes = data[key].shape[1:]
            if min(sizes) < self.smallest or max(sizes) > self.aspect * min(sizes):
                shape = " × ".join(map(str, sizes))
                raise GrataError(
                    f"{_name(data, key)} shows no {self.what}: the part found has {shape} pixels. Its shortest side "
                    f"needs at least {self.smallest}, and its longest at most {self.aspect:g} times as many as that. "
                    "Check that it is the right kind of picture and not black."
                )
        return dict(data)


class CheckVoxelsd(MapTransform):
    """Transform that checks how large an image would become by resampling, before any memory is taken for it.

    A small file may have large voxels: 20 kB of voxels of 30 mm become gigabytes of voxels of 1 mm. An axis that is
    shorter than the windows of the prediction counts as long as they are, because the image is padded to them.

    Args:
        keys: keys of the images, each a ``MetaTensor`` of shape (C, H, W[, D]).
        pixdim: voxel size after resampling, as ``Spacingd`` takes it; an axis of 0 or less keeps its size.
        max_voxels: greatest number of voxels; None: no bound.
        allow_missing_keys: whether a key may be absent.
        window: size of the windows along each axis; None: that of the inferer with which the images are predicted.

    Raises:
        GrataError: raised by the call. The image would become larger. The message names the case, or the file where
            there is no case.
    """

    def __init__(
        self,
        keys: KeysCollection,
        pixdim: Sequence[float] | float,
        max_voxels: int | None = MAX_VOXELS,
        allow_missing_keys: bool = False,
        window: Sequence[int] | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.window = window
        self.pixdim = [float(size) for size in np.atleast_1d(np.asarray(pixdim, dtype=float))]
        self.max_voxels = check_max_voxels(max_voxels)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(data):
            image = data[key]
            if isinstance(image, MetaTensor):
                spacing = image.pixdim.tolist()
                check_voxels(
                    _name(data, key), image.shape[1:], spacing, self.pixdim, self.max_voxels, self.window or ()
                )
        return dict(data)


def count_windows(transforms: Any, inferer: Any) -> None:
    """Let the checks of the size that know no window count the windows of an inferer.

    Args:
        transforms: preprocessing of the images; the checks in a ``Compose`` are changed in place.
        inferer: inferer with which the images are predicted; one without windows changes nothing.
    """
    if isinstance(transforms, Compose):
        for transform in transforms.transforms:
            count_windows(transform, inferer)
    elif isinstance(transforms, CheckVoxelsd) and transforms.window is None:
        transforms.window = _window(inferer)


def _window(inferer: Any) -> list[int] | None:
    if not isinstance(inferer, SlidingWindowInferer):
        return None
    if isinstance(inferer, SliceInferer):
        # the inferer itself inserts the third axis only when it is called
        size = list(ensure_tuple_rep(inferer.orig_roi_size, 2))
        size.insert(inferer.spatial_dim, 1)
        return size
    return list(ensure_tuple(inferer.roi_size))


def check_max_voxels(value: Any) -> int | None:
    """Return a bound of the number of voxels.

    Raises:
        GrataError: it is neither a whole number of at least 1 nor null.
    """
    value = constant(value)
    return None if value is None else checked(partial(check_count, or_null=True), value, "max_voxels")


def check_voxels(
    name: str,
    shape: Sequence[int],
    spacing: Sequence[float],
    target: Sequence[float],
    most: int | None,
    window: Sequence[int] = (),
) -> None:
    """Check how large an image would become by resampling.

    Args:
        name: name of the image, for the message.
        shape: its number of voxels along each axis.
        spacing: its voxel size along each axis.
        target: voxel size after resampling; one that is missing, 0 or less keeps its axis.
        most: greatest number of voxels; None: no bound.
        window: size of the windows to which the image is padded, of all axes or of the last ones; one value stands for
            all axes, and one of 0 or less for the whole axis.

    Raises:
        GrataError: the image would become larger, or less than two voxels would be left of it.
    """
    wanted = list(target) if len(target) > 1 else [*target] * len(shape)
    wanted += [0.0] * (len(shape) - len(wanted))
    sizes = [float(size) * old / new if new > 0 else float(size) for size, old, new in zip(shape, spacing, wanted)]
    if math.prod(sizes) < 2:
        raise GrataError(
            f"{_change(name, shape, sizes, spacing, wanted)}: nothing of it would be left. Check its voxel size."
        )
    padded = _padded(sizes, window)
    if most is not None and math.prod(padded) > most:
        filled = "" if padded == sizes else f", {_by(padded)} with the padding to the windows of the prediction"
        raise GrataError(
            f"{_change(name, shape, sizes, spacing, wanted)}{filled}, more than max_voxels ({most}), for which the "
            "memory may not be enough. Check its voxel size, crop it, or raise max_voxels where the memory is."
        )


def _change(name: str, *values: Sequence[float]) -> str:
    """Return what resampling does, from numbers and sizes of voxels: numbers before and after, sizes likewise."""
    before, after, voxels, new_voxels = map(_by, values)
    return f"{name} has {before} voxels of {voxels} mm and would become {after} voxels of {new_voxels} mm"


def _by(values: Sequence[float]) -> str:
    return " × ".join(f"{value:.4g}" if value < 1000 else f"{value:.0f}" for value in values)


def _padded(sizes: Sequence[float], window: Sequence[int]) -> list[float]:
    least = [*window] * len(sizes) if len(window) == 1 else [*window]
    least = [0] * (len(sizes) - len(least)) + least
    return [max(size, part or 0) for size, part in zip(sizes, least)]


def _name(data: Mapping[Hashable, Any], key: Hashable) -> str:
    if "case" in data:
        return f"Case '{data['case']}' ({key})"
    path = data[key].meta.get(ImageMetaKey.FILENAME_OR_OBJ, "") if isinstance(data[key], MetaTensor) else ""
    # The name of a DICOM file may contain the patient's name.
    return f"File '{path}'" if is_volume_file(path) or is_picture(path) else f"The DICOM scan under key '{key}'"
