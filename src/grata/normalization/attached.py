"""Scale and shift for normalization layers that have none: something to adapt where the source network has nothing."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..errors import GrataError
from .affine import ATTACHED, ChannelAffine, keeps_own_forward, normalization_layers

__all__ = ["AFFINE", "AttachedAffine", "attach_affine", "ensure_affine"]

AFFINE = ("auto", "own", "attach")
"""Where the affine parameters that are adapted come from, see :func:`ensure_affine`."""

_PARTS = ("weight", "bias")


class AttachedAffine:
    """What :func:`attach_affine` has attached to a network.

    Attributes:
        names: of the attached parameters, in the order of the network.
        count: how many numbers they hold.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._layers = dict(layers)
        self.names = tuple(".".join(filter(None, (name, ATTACHED, part))) for name in self._layers for part in _PARTS)
        self.count = sum(p.numel() for layer in self._layers.values() for p in getattr(layer, ATTACHED).parameters())

    def detach(self) -> None:
        """Take all of it away: the network is the source network again, exactly. A second time does nothing."""
        for layer in self._layers.values():
            getattr(layer, ATTACHED).handle.remove()
            delattr(layer, ATTACHED)
        self._layers = {}


def attach_affine(network: nn.Module) -> AttachedAffine:
    """Attach a scale of 1 and a shift of 0 of each channel behind the normalization layers that have neither.

    Until they are adapted the network predicts as before, to the last bit, on every device and in every precision.
    :func:`collect_affine_parameters` finds them like a network's own, so that all methods adapt them. They belong to
    the adaptation, not to the weights: ``network.state_dict()`` is as before, and a checkpoint of the source network
    loads strictly, before or after, and leaves them alone; a method's state has them. A deep copy has its own.

    Args:
        network: its BatchNorm, SyncBatchNorm, InstanceNorm, GroupNorm and LayerNorm without weight and bias get them,
            in place. Left out are classes with a forward of their own, whose output may be more than the normalized
            input, and what was attached to before.

    Returns:
        All that is attached, now or before.

    Raises:
        GrataError: a TorchScript network, or there is no such layer.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        raise GrataError(
            "nothing can be attached to the normalization layers of a TorchScript network, whose code is "
            "fixed. Give the Python network and its weights instead.",
            key="affine",
        )
    like = next((p for p in network.parameters() if torch.is_floating_point(p)), torch.empty(0))
    layers = list(normalization_layers(network))
    for _, kind, layer in layers:
        if _lacks_affine(kind, layer):
            affine = ChannelAffine(layer, like).train(layer.training)
            affine.handle = layer.register_forward_hook(_scale_and_shift)
            setattr(layer, ATTACHED, affine)
    attached = {name: layer for name, _, layer in layers if hasattr(layer, ATTACHED)}
    if not attached:
        raise GrataError(
            f"{type(network).__name__} has no normalization layer without affine parameters to attach some "
            "to. Use affine=own to adapt those that it has, or method source.",
            key="affine",
        )
    return AttachedAffine(attached)


def ensure_affine(network: nn.Module, affine: str = "auto") -> AttachedAffine | None:
    """Let a network have affine parameters to adapt.

    Args:
        network: the source network.
        affine: ``auto``: attach some where the network has none at all, and could; ``own``: never attach any;
            ``attach``: to every normalization layer that has none, also in a network that has some.

    Returns:
        What is attached; None: nothing.

    Raises:
        GrataError: ``affine`` is none of these, or ``attach`` finds nothing to attach to.
    """
    if affine not in AFFINE:
        raise GrataError(f"must be one of {', '.join(AFFINE)}, got {affine!r}.", key="affine")
    layers = list(normalization_layers(network))
    lacking = any(_lacks_affine(kind, layer) or hasattr(layer, ATTACHED) for _, kind, layer in layers)
    none = all(getattr(layer, part, None) is None for _, _, layer in layers for part in _PARTS)
    if affine == "attach" or (affine == "auto" and lacking and none):
        return attach_affine(network)
    return None


def _lacks_affine(kind: str, layer: nn.Module) -> bool:
    if isinstance(layer, torch.jit.ScriptModule) or keeps_own_forward(layer, kind) or hasattr(layer, ATTACHED):
        return False
    return all(getattr(layer, part, None) is None for part in _PARTS)


def _scale_and_shift(layer: nn.Module, inputs: tuple[torch.Tensor, ...], y: torch.Tensor) -> torch.Tensor:
    return getattr(layer, ATTACHED)(y)
