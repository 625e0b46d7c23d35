"""What a network is given: images of any number type, in the type that the network computes in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import GrataError
from ..networks.parameters import network_dtype

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["as_input"]


def as_input(images: torch.Tensor, network: nn.Module) -> torch.Tensor:
    """Return images in the type that a network computes in; those that have it already are returned as they are.

    Args:
        images: images of any floating point or whole number type.
        network: network that gets them.

    Raises:
        GrataError: they are complex or truth values, sparse, or empty.
    """
    import torch

    if not isinstance(images, torch.Tensor):
        raise GrataError(f"must be a tensor (B, C, ...), got {type(images).__name__}.", key="images")
    if images.is_complex() or images.dtype == torch.bool:
        raise GrataError(
            f"must be real numbers, got {images.dtype}. Give the magnitude of complex images, and grey values instead "
            "of masks, scaled as in training.",
            key="images",
        )
    if images.layout != torch.strided:
        raise GrataError(f"must be a dense tensor, got one of layout {images.layout}. Give .to_dense().", key="images")
    if not images.numel():
        raise GrataError(f"must not be empty, got shape {tuple(images.shape)}. Leave such an image out.", key="images")
    dtype = network_dtype(network) or (images.dtype if images.is_floating_point() else torch.float32)
    return images if images.dtype == dtype else images.to(dtype)
