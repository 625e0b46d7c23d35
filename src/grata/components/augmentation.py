"""Augmentations whose predictions can be laid over each other: a weak view, then a strong photometric one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from ..views import View

__all__ = ["augmentations"]


def augmentations(
    x: torch.Tensor,
    count: int,
    views: Sequence[View],
    strong_view: Callable[[torch.Tensor, torch.Generator], torch.Tensor],
    generator: torch.Generator,
) -> Iterator[tuple[View, torch.Tensor]]:
    """Draw ``count`` augmentations of ``x``, one at a time; from the same state of ``generator`` the same ones.

    Args:
        x: ``(B, C, ...)``; not changed.
        count: how many.
        views: taken in turn.
        strong_view: changes intensities alone.
        generator: what it draws from.

    Yields:
        The view, whose inverse brings a prediction back onto the grid of ``x``, and the augmented images.
    """
    for index in range(count):
        view = views[index % len(views)]
        # in full precision, whatever the surrounding autocast: these are images, and may be in any unit
        with torch.autocast(x.device.type, enabled=False):
            yield view, strong_view(view(x).clone(), generator)
