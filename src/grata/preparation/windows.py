"""The parts of an image that the network gets: the whole, or the inferer's windows with the largest foreground."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from monai.inferers import Inferer, SimpleInferer, SlidingWindowInferer
from monai.utils import PytorchPadMode

from ..errors import GrataError

__all__ = ["check_inferer", "foreground_windows"]

_MOST_WINDOWS = 2
"""Maximum number of windows taken from one image."""


def check_inferer(inferer: Inferer) -> None:
    """Check that it is known which parts of an image an inferer passes to the network.

    Raises:
        GrataError: the inferer is of another class.
    """
    if not isinstance(inferer, SimpleInferer | SlidingWindowInferer):
        raise GrataError(
            f"{type(inferer).__name__} is not supported. Use SimpleInferer, SlidingWindowInferer or SliceInferer.",
            key="inferer",
        )


def foreground_windows(
    image: torch.Tensor, label: torch.Tensor, inferer: Inferer, most: int = _MOST_WINDOWS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut an image and its label map into the parts that the network gets.

    Where a window reaches over the image's edge, the image is padded as the inferer pads it, and the label with
    background.

    Args:
        image: image ``(1, C, ...)``.
        label: label map ``(1, 1, ...)`` on the same grid, 0 is background.
        inferer: ``SimpleInferer`` for the whole image, or ``SlidingWindowInferer`` for its windows.
        most: maximum number of windows. Those with the largest foreground are taken; among equals the first.

    Returns:
        Images ``(N, C, ...)`` and label maps ``(N, 1, ...)``, in the inferer's order.
    """
    if not isinstance(inferer, SlidingWindowInferer):
        return image, label
    of_labels = copy.copy(inferer)
    of_labels.padding_mode, of_labels.cval = PytorchPadMode.CONSTANT, 0.0
    extents: list[int] = []
    _visit(label, of_labels, lambda _, window: extents.append(int((window > 0).sum())))
    chosen = set(sorted(range(len(extents)), key=lambda i: (-extents[i], i))[:most])
    return _cut(image, inferer, chosen), _cut(label, of_labels, chosen)


def _cut(volume: torch.Tensor, inferer: Inferer, chosen: set[int]) -> torch.Tensor:
    windows: list[torch.Tensor] = []
    _visit(volume, inferer, lambda index, window: windows.append(window.clone()) if index in chosen else None)
    return torch.stack(windows).to(volume.device)


def _visit(volume: torch.Tensor, inferer: Inferer, visitor: Callable[[int, torch.Tensor], None]) -> None:
    """Call ``visitor`` with each window ``(C, ...)``, cut by the inferer itself so that they are those it predicts."""
    count = 0

    def look(batch: torch.Tensor, *_: object) -> torch.Tensor:
        nonlocal count
        for window in batch:
            visitor(count, window)
            count += 1
        return batch[:, :1]

    inferer(volume, look)
