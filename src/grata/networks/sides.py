"""The sizes of images that a network with five halvings takes."""

from __future__ import annotations

import torch

from ..errors import GrataError

__all__ = ["check_sides"]


def check_sides(x: torch.Tensor, name: str) -> None:
    """Check that the sides of images ``(B, C, H, W)`` are multiples of 32.

    Args:
        x: images.
        name: name of the network, for the message.

    Raises:
        GrataError: a side is not.
    """
    height, width = x.shape[-2:]
    if height % 32 or width % 32 or not height or not width:
        raise GrataError(
            f"{name} takes images whose sides are multiples of 32, got {height}×{width}. Choose another image_size."
        )
