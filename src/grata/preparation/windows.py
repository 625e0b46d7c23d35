"""What the network sees of an image: the whole of it, or the inferer's windows with the largest foreground."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from monai.inferers import Inferer, SimpleInferer, SlidingWindowInferer
from monai.utils import PytorchPadMode

from ..errors import GrataError

__all__ = ["MOST_WINDOWS", "check_inferer", "foreground_windows"]

MOST_WINDOWS = 2
"""Of each image."""


def check_inferer(inferer: Inferer) -> None:
    """Raise :class:`GrataError` for an inferer of which it is not known what it shows the network."""
    if not isinstance(inferer, SimpleInferer | SlidingWindowInferer):
        raise GrataError(
            f"{type(inferer).__name__} is not one that adaptation knows; "
            "use SimpleInferer, SlidingWindowInferer or SliceInferer.",
            key="inferer",
        )


def foreground_windows(
    image: torch.Tensor, label: torch.Tensor, inferer: Inferer, most: int = MOST_WINDOWS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut an image and its label map into what the network is given.

    Args:
        image: ``(1, C, ...)``.
        label: ``(1, 1, ...)`` on the same grid, 0 background. Where a window reaches over the image's edge the image is
            padded as the inferer does it, the label by background.
        inferer: ``SimpleInferer``: the whole image. ``SlidingWindowInferer``: its windows.
        most: how many windows at most, those with the largest foreground; of equal ones the first.

    Returns:
        Images ``(N, C, ...)`` and label maps ``(N, 1, ...)``, in the inferer's order.
    """
    if isinstance(inferer, SimpleInferer):
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
    """Show ``visitor`` each window ``(C, ...)``: the inferer itself cuts them, so that they are those it predicts."""
    count = 0

    def look(batch: torch.Tensor, *_: object) -> torch.Tensor:
        nonlocal count
        for window in batch:
            visitor(count, window)
            count += 1
        return batch[:, :1]

    inferer(volume, look)
