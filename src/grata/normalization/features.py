"""Deepest feature map of a network, for any architecture."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import GrataError

__all__ = ["deepest_feature", "deepest_module", "depth", "is_map", "replaced_output"]


def is_map(shape: Sequence[int], image: Sequence[int]) -> bool:
    """Return whether an output is a feature map of the images.

    It has as many dimensions and samples as the images, at most as many positions, and more than one: what is pooled
    to a single position is not a map.

    Args:
        shape: shape of the output.
        image: shape of the images, ``(B, C, ...)``.
    """
    if len(shape) != len(image) or shape[0] != image[0]:
        return False
    return 1 < math.prod(shape[2:]) <= math.prod(image[2:])


def depth(shape: Sequence[int]) -> tuple[int, int]:
    """Return the depth of a feature map, for comparison: fewer positions are deeper, then more channels.

    Channels count because a network may predict at low resolution, and logits say less than features. Among maps of
    equal depth, callers take the last one.

    Args:
        shape: shape of the feature map, ``(B, C, ...)``.
    """
    return -math.prod(shape[2:]), shape[1]


@contextlib.contextmanager
def deepest_feature(network: nn.Module, image: Sequence[int]) -> Iterator[Callable[[], torch.Tensor]]:
    """Watch the outputs of all modules for the deepest feature map, see :func:`depth`.

    Args:
        network: network whose forward runs inside the ``with`` block; the hooks are removed at its end.
        image: shape of the images, ``(B, C, H, W)`` or ``(B, C, D, H, W)``.

    Yields:
        A function that returns the deepest feature map ``(B, F, ...)``; after several forwards, that of the last one.

    Raises:
        GrataError: raised by that function if no module returned a feature map, as with a TorchScript network, whose
            modules cannot be watched.
    """
    with deepest_module(network, image) as found:
        yield lambda: found()[1]


@contextlib.contextmanager
def deepest_module(network: nn.Module, image: Sequence[int]) -> Iterator[Callable[[], tuple[nn.Module, torch.Tensor]]]:
    """Watch all modules as :func:`deepest_feature` does, for the module that returns the deepest feature map, too.

    Yields:
        A function that returns the module and its feature map ``(B, F, ...)``.
    """
    found: list[tuple[nn.Module, torch.Tensor]] = []

    def watch(module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, torch.Tensor) or not is_map(output.shape, image):
            return
        if not found or depth(output.shape) >= depth(found[0][1].shape):
            found[:] = [(module, output)]

    def deepest() -> tuple[nn.Module, torch.Tensor]:
        if not found:
            raise GrataError(
                f"{type(network).__name__} shows no feature maps: none of its modules returns a tensor of {len(image)} "
                "dimensions. A TorchScript network cannot be looked into. Use the Python network."
            )
        return found[0]

    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        handles = []
    else:
        handles = [module.register_forward_hook(watch) for module in network.modules()]
    try:
        yield deepest
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def replaced_output(module: nn.Module, output: torch.Tensor) -> Iterator[None]:
    """Let a module return ``output`` during a ``with`` block, whatever it computes."""
    handle = module.register_forward_hook(lambda *_: output)
    try:
        yield
    finally:
        handle.remove()
