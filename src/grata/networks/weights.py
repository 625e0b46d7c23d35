"""Source weights: loaded whole or not at all."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import nn

from ..errors import GrataError

__all__ = ["load_source"]


def load_source(network_def: nn.Module | None, weights: str | Path, device: str | torch.device) -> nn.Module:
    """The source network on ``device``.

    Args:
        network_def: the network that the weights belong to; None for a TorchScript network that is to be taken as it is.
        weights: a state dict (``.pt``, also nested under ``model`` or ``state_dict``), or a scripted network (``.ts``).
        device: where the network is to lie.

    Raises:
        GrataError: the file is missing, unreadable, or its weights do not fit ``network_def`` exactly.
    """
    if not isinstance(weights, str | Path):
        raise GrataError(f"weights: name a file, got {weights!r}.")
    path = Path(weights)
    if path.is_dir():
        raise GrataError(f"weights: {path} is a folder. Name the file in it.")
    if not path.is_file():
        raise GrataError(f"weights: {path} does not exist. Train them (configs/train.yaml) or give --weights <file>.")
    if path.suffix == ".ts":
        try:
            scripted = torch.jit.load(path, map_location=device)
        except (RuntimeError, ValueError) as error:
            raise GrataError(f"weights: {path} is not a TorchScript network: {_first_line(error)}") from error
        if network_def is not None:
            _check_fit(scripted.state_dict(), network_def, path)
        return scripted
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    # torch's own text advises to allow pickles, which run code.
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError) as error:
        raise GrataError(
            f"weights: {path} cannot be read as a state dict: it is damaged, a TorchScript file (name it .ts), or holds "
            "Python objects, which are never loaded because they can run code. Give a file written by "
            "torch.save(network.state_dict(), ...), or copy it anew."
        ) from error
    if network_def is None:
        raise GrataError(f"network_def: {path} holds weights alone. Give the network that they belong to.")
    for key in ("model", "state_dict", "network"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise GrataError(f"weights: {path} holds a {type(state).__name__}, not a state dict.")
    _check_fit(state, network_def, path)
    network_def.load_state_dict(state)
    return network_def.to(device)


def _check_fit(state: dict[str, torch.Tensor], network_def: nn.Module, path: Path) -> None:
    expected = network_def.state_dict()
    shapes = {key: getattr(value, "shape", None) for key, value in state.items()}
    differences = {
        "missing": [key for key in expected if key not in shapes],
        "unknown": [key for key in shapes if key not in expected],
        "of another shape": [key for key in expected if key in shapes and shapes[key] != expected[key].shape],
    }
    details = "; ".join(f"{len(keys)} {what}, e.g. {keys[0]}" for what, keys in differences.items() if keys)
    if details:
        raise GrataError(
            f"weights: {path} does not belong to this {type(network_def).__name__} ({details}). "
            "Give the weights of this network, or the network_def of these weights."
        )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") + "." if lines else f"{type(error).__name__}."
