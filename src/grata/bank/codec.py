"""A method's state as named tensors and a JSON skeleton, without pickles and without loss of a bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["decode", "encode"]


def encode(state: Any) -> tuple[dict[str, torch.Tensor], Any]:
    """Separate a nested state into its tensors and a skeleton.

    Args:
        state: dicts, lists and tuples of tensors and plain values; keys are strings or whole numbers.

    Returns:
        Tensors by their path, such as ``optimizer/state/0/exp_avg``, on the CPU, contiguous and without shared memory;
        and the skeleton, ready for JSON.

    Raises:
        TypeError: the state holds a value of another kind.
    """
    tensors: dict[str, torch.Tensor] = {}
    return tensors, _encoded(state, "", tensors)


def decode(skeleton: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Return the state that :func:`encode` separated, with its own copies of the tensors.

    Args:
        skeleton: skeleton that :func:`encode` returned.
        tensors: tensors that :func:`encode` returned.
    """
    if isinstance(skeleton, list):
        return [decode(item, tensors) for item in skeleton]
    if not isinstance(skeleton, dict):
        return skeleton
    ((kind, value),) = skeleton.items()
    if kind == "dict":
        return {key: decode(item, tensors) for key, item in value}
    if kind == "tuple":
        return tuple(decode(item, tensors) for item in value)
    if kind == "float":
        return float(value)
    name, stride = value
    tensor = tensors[name]
    if stride is None:
        return tensor.clone()
    # The layout in memory can decide the order of summation.
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype).copy_(tensor)


def _encoded(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        plain = value.detach().cpu().clone()
        # Two keys may give the same path: the number 0 and the text "0".
        while path in tensors:
            path += "'"
        tensors[path] = plain.contiguous()
        return {"tensor": [path, None if plain.is_contiguous() else list(plain.stride())]}
    if isinstance(value, Mapping):
        return {
            "dict": [[_key(key), _encoded(item, f"{path}/{key}".strip("/"), tensors)] for key, item in value.items()]
        }
    if isinstance(value, list | tuple):
        items = [_encoded(item, f"{path}/{index}".strip("/"), tensors) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{path}: a {type(value).__name__} cannot be part of a saved state.")


def _key(key: Any) -> str | int:
    if type(key) not in (str, int):
        raise TypeError(f"{key!r}: a {type(key).__name__} cannot be a key of a saved state.")
    return key
