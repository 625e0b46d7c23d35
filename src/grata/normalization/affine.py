"""Which layers of a network normalize, and which of their parameters can be adapted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import nn

from ..errors import GrataError

__all__ = ["batch_norm_layers", "collect_affine_parameters", "keeps_own_forward", "layer_kind", "normalization_layers"]

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


def collect_affine_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Weight and bias of every normalization layer, by their name in ``network.state_dict()``.

    Covers BatchNorm1d/2d/3d, SyncBatchNorm, InstanceNorm1d/2d/3d, GroupNorm and LayerNorm.

    Raises:
        GrataError: when there is none; the message tells which layers the network has.
    """
    layers = list(normalization_layers(network))
    parameters: dict[str, nn.Parameter] = {}
    for name, _, layer in layers:
        for part in ("weight", "bias"):
            parameter = getattr(layer, part, None)
            # Layers may share a parameter: it is one, and takes one step.
            if parameter is not None and all(parameter is not known for known in parameters.values()):
                parameters[f"{name}.{part}" if name else part] = parameter
    if parameters:
        return parameters
    if layers:
        counts = Counter(kind for _, kind, _ in layers)
        found = ", ".join(f"{n} {kind} without affine parameters" for kind, n in sorted(counts.items()))
    else:
        counts = Counter(
            getattr(m, "original_name", type(m).__name__) for m in network.modules() if not any(m.children())
        )
        found = "no normalization layer, only " + ", ".join(f"{n} {kind}" for kind, n in counts.most_common(6))
    raise GrataError(
        f"{getattr(network, 'original_name', type(network).__name__)} has nothing to adapt: it needs normalization "
        f"layers with affine parameters (weight, bias), and has {found}. Train it with e.g. norm='batch' or "
        "norm=('instance', {'affine': True})."
    )
