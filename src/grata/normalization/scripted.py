"""TorchScript networks, whose normalization cannot be replaced but can be switched."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import GrataError
from .affine import BATCH_NORM, INSTANCE_NORM, normalization_layers

__all__ = ["ScriptedNetwork", "switchable"]


def switchable(network: nn.Module) -> nn.Module:
    """``network``, a TorchScript one wrapped so that its statistics can be switched."""
    return ScriptedNetwork(network) if isinstance(network, torch.jit.ScriptModule) else network


class ScriptedNetwork(nn.Module):
    """A scripted network that can normalize by the batch's statistics in evaluation mode.

    A scripted layer chooses its statistics by its training flag; while the flag is set it also moves its running
    statistics, which are therefore exchanged for copies during each forward.

    Args:
        scripted: from ``torch.jit.script`` or ``torch.jit.load``.

    Attributes:
        use_batch_statistics: whether layers with running statistics use the batch's instead.
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
        self._layers = list(layers.values())
        self._unknown = {
            name: getattr(module, "original_name", type(module).__name__)
            for name, module in scripted.named_modules()
            if name not in layers and "running_mean" in dict(module.named_buffers(recurse=False))
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> ScriptedNetwork:
        """Refused: torch copies a scripted network without the parts that are held on to here."""
        raise GrataError("A method cannot be copied together with its TorchScript network: load the file once more.")

    def check_switchable(self) -> None:
        """Raise :class:`GrataError` where a layer's statistics cannot be switched.

        Tracing turned the choice of statistics into a constant, and a layer of an unknown class may keep statistics in
        another way.
        """
        for name, kind in self._unknown.items():
            raise GrataError(
                f"{name} of this TorchScript network is a {kind}, not one of torch's normalization layers: adapt the "
                "Python network instead, or use method source."
            )
        if any("training" not in layer.code for layer in self._layers):
            raise GrataError(
                "This TorchScript network was traced in evaluation mode: its batch normalization can only use the "
                "source's statistics. Export it by scripting (python -m monai.bundle ckpt_export without use_trace)."
            )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the scripted network's."""
        if not self.use_batch_statistics:
            return self.scripted(*args, **kwargs)
        flags = [layer.training for layer in self._layers]
        buffers = [dict(layer.named_buffers(recurse=False)) for layer in self._layers]
        try:
            for layer, kept in zip(self._layers, buffers):
                layer.train()
                # copies take the update: autograd keeps hold of them until the backward pass
                for name, buffer in kept.items():
                    setattr(layer, name, buffer.clone())
            return self.scripted(*args, **kwargs)
        finally:
            for layer, flag, kept in zip(self._layers, flags, buffers):
                layer.train(flag)
                for name, buffer in kept.items():
                    setattr(layer, name, buffer)
