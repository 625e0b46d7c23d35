"""Normalization layers of a network, and those of their parameters that can be adapted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn, cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..errors import GrataError

__all__ = [
    "ATTACHED",
    "BATCH_NORM",
    "INSTANCE_NORM",
    "ChannelAffine",
    "TrackedNorm",
    "batch_norm_layers",
    "collect_affine_parameters",
    "keeps_own_forward",
    "layer_kind",
    "normalization_layers",
]

ATTACHED = "attached_affine"
"""Name of the attribute that holds the :class:`ChannelAffine` of a normalization layer."""

BATCH_NORM = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm")
INSTANCE_NORM = ("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d")

_BASES: dict[str, type[nn.Module]] = {
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


class TrackedNorm(nn.Module):
    """Type of a batch or instance normalization layer with running statistics.

    For annotations only: the layers are of torch's classes, and ``nn.Module`` does not declare these attributes.

    Attributes:
        running_mean: mean of each channel in the source data, ``(C,)``.
        running_var: variance of each channel in the source data, ``(C,)``.
        weight: scale of each channel; None without affine parameters.
        bias: shift of each channel; None without affine parameters.
        affine: whether there are affine parameters.
        eps: number that is added to the variance.
        num_features: number of channels C.
        track_running_stats: whether the layer keeps running statistics.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    affine: bool
    eps: float
    num_features: int
    track_running_stats: bool


def refuse_scripting() -> NoReturn:
    """Refuse ``torch.jit.script``, which calls this before it looks at a module.

    Raises:
        GrataError: always.
    """
    raise GrataError(
        "An adapted network cannot be scripted, because its normalization is the adaptation's. Save the adaptation "
        "(save_to, or a bank), bring the source back by grata.restore(network), and write the adapted weights into a "
        "plain network: in Python by grata.bank.apply(network, file), on a command line by python -m grata bank "
        "export. torch.jit.trace and torch.export take the adapted network as it is."
    )


def layer_kind(module: nn.Module) -> str | None:
    """Return the name of torch's normalization class that a module is or derives from; None for any other module.

    A TorchScript module has lost its Python class: its original name is used.
    """
    original_name = getattr(module, "original_name", None)
    if isinstance(original_name, str) and original_name in _BASES:
        return original_name
    return next((kind for kind, base in _BASES.items() if isinstance(module, base)), None)


def keeps_own_forward(layer: nn.Module, kind: str) -> bool:
    """Return whether the class of ``layer`` has another forward than torch's class ``kind`` that it derives from."""
    return type(layer).forward is not _BASES[kind].forward


def normalization_layers(network: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """Yield every normalization layer of a network, with or without affine parameters.

    Yields:
        ``(name, kind, layer)``: the name in ``network.named_modules()``, the name of torch's class, and the layer.
    """
    for name, module in network.named_modules():
        kind = layer_kind(module)
        if kind is not None:
            yield name, kind, module


def batch_norm_layers(network: nn.Module) -> Iterator[tuple[str, TrackedNorm]]:
    """Yield ``(name, layer)`` for every batch normalization layer of a network that keeps running statistics."""
    for name, kind, layer in normalization_layers(network):
        if kind in BATCH_NORM and getattr(layer, "running_mean", None) is not None:
            yield name, cast(TrackedNorm, layer)


class ChannelAffine(nn.Module):
    """Scale and shift ``y·weight + bias`` of the output ``y`` of a normalization layer, at first the identity.

    They belong to the adaptation, not to the weights: they are not in any state dict, and loading one does not change
    them.

    Args:
        layer: normalization layer without affine parameters. A LayerNorm gets one scale and one shift for each element,
            any other layer one for each channel.
        like: tensor with the dtype and device of the parameters.

    Attributes:
        weight: scale, 1 at first.
        bias: shift, 0 at first.
        handle: handle of the hook that applies them; None before it is registered.
    """

    def __init__(self, layer: nn.Module, like: torch.Tensor) -> None:
        super().__init__()
        self._elements = isinstance(layer, nn.LayerNorm)
        self.handle: RemovableHandle | None = None
        if isinstance(layer, nn.LayerNorm):
            shape = tuple(layer.normalized_shape)
        elif isinstance(layer, nn.GroupNorm):
            shape = (layer.num_channels,)
        else:
            shape = (cast(TrackedNorm, layer).num_features,)
        with torch.inference_mode(False):
            self.weight = nn.Parameter(torch.ones(shape, dtype=like.dtype, device=like.device))
            self.bias = nn.Parameter(torch.zeros(shape, dtype=like.dtype, device=like.device))

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        """Return ``y·weight + bias`` in the dtype of ``y``.

        Args:
            y: output of the layer, ``(B, C, ...)``; for a LayerNorm ``(..., *normalized_shape)``.
        """
        shape = self.weight.shape if self._elements else [-1] + [1] * (y.ndim - 2)
        return torch.addcmul(self.bias.view(shape), y, self.weight.view(shape)).to(y.dtype)

    def __prepare_scriptable__(self) -> NoReturn:
        refuse_scripting()

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        pass

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        pass


def collect_affine_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return weight and bias of every normalization layer.

    The layers are BatchNorm1d/2d/3d, SyncBatchNorm, InstanceNorm1d/2d/3d, GroupNorm and LayerNorm. The parameters that
    :func:`grata.normalization.attach_affine` gave them are included.

    Args:
        network: network to adapt.

    Returns:
        The parameters by their names in ``network.named_parameters()``; one that several layers share appears once.

    Raises:
        GrataError: there are none; the message lists the layers that the network has.
    """
    parameters: dict[str, nn.Parameter] = {}
    for name, layer in network.named_modules():
        if layer_kind(layer) is None and not isinstance(layer, ChannelAffine):
            continue
        for part in ("weight", "bias"):
            parameter = getattr(layer, part, None)
            # a parameter that layers share takes one step, not several
            if parameter is not None and all(parameter is not known for known in parameters.values()):
                parameters[f"{name}.{part}" if name else part] = parameter
    if not parameters:
        raise _nothing_to_adapt(network)
    return parameters


def _nothing_to_adapt(network: nn.Module) -> GrataError:
    advice = "Train it with e.g. norm='batch' or norm=('instance', {'affine': True})."
    counts = Counter(kind for _, kind, _ in normalization_layers(network))
    if counts:
        found = ", ".join(f"{n} {kind} without affine parameters" for kind, n in sorted(counts.items()))
        advice = (
            "Attach some with affine=auto, or in Python with grata.normalization.attach_affine(network); the "
            "prediction stays the same. A TorchScript network takes none: use the Python network."
        )
    else:
        counts = Counter(
            getattr(m, "original_name", type(m).__name__) for m in network.modules() if not any(m.children())
        )
        found = "no normalization layer, only " + ", ".join(f"{n} {kind}" for kind, n in counts.most_common(6))
    return GrataError(
        f"{getattr(network, 'original_name', type(network).__name__)} has nothing to adapt: it needs normalization "
        f"layers with affine parameters (weight, bias), but has {found}. {advice}"
    )
