"""What a bundle was made for, as it declares it; a scan that is far from that is pointed out, and used all the same."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from ..checks import did_you_mean
from ..errors import GrataError
from ..quality import UNEXPECTED
from .dicom_index import NO_MODALITY

__all__ = ["CompareScand", "check_expected", "differences_from_training"]

_OF_HEADER = ("modality", "image_type")
_RANGES = {"spacing": "voxels of {} mm", "extent": "an extent of {} mm", "size": "{} voxels"}
_AXES = ("first", "second", "third")
_TOLERANCE = 2.0
_THICKER, _FEWER = 1.5, 2.0
"""Factors by which voxels are longer along the axis of the slices, or their number smaller, than along the others."""


class CompareScand(MapTransform):
    """Transform that compares images, as they were loaded channel-first, with those that a network was trained on.

    It puts the key ``unexpected`` into the data: a sentence for each difference, joined by semicolons. No image is
    refused: a session flags it, and a guard's verdict is ``review`` at least.

    Args:
        keys: key of the image.
        expected: what the training images are like; None: nothing is compared. ``modality``: list of modalities.
            ``other_image_types``: patterns of values of Image Type that no training image has, such as ``ADC*``.
            ``slice_axis``: axis along which the slices of a stack lie, ``first``, ``second`` or ``third``.
            ``spacing`` and ``extent`` in mm, and ``size`` in voxels: least and greatest value for the smallest, the
            middle and the largest axis. ``tolerance``: factor by which a value may be below the least or above the
            greatest; 2 unless it is given.
        allow_missing_keys: whether the key may be absent.

    Raises:
        GrataError: ``expected`` has another form.
    """

    def __init__(
        self, keys: KeysCollection, expected: Mapping[str, Any] | None = None, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.expected = check_expected(expected)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        compared = dict(data)
        header = {key: compared.pop(key, None) for key in _OF_HEADER}
        found = [
            difference
            for key in self.key_iterator(compared)
            for difference in differences_from_training(self.expected, *_grid(compared[key]), **header)
        ]
        compared[UNEXPECTED] = "; ".join(found)
        return compared


def check_expected(expected: Any) -> Mapping[str, Any]:
    """Return what is expected of a scan, checked; nothing for None.

    Raises:
        GrataError: a key is unknown, or its value has another form.
    """
    if expected is None:
        return {}
    if not isinstance(expected, Mapping):
        raise GrataError(f"must be a mapping or null, got {expected!r}.", key="expected")
    for key, value in expected.items():
        if key not in _FORMS:
            hint = did_you_mean(str(key), list(_FORMS), f"The keys are {', '.join(_FORMS)}.")
            raise GrataError(f"there is no such key. {hint}", key=f"expected#{key}")
        wanted = _wanted(key, value)
        if wanted:
            raise GrataError(f"must be {wanted}, got {value!r}.", key=f"expected#{key}")
    return expected


def differences_from_training(
    expected: Mapping[str, Any],
    shape: Sequence[int],
    spacing: Sequence[float],
    modality: str | None = None,
    image_type: str | None = None,
) -> list[str]:
    """Return how a scan differs from the training images, a sentence each.

    Args:
        expected: what is expected, see :class:`CompareScand`.
        shape: voxels along each axis.
        spacing: size of a voxel along each axis, in mm.
        modality: modality in the header; None: unknown.
        image_type: values of Image Type in the header, separated by backslashes; None: unknown.
    """
    measured = {"spacing": spacing, "extent": [a * b for a, b in zip(shape, spacing, strict=True)], "size": shape}
    return [
        *_other_modality(expected.get("modality"), modality),
        *_other_types(expected.get("other_image_types", ()), image_type or ""),
        *_other_axis(expected.get("slice_axis"), shape, spacing),
        *(_far(key, sorted(values), expected) for key, values in measured.items() if _is_far(key, values, expected)),
    ]


def _other_modality(known: Sequence[str] | None, modality: str | None) -> Iterator[str]:
    if known and modality not in (None, NO_MODALITY, *known):
        yield f"the modality is {modality}, and the network was trained on {' and '.join(known)}"


def _other_types(patterns: Sequence[str], image_type: str) -> Iterator[str]:
    types = [kind.strip().upper() for kind in image_type.split("\\")]
    if others := [kind for kind in types if any(fnmatchcase(kind, pattern) for pattern in patterns)]:
        yield f"the header calls it {', '.join(others)}, which no training image is"


def _other_axis(known: str | None, shape: Sequence[int], spacing: Sequence[float]) -> Iterator[str]:
    found = _slice_axis(shape, spacing) if known and len(shape) == len(_AXES) else None
    if found not in (None, known):
        yield f"its slices lie along the {found} axis, and those of training images along the {known}"


def _slice_axis(shape: Sequence[int], spacing: Sequence[float]) -> str | None:
    """Return the axis along which the slices of a stack lie; None where no axis stands out."""
    *_, longer, longest = sorted(spacing)
    fewest, fewer, *_ = sorted(shape)
    if longest >= _THICKER * longer:
        return _AXES[list(spacing).index(longest)]
    return _AXES[list(shape).index(fewest)] if _FEWER * fewest <= fewer else None


def _is_far(key: str, values: Sequence[float], expected: Mapping[str, Any]) -> bool:
    ranges, tolerance = expected.get(key), expected.get("tolerance", _TOLERANCE)
    if ranges is None:
        return False
    if len(values) != len(ranges):
        return True
    pairs = zip(sorted(values), ranges, strict=True)
    return any(not low / tolerance <= value <= high * tolerance for value, (low, high) in pairs)


def _far(key: str, values: Sequence[float], expected: Mapping[str, Any]) -> str:
    found = " × ".join(f"{value:.3g}" for value in values)
    known = " × ".join(f"{low:g}" if low == high else f"{low:g}–{high:g}" for low, high in expected[key])
    return f"it has {_RANGES[key].format(found)}, and training images have {known}"


def _wanted(key: str, value: Any) -> str:
    """Return what the value of a key must be; empty: it is that."""
    fits, wanted = _FORMS[key]
    return "" if fits(value) else wanted


def _is_range(pair: Any) -> bool:
    return isinstance(pair, list | tuple) and len(pair) == 2 and all(map(_is_number, pair)) and 0 < pair[0] <= pair[1]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(map(fits, value))


_Form = tuple[Callable[[Any], bool], str]
_TEXTS: _Form = (_is_list_of(lambda item: isinstance(item, str)), "a list of texts")
_PAIRS: _Form = (_is_list_of(_is_range), "a list of pairs of numbers, least and greatest")
_FORMS: Mapping[str, _Form] = {
    "modality": _TEXTS,
    "other_image_types": _TEXTS,
    "slice_axis": (_AXES.__contains__, f"one of {', '.join(_AXES)}"),
    **dict.fromkeys(_RANGES, _PAIRS),
    "tolerance": (lambda value: _is_number(value) and value >= 1, "1 or greater"),
}
"""Keys of a declaration, each with a check of its value and words for what it must be."""


def _grid(image: torch.Tensor) -> tuple[list[int], list[float]]:
    shape = list(image.shape[1:])
    spacing = image.pixdim.tolist() if isinstance(image, MetaTensor) else [1.0] * len(shape)
    return shape, spacing[: len(shape)]
