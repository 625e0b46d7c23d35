"""Whether an image is of the kind that a network knows at all: a memory takes nothing from one that is not."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..networks.wrappers import unwrapped
from ..normalization import normalization_layers

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..methods import Method

__all__ = ["ABSURD", "evaluated", "is_absurd"]

ABSURD = "absurd_statistics"
"""Flag of a case whose image is so unlike the source images that nothing is learned from it."""

_LIMIT = 20.0
"""Strength, against that of the source images, from which on an image is absurd: images of other sites of the bundles
have at most 4, and ten times as bright 170 and more."""

_DEAD = 1e-10
"""Variance of a channel below which it says nothing of an image."""


def is_absurd(method: Method, images: torch.Tensor) -> bool:
    """Return whether images are so unlike the source images that one of them would spoil what a method remembers.

    It is asked of the source network's first normalization layer that keeps running statistics, whose input ``x`` is
    compared with these:

    .. code-block:: text

        median over the channels of  mean((x − μ_source)² / σ²_source)

    It is 1 for the source images. One that is too bright, shifted far, or has a single voxel of an absurd value, has
    hundreds. What is dark or empty is not absurd: statistics that follow it move a little.

    Args:
        method: method before it adapts to them.
        images: images ``(B, C, ...)``.

    Returns:
        Whether they are; false where the network keeps no running statistics, or cannot be looked into.
    """
    import torch

    layers = _layers(method.given)
    if not layers:
        return False
    found: list[float] = []
    stops = not any(_is_compiled(module) for module in method.given.modules())

    def look(layer: Any, inputs: tuple[Any, ...]) -> None:
        if not found:
            found.append(_strength(layer, inputs[0]))
        if stops:
            raise _SeenError

    handles = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        with evaluated(method.given), torch.no_grad(), method.source_network() as network:
            unwrapped(network)(images.as_tensor() if hasattr(images, "as_tensor") else images)
    except _SeenError:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return bool(found) and math.isfinite(found[0]) and found[0] > _LIMIT


@contextlib.contextmanager
def evaluated(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode for a ``with`` block; afterwards each module is in its own mode again."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class _SeenError(Exception):
    """Signal that ends a forward at the first normalization layer."""


def _layers(network: nn.Module) -> list[nn.Module]:
    import torch

    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        return []
    return [layer for _, _, layer in normalization_layers(network) if getattr(layer, "running_mean", None) is not None]


def _is_compiled(module: nn.Module) -> bool:
    return "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None


def _strength(layer: Any, x: torch.Tensor) -> float:
    import torch

    alive = layer.running_var > _DEAD
    shape = [1, -1] + [1] * (x.ndim - 2)
    axes = [0, *range(2, x.ndim)]
    away = torch.linalg.vector_norm(x.float() - layer.running_mean.float().view(shape), dim=axes, dtype=torch.float64)
    strength = away.square() / (x.numel() // x.shape[1]) / layer.running_var
    return strength[alive].median().item() if alive.any() else math.nan
