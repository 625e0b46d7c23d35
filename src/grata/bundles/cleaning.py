"""Cleaning of a segmentation where anatomy says how a structure looks: in one piece, without holes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import KeepLargestConnectedComponent, MapTransform
from monai.utils import convert_to_dst_type
from scipy import ndimage
from skimage.measure import label

from ..checks import check_count, checked
from ..engines.outputs import EMPTIED
from ..errors import GrataError
from .regions import Region, make_regions

__all__ = ["CleanRegionsd"]


class CleanRegionsd(MapTransform):
    """Clean each structure of a label map: leave out small components, keep the largest one, fill holes, in this order.

    A structure is a segment's value with those that it includes, such as the optic disc with its cup. What is taken
    from an inner structure goes to the outer one, and an inner structure ends where the outer one does. A hole is
    background, or an outer structure, that is enclosed by the structure alone; of two structures beside each other
    none fills the other. The item names the structures of which nothing is left, by the key of the label map with
    ``_emptied`` added to it.

    Args:
        keys: keys of label maps ``(1, H, W[, D])`` with the segments' values.
        segments: segments of the bundle.
        keep_largest: whether each structure keeps its largest component alone; or the labels of those that do.
        fill_holes: whether the holes of each structure are filled; or the labels of those whose holes are.
        smallest: number of pixels or voxels that a component must have to stay; 0: any.
        allow_missing_keys: whether an item may lack a key.

    Raises:
        GrataError: an argument is of another kind, or names a structure that is not there.
    """

    def __init__(
        self,
        keys: KeysCollection,
        segments: Sequence[Mapping[str, Any]],
        keep_largest: bool | Sequence[str] = False,
        fill_holes: bool | Sequence[str] = False,
        smallest: int = 0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        # Outer structures first: they bound the inner ones.
        self.regions = sorted(make_regions(segments), key=lambda region: -len(region.values))
        labels = [region.label for region in self.regions]
        self.keep_largest = _labels("keep_largest", keep_largest, labels)
        self.fill_holes = _labels("fill_holes", fill_holes, labels)
        self.smallest = checked(lambda value: check_count(value, at_least=0), smallest, "smallest")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the cleaned label maps."""
        cleaned = dict(data)
        if self.keep_largest or self.fill_holes or self.smallest:
            for key in self.key_iterator(cleaned):
                cleaned[key], emptied = self._clean(cleaned[key])
                if emptied:
                    cleaned[f"{key}{EMPTIED}"] = emptied
        return cleaned

    def _clean(self, labels: torch.Tensor) -> tuple[torch.Tensor, list[str]]:
        """Return the cleaned label map, and the structures of which nothing is left."""
        values = _plain(labels)
        result, emptied = torch.zeros_like(values), []
        masks: dict[Region, torch.Tensor] = {}
        for region in self.regions:
            outer = [other for other in masks if set(region.values) < set(other.values)]
            # Also pieces of the structure itself, and of those in it, that were left out just now.
            fillable = {0, *region.values, *(other.values[0] for other in outer)}
            mask = self._cleaned(_is_in(values, region.values), region, _is_in(values, fillable))
            for other in outer:
                mask &= masks[other]
            masks[region] = mask
            result[mask] = region.values[0]
            if not mask.any() and _is_in(values, region.values).any():
                emptied.append(region.label)
        return convert_to_dst_type(result, labels)[0], emptied

    def _cleaned(self, mask: torch.Tensor, region: Region, fillable: torch.Tensor) -> torch.Tensor:
        if self.smallest > 1:
            mask = _without_small(mask, self.smallest)
        if region.label in self.keep_largest:
            mask = _plain(KeepLargestConnectedComponent(is_onehot=False)(mask.to(torch.uint8))) > 0
        if region.label in self.fill_holes:
            mask = mask | _holes(mask, fillable)
        return mask


def _is_in(values: torch.Tensor, chosen: Iterable[int]) -> torch.Tensor:
    return torch.isin(values, torch.tensor(sorted(chosen)).to(values))


def _without_small(mask: torch.Tensor, smallest: int) -> torch.Tensor:
    """Return a mask without its components of fewer than ``smallest`` pixels.

    MONAI's RemoveSmallObjects calls scikit-image, whose version 0.26 also leaves out those of exactly that size.
    """
    parts = label(mask[0].numpy(force=True), connectivity=mask.ndim - 1)
    large = np.bincount(parts.ravel()) >= smallest
    large[0] = False
    return torch.as_tensor(large[parts])[None].to(mask.device)


def _holes(mask: torch.Tensor, fillable: torch.Tensor) -> torch.Tensor:
    """Return the holes of a mask that are fillable as wholes.

    MONAI's FillHoles also fills what lies within another structure that the mask encloses.
    """
    found, allowed = mask[0].numpy(force=True), fillable[0].numpy(force=True)
    parts, count = ndimage.label(ndimage.binary_fill_holes(found) & ~found)
    filled = np.zeros(count + 1, bool)
    filled[1:] = ndimage.minimum(allowed, parts, range(1, count + 1)) if count else ()
    return torch.as_tensor(filled[parts])[None].to(mask.device)


def _plain(tensor: Any) -> torch.Tensor:
    """Return a tensor without MONAI's meta data."""
    return torch.as_tensor(tensor).as_subclass(torch.Tensor)


def _labels(key: str, given: object, labels: Sequence[str]) -> frozenset[str]:
    if given is None or isinstance(given, bool):
        return frozenset(labels if given else ())
    chosen = [given] if isinstance(given, str) else list(given) if isinstance(given, list | tuple) else None
    if chosen is None:
        raise GrataError(f"must be true, false or a list of segments, got {given!r}.", key=key)
    for name in chosen:
        if name not in labels:
            raise GrataError(f"there is no segment {name!r}; there are {', '.join(labels)}.", key=key)
    return frozenset(chosen)
