"""How far the statistics of an image lie from those that a network's normalization layers know from the source."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import nn

from ..normalization import normalization_layers
from ..normalization.affine import TrackedNorm

__all__ = ["LayerStatistics", "layer_statistics"]

_DEAD = 1e-10
"""Variance of a channel below which it says nothing of an image."""


class LayerStatistics:
    """Mean and variance of what reaches each normalization layer in the forwards of a ``with`` block.

    Attributes:
        names: names of the layers, in the order in which they were called.
    """

    def __init__(self) -> None:
        self._sums: dict[str, list[Any]] = {}
        self._running: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def names(self) -> list[str]:
        return list(self._sums)

    def _see(self, name: str, layer: nn.Module, x: torch.Tensor) -> None:
        axes = [0, *range(2, x.ndim)]
        x = x.detach().float()
        # A square loses what is small beside the mean, so the mean is taken off first, and sums are in double
        # precision. torch.var_mean is six times as slow on a CPU.
        count = x.numel() // x.shape[1]
        centre = x.mean(axes, keepdim=True)
        mean = centre.flatten().cpu().double()
        variance = torch.linalg.vector_norm(x - centre, dim=axes).cpu().double().square() / count
        total, squares = count * mean, count * (variance + mean * mean)
        if name in self._sums:
            before = self._sums[name]
            self._sums[name] = [before[0] + count, before[1] + total, before[2] + squares]
        else:
            self._sums[name] = [count, total, squares]
        tracked = cast(TrackedNorm, layer)
        if getattr(layer, "running_mean", None) is not None:
            self._running[name] = (tracked.running_mean.detach().float().cpu(), tracked.running_var.float().cpu())

    def moments(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and variance ``(C,)`` of what reached a layer."""
        count, total, squares = self._sums[name]
        mean = total / count
        return mean, (squares / count - mean * mean).clamp_min(0)

    def distances(self) -> dict[str, float]:
        """Return the distance of each layer that keeps running statistics.

        .. code-block:: text

            mean over the channels of  ln(1 + d²/s) + |ln(v/s)|

        with the image's mean and variance, ``d`` the difference of the means, ``v`` and ``s`` the variances of image
        and source. 0: equal. Channels that are constant in the source have none.
        """
        found = {}
        for name, (mean, variance) in self._running.items():
            mu, v = self.moments(name)
            alive = variance > _DEAD
            if not alive.any():
                continue
            s, v, d = variance[alive], v[alive].clamp_min(_DEAD), (mu - mean)[alive]
            found[name] = float((torch.log1p(d * d / s) + (v / s).log().abs()).mean())
        return found


@contextlib.contextmanager
def layer_statistics(network: nn.Module) -> Iterator[LayerStatistics]:
    """Measure what reaches the normalization layers of a network in the forwards of a ``with`` block.

    A TorchScript network cannot be looked into, and has no layers here.
    """
    found = LayerStatistics()
    handles = []
    if not any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        for name, _, layer in normalization_layers(network):
            handles.append(layer.register_forward_pre_hook(_watch(found, name)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _watch(found: LayerStatistics, name: str) -> Callable[[nn.Module, Any], None]:
    def see(layer: nn.Module, inputs: Any) -> None:
        if inputs and isinstance(inputs[0], torch.Tensor) and inputs[0].ndim > 1:
            found._see(name, layer, inputs[0])

    return see
