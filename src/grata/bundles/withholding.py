"""Rejected images of which a bundle writes nothing: the transforms that write files pass them by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from monai.transforms import Compose, SaveImaged

from ..engines.adaptation import WITHHELD
from ..errors import GrataError

__all__ = ["withhold"]


def withhold(postprocessing: Any, is_withheld: Callable[[], bool]) -> None:
    """Let the writing transforms of a bundle's postprocessing pass by what is withheld.

    Args:
        postprocessing: transforms of the predictions; they are changed in place.
        is_withheld: function that returns whether anything of the present batch is withheld, for items that another
            transform has left without their mark.

    Raises:
        GrataError: no ``SaveImaged`` is among them, so it is not known what writes the files.
    """
    if not _replace(postprocessing, is_withheld):
        raise GrataError(
            "no SaveImaged stands in the bundle's postprocessing, so nothing can be kept from being written. Give "
            "source or keep.",
            key="on_reject",
        )


def _replace(transform: Any, is_withheld: Callable[[], bool]) -> bool:
    if not isinstance(transform, Compose):
        return False
    inner = list(transform.transforms)
    found = [_replace(one, is_withheld) or isinstance(one, SaveImaged) for one in inner]
    transform.transforms = tuple(_Passing(one, is_withheld) if isinstance(one, SaveImaged) else one for one in inner)
    return any(found)


class _Passing:
    """A transform that leaves withheld items as they are.

    Args:
        transform: transform of items.
        is_withheld: see :func:`withhold`.
    """

    def __init__(self, transform: Callable[[Any], Any], is_withheld: Callable[[], bool]) -> None:
        self.transform = transform
        self.is_withheld = is_withheld

    def __call__(self, data: Mapping[str, Any]) -> Any:
        mark: Any = data.get(WITHHELD)
        # batches that are not decollated have one mark for each image
        withheld = mark.any() if hasattr(mark, "any") else mark
        return data if (self.is_withheld() if mark is None else withheld) else self.transform(data)
