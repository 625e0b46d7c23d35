"""Augmentations whose predictions can be mapped back onto the image: a weak view, then a change of intensities."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from .weak import View

__all__ = ["augmentations"]


def augmentations(
    x: torch.Tensor,
    count: int,
    views: Sequence[View],
    strong_view: Callable[[torch.Tensor, torch.Generator], torch.Tensor],
    generator: torch.Generator,
) -> Iterator[tuple[View, torch.Tensor]]:
    """Draw augmentations ``strong_view(view(x))`` of images, one at a time.

    The same state of ``generator`` gives the same augmentations.

    Args:
        x: images ``(B, C, ...)``; they are not changed.
        count: number of augmentations.
        views: weak views, taken in turn.
        strong_view: function ``strong_view(images, generator)`` that changes intensities only.
        generator: random generator of ``strong_view``.

    Yields:
        The weak view, whose inverse maps a prediction back onto the grid of ``x``, and the augmented images.
    """
    for index in range(count):
        view = views[index % len(views)]
        # full precision under autocast too, because images may be in any unit
        with torch.autocast(x.device.type, enabled=False):
            yield view, strong_view(view(x).clone(), generator)
