"""Source weights: loaded whole or not at all."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import nn

from ..errors import GrataError

__all__ = ["load_source"]


def load_source(network_def: nn.Module, weights: str | Path, device: str | torch.device) -> nn.Module:
    """The source network on ``device``.

    Args:
        network_def: the network that the weights belong to; not used for a TorchScript file.
        weights: a state dict (``.pt``, also nested under ``model`` or ``state_dict``), or a scripted network (``.ts``).
        device: where the network is to lie.

    Raises:
        GrataError: the file is missing, unreadable, or its weights do not fit ``network_def`` exactly.
    """
    path = Path(weights)
    if not path.is_file():
        raise GrataError(f"weights: {path} does not exist. Train them (configs/train.yaml) or give --weights <file>.")
    if path.suffix == ".ts":
        try:
            return torch.jit.load(path, map_location=device)
        except (RuntimeError, ValueError) as error:
            raise GrataError(f"weights: {path} is not a TorchScript network: {_first_line(error)}") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError) as error:
        raise GrataError(
            f"weights: {path} cannot be read as a state dict: {_first_line(error)} "
            "Give a file written by torch.save(network.state_dict(), ...), or copy it anew."
        ) from error
    for key in ("model", "state_dict", "network"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise GrataError(f"weights: {path} holds a {type(state).__name__}, not a state dict.")
    try:
        network_def.load_state_dict(state)
    except RuntimeError as error:
        expected = network_def.state_dict()
        wrong = [k for k in expected if k in state and state[k].shape != expected[k].shape]
        missing = [k for k in expected if k not in state]
        extra = [k for k in state if k not in expected]
        details = "; ".join(
            f"{len(keys)} {what}, e.g. {keys[0]}"
            for what, keys in (("missing", missing), ("unknown", extra), ("of another shape", wrong))
            if keys
        )
        raise GrataError(
            f"weights: {path} does not belong to this {type(network_def).__name__} ({details}). "
            "Give the weights of this network, or the network_def of these weights."
        ) from error
    return network_def.to(device)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") + "." if lines else f"{type(error).__name__}."
