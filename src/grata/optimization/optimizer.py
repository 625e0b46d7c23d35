"""An optimizer that takes steps of its own length, gives up steps that overflow, and can be saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import GrataError
from .gradients import cloned, load_optimizer

__all__ = ["MakeOptimizer", "Stepper", "make_optimizer"]

MakeOptimizer = Callable[[list[tuple[str, nn.Parameter]]], torch.optim.Optimizer]
"""Makes an optimizer for named parameters, with as many parameter groups as it likes."""


class Stepper:
    """Takes optimizer steps on named parameters.

    Args:
        parameters: parameters that take the steps, by name.
        make: function that makes the optimizer.

    Attributes:
        optimizer: the present optimizer; :meth:`forget` makes another one.
    """

    optimizer: torch.optim.Optimizer

    def __init__(self, parameters: Mapping[str, nn.Parameter], make: MakeOptimizer) -> None:
        self._parameters = parameters
        self._make = make
        self.forget()

    def step(self, gradient: Sequence[torch.Tensor | None], factor: float) -> float | None:
        """Take one step.

        Args:
            gradient: one for each parameter; an optimizer leaves a parameter alone where it is None.
            factor: factor on the base learning rates.

        Returns:
            The learning rate of the first group; None where the step overflows: the optimizer is then as it was
            before, and the parameters hold what is not finite.
        """
        before = cloned(self.optimizer.state_dict())
        for group, base in zip(self.optimizer.param_groups, self._base_lr, strict=True):
            group["lr"] = base * factor
        for parameter, part in zip(self._parameters.values(), gradient, strict=True):
            parameter.grad = part
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        moments = (value for state in self.optimizer.state.values() for value in state.values())
        values = (*self._parameters.values(), *(m for m in moments if isinstance(m, torch.Tensor)))
        if all(torch.isfinite(value).all() for value in values):
            return float(self.optimizer.param_groups[0]["lr"])
        load_optimizer(self.optimizer, before)
        return None

    def forget(self) -> None:
        """Make the optimizer anew, without moments."""
        self.optimizer = self._make(list(self._parameters.items()))
        self._base_lr = [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the optimizer's state; safe for ``torch.load(weights_only=True)``."""
        return dict(cloned(self.optimizer.state_dict()))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``."""
        load_optimizer(self.optimizer, dict(state))

    def signature(self) -> str:
        """Return the class and settings of the optimizer in words, as a saved state compares them."""
        groups = [
            {key: lr if key == "lr" else value for key, value in group.items() if key not in ("params", "param_names")}
            for group, lr in zip(self.optimizer.param_groups, self._base_lr, strict=True)
        ]
        return f"{type(self.optimizer).__name__} {groups}"


def make_optimizer(
    optimizer: str | MakeOptimizer,
    lr: float,
    options: Mapping[str, Any],
    parameters: list[tuple[str, nn.Parameter]],
) -> torch.optim.Optimizer:
    """Make an optimizer.

    Args:
        optimizer: class of an optimizer or its name in ``torch.optim``, or a function that makes the optimizer from the
            parameters.
        lr: learning rate, for a class or a name.
        options: further arguments, for a class or a name.
        parameters: parameters with their names.

    Raises:
        GrataError: there is no such optimizer, it refuses its options, or it does not fit single gradient steps.
    """
    named: Any = optimizer if callable(optimizer) else _class_named(optimizer)
    if isinstance(named, type) and issubclass(named, torch.optim.Optimizer):
        made = _of_class(named, lr, options, parameters)
    else:
        made = named(parameters)
    if not isinstance(made, torch.optim.Optimizer):
        raise GrataError(
            f"must be a name or make a torch.optim.Optimizer, got a {type(made).__name__}.", key="optimizer"
        )
    if isinstance(made, torch.optim.LBFGS | torch.optim.SparseAdam):
        raise GrataError(
            f"{type(made).__name__} does not fit: LBFGS evaluates the loss several times a step, SparseAdam "
            "takes sparse gradients. Use for example Adam, AdamW or SGD.",
            key="optimizer",
        )
    return made


def _class_named(name: str) -> type[torch.optim.Optimizer]:
    found = getattr(torch.optim, str(name), None)
    if isinstance(found, type) and issubclass(found, torch.optim.Optimizer):
        return found
    raise GrataError(f"torch.optim has no {name!r}; for example Adam, AdamW or SGD.", key="optimizer")


def _of_class(
    optimizer: Any, lr: float, options: Mapping[str, Any], parameters: list[tuple[str, nn.Parameter]]
) -> torch.optim.Optimizer:
    try:
        made: torch.optim.Optimizer = optimizer(parameters, lr=lr, **options)
        return made
    # Optimizers check their arguments each in its own way.
    except (TypeError, ValueError, LookupError, RuntimeError) as error:
        raise GrataError(f"{optimizer.__name__} refuses {dict(options)}: {error}.", key="optimizer_options") from error
