"""TorchScript networks, whose normalization layers cannot be replaced, but switched to the batch's statistics."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from ..errors import GrataError
from .affine import BATCH_NORM, INSTANCE_NORM, normalization_layers

__all__ = ["ScriptedNetwork", "switchable"]


def switchable(network: nn.Module) -> nn.Module:
    """Return a network, wrapped in a :class:`ScriptedNetwork` if it is a TorchScript network."""
    return ScriptedNetwork(network) if isinstance(network, torch.jit.ScriptModule) else network


class ScriptedNetwork(nn.Module):
    """TorchScript network that can normalize by the batch's statistics in evaluation mode.

    A scripted layer chooses its statistics by its training flag. While the flag is set, the layer also updates its
    running statistics; therefore copies take their place during each forward.

    Args:
        scripted: network from ``torch.jit.script`` or ``torch.jit.load``.

    Attributes:
        scripted: the network given.
        use_batch_statistics: whether layers with running statistics use the batch's statistics instead.
    """

    def __init__(self, scripted: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.scripted = scripted
        self.use_batch_statistics = False
        layers = {
            name: layer
            for name, kind, layer in normalization_layers(scripted)
            if kind in BATCH_NORM + INSTANCE_NORM and getattr(layer, "running_mean", None) is not None
        }
        self._layers = [cast(torch.jit.ScriptModule, layer) for layer in layers.values()]
        self._unknown = {
            name: getattr(module, "original_name", type(module).__name__)
            for name, module in scripted.named_modules()
            if name not in layers and "running_mean" in dict(module.named_buffers(recurse=False))
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> ScriptedNetwork:
        """Refuse the copy: torch copies a scripted network without the layers that this object refers to."""
        raise GrataError("A method cannot be copied together with its TorchScript network. Load the file once more.")

    def check_switchable(self) -> None:
        """Check that the statistics of all layers can be switched.

        Tracing makes the choice of statistics a constant, and a layer of an unknown class may use its statistics in
        another way.

        Raises:
            GrataError: the network was traced, or has running statistics in a layer of an unknown class.
        """
        for name, kind in self._unknown.items():
            raise GrataError(
                f"{name} of this TorchScript network is a {kind}, not one of torch's normalization layers. Adapt the "
                "Python network instead, or use method source."
            )
        if any("training" not in layer.code for layer in self._layers):
            raise GrataError(
                "This TorchScript network was traced in evaluation mode: its batch normalization can only use the "
                "source's statistics. Export it by scripting (python -m monai.bundle ckpt_export without use_trace)."
            )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output of the scripted network."""
        if not self.use_batch_statistics:
            return self.scripted(*args, **kwargs)
        flags = [layer.training for layer in self._layers]
        buffers = [dict(layer.named_buffers(recurse=False)) for layer in self._layers]
        try:
            for layer, kept in zip(self._layers, buffers):
                layer.train()
                # new copies each time, because autograd needs them unchanged until the backward pass
                for name, buffer in kept.items():
                    setattr(layer, name, buffer.clone())
            return self.scripted(*args, **kwargs)
        finally:
            for layer, flag, kept in zip(self._layers, flags, buffers):
                layer.train(flag)
                for name, buffer in kept.items():
                    setattr(layer, name, buffer)
