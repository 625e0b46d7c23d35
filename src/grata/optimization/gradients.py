"""Gradients of a loss, also in half precision and by parts, and the state of an optimizer."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..errors import GrataError
from .cosine import gradient_norm

__all__ = ["add_gradients", "cloned", "gradient_of", "load_optimizer"]


def gradient_of(
    loss: torch.Tensor, parameters: Sequence[nn.Parameter], half_precision: bool = False
) -> list[torch.Tensor | None]:
    """Return the gradient of a loss. Its graph is freed, unless the forward was in half precision.

    Args:
        loss: loss, a scalar.
        parameters: parameters to differentiate by.
        half_precision: whether the forward ran in float16.

    Returns:
        A gradient for each parameter, in their order; None for a parameter that the loss does not depend on, which an
        optimizer then leaves unchanged, weight decay included.

    Raises:
        GrataError: the loss depends on none of the parameters.
    """
    if not half_precision:
        return _gradient(loss, parameters)
    # The gradient of a mean over voxels is below what float16 resolves: scale the loss, less where that overflows.
    for exponent in (16, 12, 8, 4, 0):
        scaled = _gradient(loss * 2.0**exponent, parameters, retain_graph=True)
        gradient = [None if g is None else g / 2.0**exponent for g in scaled]
        if math.isfinite(gradient_norm(gradient)):
            break
    return gradient


def add_gradients(
    total: Sequence[torch.Tensor | None], part: Sequence[torch.Tensor | None]
) -> list[torch.Tensor | None]:
    """Return the sum of two gradients over the same parameters; None counts as zero."""
    return [b if a is None else a if b is None else a + b for a, b in zip(total, part)]


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state dict; unlike ``optimizer.load_state_dict``, share no tensor with it and keep all dtypes."""
    optimizer.load_state_dict(cloned(state))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, saved in state["state"].items():
        loaded = optimizer.state[parameters[index]]
        for key, value in saved.items():
            if isinstance(value, torch.Tensor):
                loaded[key] = value.to(loaded[key].device, copy=True)


def cloned(state: Any) -> Any:
    """Return a copy of an optimizer's state dict, in a fraction of the time of a deep copy."""
    if isinstance(state, torch.Tensor):
        return state.detach().clone()
    if type(state) is dict:
        return {key: cloned(value) for key, value in state.items()}
    if type(state) in (list, tuple):
        return type(state)(cloned(value) for value in state)
    return state if isinstance(state, bool | int | float | str | None) else copy.deepcopy(state)


def _gradient(
    loss: torch.Tensor, parameters: Sequence[nn.Parameter], retain_graph: bool = False
) -> list[torch.Tensor | None]:
    gradients: Sequence[torch.Tensor | None] = [None]
    if loss.requires_grad:
        gradients = torch.autograd.grad(loss, parameters, retain_graph=retain_graph, allow_unused=True)
    if all(g is None for g in gradients):
        raise GrataError(
            "The network's prediction does not depend on any adapted parameter: its normalization layers are not "
            "used, run without gradients, or were replaced since the method was made."
        )
    return list(gradients)
