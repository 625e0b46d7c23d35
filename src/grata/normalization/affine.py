"""Which layers of a network normalize, and which of their parameters can be adapted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..errors import GrataError

__all__ = [
    "ATTACHED",
    "ChannelAffine",
    "batch_norm_layers",
    "collect_affine_parameters",
    "keeps_own_forward",
    "layer_kind",
    "normalization_layers",
]

ATTACHED = "attached_affine"
"""Name under which a normalization layer has a :class:`ChannelAffine`."""

BATCH_NORM = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm")
INSTANCE_NORM = ("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d")
OTHER_NORM = ("GroupNorm", "LayerNorm")

_BASES = {
    "BatchNorm1d": nn.BatchNorm1d,
    "BatchNorm2d": nn.BatchNorm2d,
    "BatchNorm3d": nn.BatchNorm3d,
    "SyncBatchNorm": nn.SyncBatchNorm,
    "InstanceNorm1d": nn.InstanceNorm1d,
    "InstanceNorm2d": nn.InstanceNorm2d,
    "InstanceNorm3d": nn.InstanceNorm3d,
    "GroupNorm": nn.GroupNorm,
    "LayerNorm": nn.LayerNorm,
}


def layer_kind(module: nn.Module) -> str | None:
    """Name of the torch normalization class that ``module`` is (or derives from), None for any other layer.

    A TorchScript module has lost its Python class and is recognised by its original name.
    """
    original_name = getattr(module, "original_name", None)
    if original_name in _BASES:
        return original_name
    return next((kind for kind, base in _BASES.items() if isinstance(module, base)), None)


def keeps_own_forward(layer: nn.Module, kind: str) -> bool:
    """Whether ``layer`` is of a class that does more, or other things, than the torch class ``kind`` it derives
    from.
    """
    return type(layer).forward is not _BASES[kind].forward


def normalization_layers(network: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """Yield ``(name, kind, layer)`` for every normalization layer of ``network``, with or without affine parameters."""
    for name, module in network.named_modules():
        kind = layer_kind(module)
        if kind is not None:
            yield name, kind, module


def batch_norm_layers(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield ``(name, layer)`` for every batch normalization layer of ``network`` that keeps running statistics."""
    for name, kind, layer in normalization_layers(network):
        if kind in BATCH_NORM and getattr(layer, "running_mean", None) is not None:
            yield name, layer


class ChannelAffine(nn.Module):
    """Scale and shift ``y·weight + bias`` of what a normalization layer puts out, the identity at first.

    It belongs to the adaptation, not to the weights: no state dict has it, and none that is loaded changes it.

    Args:
        layer: that has none of its own; a LayerNorm gets one for each element, the others for each channel.
        like: of the dtype and device that they are to have.
    """

    def __init__(self, layer: nn.Module, like: torch.Tensor) -> None:
        super().__init__()
        self._elements = isinstance(layer, nn.LayerNorm)
        channels = layer.num_channels if isinstance(layer, nn.GroupNorm) else getattr(layer, "num_features", None)
        shape = layer.normalized_shape if self._elements else (channels,)
        with torch.inference_mode(False):
            self.weight = nn.Parameter(torch.ones(shape, dtype=like.dtype, device=like.device))
            self.bias = nn.Parameter(torch.zeros(shape, dtype=like.dtype, device=like.device))

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        """Of the same shape and dtype as ``y``, ``(B, C, ...)``; of a LayerNorm ``(..., *normalized_shape)``."""
        shape = self.weight.shape if self._elements else [-1] + [1] * (y.ndim - 2)
        return torch.addcmul(self.bias.view(shape), y, self.weight.view(shape)).to(y.dtype)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        pass

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        pass


def collect_affine_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Weight and bias of every normalization layer, by their name in ``network.named_parameters()``.

    Covers BatchNorm1d/2d/3d, SyncBatchNorm, InstanceNorm1d/2d/3d, GroupNorm and LayerNorm, and what
    :func:`grata.normalization.attach_affine` gave them.

    Raises:
        GrataError: when there is none; the message tells which layers the network has.
    """
    parameters: dict[str, nn.Parameter] = {}
    for name, layer in network.named_modules():
        if layer_kind(layer) is None and not isinstance(layer, ChannelAffine):
            continue
        for part in ("weight", "bias"):
            parameter = getattr(layer, part, None)
            # Layers may share a parameter: it is one, and takes one step.
            if parameter is not None and all(parameter is not known for known in parameters.values()):
                parameters[f"{name}.{part}" if name else part] = parameter
    if parameters:
        return parameters
    advice = "Train it with e.g. norm='batch' or norm=('instance', {'affine': True})."
    counts = Counter(kind for _, kind, _ in normalization_layers(network))
    if counts:
        found = ", ".join(f"{n} {kind} without affine parameters" for kind, n in sorted(counts.items()))
        advice = (
            "Attach some, which leaves the prediction as it is: affine=auto, or in Python "
            "grata.normalization.attach_affine(network). A TorchScript network takes none: use the Python network."
        )
    else:
        counts = Counter(
            getattr(m, "original_name", type(m).__name__) for m in network.modules() if not any(m.children())
        )
        found = "no normalization layer, only " + ", ".join(f"{n} {kind}" for kind, n in counts.most_common(6))
    raise GrataError(
        f"{getattr(network, 'original_name', type(network).__name__)} has nothing to adapt: it needs normalization "
        f"layers with affine parameters (weight, bias), and has {found}. {advice}"
    )
