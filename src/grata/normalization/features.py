"""The deepest feature of a network, whatever its architecture."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import GrataError

__all__ = ["deepest_feature", "depth", "is_map"]


def is_map(shape: Sequence[int], image: Sequence[int]) -> bool:
    """Whether an output ``shape`` is a feature map of images of shape ``image``, both ``(B, C, ...)``.

    What is pooled to a single position is none.
    """
    if len(shape) != len(image) or shape[0] != image[0]:
        return False
    return 1 < math.prod(shape[2:]) <= math.prod(image[2:])


def depth(shape: Sequence[int]) -> tuple[int, int]:
    """What the deepest of all feature maps is the largest by: the fewest positions, of several the most channels.

    A network may predict at low resolution, and logits tell little. Of maps as deep the last one counts.
    """
    return -math.prod(shape[2:]), shape[1]


@contextlib.contextmanager
def deepest_feature(network: nn.Module, image: Sequence[int]) -> Iterator[Callable[[], torch.Tensor]]:
    """Watch for the deepest feature among the outputs of all modules, see :func:`depth`.

    Args:
        network: whose forward runs inside the ``with`` block; it has no hooks of ours afterwards.
        image: shape of the images, ``(B, C, H, W)`` or ``(B, C, D, H, W)``.

    Yields:
        A function that gives the feature ``(B, F, ...)`` of the last forward.

    Raises:
        GrataError: by that function, when no module gave a feature map; a TorchScript network cannot be watched.
    """
    found: dict[str, Any] = {}

    def watch(module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, torch.Tensor) or not is_map(output.shape, image):
            return
        if not found or depth(output.shape) >= depth(found["feature"].shape):
            found["feature"] = output

    def feature() -> torch.Tensor:
        if not found:
            raise GrataError(
                f"{type(network).__name__} shows no feature maps: no module of it gives an output of {len(image)} "
                "dimensions. A TorchScript network cannot be looked into; use the Python network."
            )
        return found["feature"]

    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        handles = []
    else:
        handles = [module.register_forward_hook(watch) for module in network.modules()]
    try:
        yield feature
    finally:
        for handle in handles:
            handle.remove()
