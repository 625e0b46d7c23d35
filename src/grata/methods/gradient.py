"""What methods share that learn by gradient steps on the affine parameters of normalization layers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..alignment import gradient_norm
from ..errors import GrataError
from ..normalization import collect_affine_parameters
from ..objectives import entropy_loss
from ..objectives.activation import check_activation
from ..objectives.entropy import entropy_map
from .base import Method

__all__ = ["SKIPPED", "GradientMethod", "check_number", "check_precision", "non_finite"]

SKIPPED = "step_skipped"
"""Flag of a step that was not taken."""

_AUTOCAST = {"bfloat16": torch.bfloat16, "bf16": torch.bfloat16, "float16": torch.float16, "fp16": torch.float16}


class GradientMethod(Method):
    """Base of methods that take optimizer steps on weight and bias of the normalization layers, nothing else.

    Args:
        network: the source network; it needs normalization layers with affine parameters.
        activation: ``sigmoid`` (multi-label) or ``softmax`` (multi-class).
        optimizer: name of a class of ``torch.optim``, or a callable that is given a list of ``(name, parameter)`` and
            returns an optimizer (with as many parameter groups as it likes).
        lr: base learning rate, for an optimizer that is named.
        seed: of the method's own random generator.
        optimizer_options: further arguments of a named optimizer, e.g. ``{"betas": (0.9, 0.999)}``.
        entropy: see :func:`grata.objectives.entropy_loss`.
        batch_statistics: weight of the batch's statistics in batch normalization, 1 to 0 (the source's).
        episodic: back to the source network for every case, instead of online.
        autocast: ``bfloat16`` or ``float16`` for the forwards; None: as the surrounding ``torch.autocast`` says.
        output: key or index of the logits, for a network that returns a dict, list or tuple.

    Raises:
        GrataError: a setting is out of range, or the network has nothing to adapt.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        activation: str,
        optimizer: str | Callable[[list[tuple[str, nn.Parameter]]], torch.optim.Optimizer],
        lr: float,
        seed: int,
        optimizer_options: Mapping[str, Any] | None,
        entropy: str,
        batch_statistics: float,
        episodic: bool,
        autocast: str | None,
        output: str | int | None,
    ) -> None:
        super().__init__(network, collect_affine_parameters(network), batch_statistics, seed, episodic)
        check_activation(activation)
        self.activation = activation
        self.entropy = entropy
        entropy_loss(torch.zeros(1, 2, 1), activation, entropy)  # a wrong name fails here, not after the first scan
        self.autocast = check_precision("autocast", autocast)
        self.output = output
        self._optimizer_settings = (optimizer, lr, optimizer_options or {})
        self._reset_optimizer()

    def uncertainty(self, images: torch.Tensor) -> torch.Tensor:
        """Mean entropy of the prediction, by the same definition as the auxiliary loss; shape ``(B,)``."""
        self._activate()
        self._network.eval()
        with torch.no_grad():
            return entropy_map(self._logits(self._plain(images)), self.activation, self.entropy).flatten(1).mean(1)

    def _loss_and_gradient(
        self, x: torch.Tensor, loss_at: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[float, list[torch.Tensor | None]]:
        """Value and gradient over the adapted parameters of ``loss_at(x)``."""
        loss = loss_at(x)
        parameters = list(self.parameters.values())
        if not self._half_precision(x):
            return loss.item(), _gradient(loss, parameters)
        # The gradient of a mean over voxels is below what float16 resolves: scale the loss, less where that overflows.
        for exponent in (16, 12, 8, 4, 0):
            scaled = _gradient(loss * 2.0**exponent, parameters, retain_graph=True)
            gradient = [None if g is None else g / 2.0**exponent for g in scaled]
            if math.isfinite(gradient_norm(gradient)):
                break
        return loss.item(), gradient

    def _precision(self, x: torch.Tensor, autocast: torch.dtype | None = None) -> torch.autocast:
        """The precision of a forward: the one given, else the method's own, else that of the surrounding autocast."""
        device, dtype = x.device.type, autocast or self.autocast
        if dtype is not None:
            return torch.autocast(device, dtype=dtype)
        return torch.autocast(device, enabled=torch.is_autocast_enabled(device))

    def _logits(self, x: torch.Tensor, autocast: torch.dtype | None = None) -> torch.Tensor:
        """Logits in float32 ``(B, C, ...)``."""
        with self._precision(x, autocast):
            logits = _item(self._network(x), self.output)
        if self.activation == "softmax" and logits.shape[1] < 2:
            raise GrataError("activation=softmax needs two or more output channels; a single one is for sigmoid.")
        return logits if logits.dtype == torch.float64 else logits.float()

    def _half_precision(self, x: torch.Tensor) -> bool:
        if self.autocast is not None:
            return self.autocast is torch.float16
        device = x.device.type
        return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) is torch.float16

    def _optimizer_step(self, gradient: list[torch.Tensor | None], factor: float) -> float | None:
        """One step at ``factor`` times the base learning rates; None (and the optimizer as before) when it overflows."""
        before = copy.deepcopy(self.optimizer.state_dict())
        for group, base in zip(self.optimizer.param_groups, self._base_lr):
            group["lr"] = base * factor
        for parameter, g in zip(self.parameters.values(), gradient):
            parameter.grad = g
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        moments = (value for state in self.optimizer.state.values() for value in state.values())
        values = (*self.parameters.values(), *(m for m in moments if isinstance(m, torch.Tensor)))
        if all(torch.isfinite(value).all() for value in values):
            return self.optimizer.param_groups[0]["lr"]
        _load_optimizer(self.optimizer, before)
        return None

    def _reset_optimizer(self) -> None:
        self.optimizer = _optimizer(*self._optimizer_settings, list(self.parameters.items()))
        self._base_lr = [float(group["lr"]) for group in self.optimizer.param_groups]

    def restore(self) -> None:
        super().restore()
        self._reset_optimizer()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "optimizer_settings": self._optimizer_signature(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``.

        Raises:
            GrataError: it is of another method, network, optimizer, or of other settings of the optimizer.
        """
        if state.get("method") == self.name and state["optimizer_settings"] != self._optimizer_signature():
            raise GrataError(
                f"This state was written with another optimizer or other settings of it ({state['optimizer_settings']}, "
                f"here {self._optimizer_signature()}): give the same ones, or start anew."
            )
        super().load_state_dict(state)
        with torch.inference_mode(False):
            _load_optimizer(self.optimizer, state["optimizer"])

    def _optimizer_signature(self) -> str:
        groups = [
            {key: lr if key == "lr" else value for key, value in group.items() if key not in ("params", "param_names")}
            for group, lr in zip(self.optimizer.param_groups, self._base_lr)
        ]
        return f"{type(self.optimizer).__name__} {groups}"


def _item(output: Any, which: str | int | None) -> torch.Tensor:
    """The logits in what a network returns."""
    # A network with deep supervision returns a list in training alone.
    if isinstance(output, torch.Tensor) and not isinstance(which, str):
        return output
    if which is not None:
        try:
            output = output[which]
        except (LookupError, TypeError, ValueError) as error:
            raise GrataError(f"output: {which!r} is not in what the network returns, {_described(output)}.") from error
    if not isinstance(output, torch.Tensor):
        raise GrataError(f"The network returns {_described(output)}: name the logits by output.")
    return output


def _described(output: Any) -> str:
    has = f" with keys {list(output)}" if isinstance(output, Mapping) else ""
    has = f" of {len(output)} items" if isinstance(output, list | tuple) else has
    return f"a {type(output).__name__}{has}"


def _gradient(
    loss: torch.Tensor, parameters: list[nn.Parameter], retain_graph: bool = False
) -> list[torch.Tensor | None]:
    """None for a parameter that the loss does not depend on: an optimizer then leaves it alone, weight decay and all."""
    gradients: Sequence[torch.Tensor | None] = [None]
    if loss.requires_grad:
        gradients = torch.autograd.grad(loss, parameters, retain_graph=retain_graph, allow_unused=True)
    if all(g is None for g in gradients):
        raise GrataError(
            "The network's prediction does not depend on any adapted parameter: its normalization layers are not used, run "
            "without gradients, or were replaced since the method was made."
        )
    return list(gradients)


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """``optimizer.load_state_dict`` that neither shares tensors with ``state`` nor changes their types, as torch's does."""
    state = copy.deepcopy(state)
    optimizer.load_state_dict(state)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, saved in state["state"].items():
        loaded = optimizer.state[parameters[index]]
        for key, value in saved.items():
            if isinstance(value, torch.Tensor):
                loaded[key] = value.to(loaded[key].device, copy=True)


def non_finite(part: str, loss: float, norm: float) -> tuple[str, ...]:
    """Flags of a step whose loss or gradient norm is not finite; none when both are."""
    if not math.isfinite(loss):
        return (f"non_finite_{part}_loss", SKIPPED)
    if not math.isfinite(norm):
        return (f"non_finite_{part}_gradient", SKIPPED)
    return ()


def check_number(name: str, value: Any, low: float) -> float:
    """``value`` as a float; :class:`GrataError` unless it is a finite number of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < low:
        raise GrataError(f"{name} must be a finite number of at least {low:g}, got {value!r}.")
    return float(value)


def check_precision(name: str, value: str | None) -> torch.dtype | None:
    """The dtype called ``value``; :class:`GrataError` unless it is ``bfloat16``, ``float16`` or None."""
    if value is not None and str(value) not in _AUTOCAST:
        raise GrataError(f"{name} must be one of {', '.join(_AUTOCAST)}, or null, got {value!r}.")
    return None if value is None else _AUTOCAST[value]


def _optimizer(
    optimizer: str | Callable[[list[tuple[str, nn.Parameter]]], torch.optim.Optimizer],
    lr: float,
    options: Mapping[str, Any],
    parameters: list[tuple[str, nn.Parameter]],
) -> torch.optim.Optimizer:
    if not isinstance(options, Mapping):
        raise GrataError(f"optimizer_options must be a mapping such as {{'betas': [0.9, 0.999]}}, got {options!r}.")
    if callable(optimizer):
        made = optimizer(parameters)
    else:
        lr = check_number("lr", lr, low=0.0)
        optimizer_class = getattr(torch.optim, str(optimizer), None)
        if not (isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.Optimizer)):
            raise GrataError(f"optimizer: torch.optim has no {optimizer!r}; for example Adam, AdamW or SGD.")
        try:
            made = optimizer_class(parameters, lr=lr, **options)
        # Optimizers check their arguments each in its own way.
        except (TypeError, ValueError, LookupError, RuntimeError) as error:
            raise GrataError(f"optimizer_options: {optimizer} refuses {dict(options)}: {error}.") from error
    if not isinstance(made, torch.optim.Optimizer):
        raise GrataError(f"optimizer must be a name or make a torch.optim.Optimizer, got a {type(made).__name__}.")
    if isinstance(made, torch.optim.LBFGS | torch.optim.SparseAdam):
        raise GrataError(
            f"optimizer: {type(made).__name__} does not fit: LBFGS evaluates the loss several times a step, SparseAdam "
            "takes sparse gradients. Use for example Adam, AdamW or SGD."
        )
    return made
