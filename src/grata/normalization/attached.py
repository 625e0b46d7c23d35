"""Scale and shift for normalization layers without affine parameters, so that there is something to adapt."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..checks import check_choice, checked
from ..errors import GrataError
from .affine import ATTACHED, ChannelAffine, keeps_own_forward, normalization_layers

__all__ = ["AFFINE", "AttachedAffine", "attach_affine", "ensure_affine"]

AFFINE = ("auto", "own", "attach")
"""Choices for the origin of the adapted affine parameters, see :func:`ensure_affine`."""

_PARTS = ("weight", "bias")


class AttachedAffine:
    """Affine parameters that :func:`attach_affine` has attached to a network.

    Args:
        layers: normalization layers with a :class:`ChannelAffine`, by name.

    Attributes:
        names: names of the attached parameters, in the order of the network.
        count: number of values that they hold together.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._layers = dict(layers)
        self.names = tuple(".".join(filter(None, (name, ATTACHED, part))) for name in self._layers for part in _PARTS)
        self.count = sum(p.numel() for layer in self._layers.values() for p in getattr(layer, ATTACHED).parameters())

    @property
    def present(self) -> bool:
        """Whether the network has them still: another holder may have detached them."""
        return bool(self._layers) and all(hasattr(layer, ATTACHED) for layer in self._layers.values())

    def detach(self) -> None:
        """Remove all attached parameters, so that the network is exactly the source network again.

        A second call does nothing.
        """
        for layer in self._layers.values():
            if hasattr(layer, ATTACHED):
                getattr(layer, ATTACHED).handle.remove()
                delattr(layer, ATTACHED)
        self._layers = {}


def attach_affine(network: nn.Module) -> AttachedAffine:
    """Attach a scale of 1 and a shift of 0 for each channel to the normalization layers that have neither.

    Until they are adapted, the network predicts the same to the last bit, on every device and in every precision.
    :func:`collect_affine_parameters` finds them like a network's own, so that all methods adapt them. They belong to
    the adaptation, not to the weights: ``network.state_dict()`` does not contain them, and a checkpoint of the source
    network loads strictly at any time and does not change them. The state of a method contains them. A deep copy of
    the network has its own.

    Args:
        network: network to change in place. Its BatchNorm, SyncBatchNorm, InstanceNorm, GroupNorm and LayerNorm without
            weight and bias get them. Layers that have them attached already are left out, and so are classes with a
            forward of their own, whose output may be more than the normalized input.

    Returns:
        All attached parameters, those of earlier calls included.

    Raises:
        GrataError: the network is or contains a TorchScript network, or it has no such layer.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        raise GrataError(
            "nothing can be attached to the normalization layers of a TorchScript network, because its code is fixed. "
            "Give the Python network and its weights instead.",
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
            f"{type(network).__name__} has no normalization layer without affine parameters, so there is nothing to "
            "attach them to. Use affine=own to adapt those that it has, or method source.",
            key="affine",
        )
    return AttachedAffine(attached)


def ensure_affine(network: nn.Module, affine: str = "auto") -> AttachedAffine | None:
    """Make sure that a network has affine parameters to adapt, by attaching some where needed.

    Args:
        network: source network.
        affine: ``auto``: attach some if no normalization layer has any, and some layer can take them; ``own``: never
            attach any; ``attach``: attach them to every normalization layer that has none, even if others have some.

    Returns:
        The attached parameters; None where nothing is attached.

    Raises:
        GrataError: ``affine`` is another value, or ``attach`` finds nothing to attach to.
    """
    checked(lambda value: check_choice(value, AFFINE), affine, "affine")
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
