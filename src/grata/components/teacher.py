"""A teacher: second weights for the parameters of one network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn

__all__ = ["Teacher"]


class Teacher:
    """Weights of a teacher, which uses the student's network with its own weights in place.

    There is one network, so that hooks, statistics and memory are those of one; the teacher costs a copy of the
    parameters. Until it is first told to differ it is equal to the student.

    Args:
        parameters: the student's, by name.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = parameters
        self._weights: dict[str, torch.Tensor] | None = None

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """By the parameters' names; the student's present ones where the teacher has none of its own yet."""
        return self._copy() if self._weights is None else self._weights

    @contextlib.contextmanager
    def in_place(self, learns: bool = False) -> Iterator[None]:
        """The network with the teacher's weights for the time of a ``with`` block, then with the student's, exactly.

        Args:
            learns: keep what the block makes of the weights.
        """
        if self._weights is None and not learns:
            yield
            return
        student = self._copy()
        try:
            self._write(self.weights)
            yield
            if learns:
                self._weights = self._copy()
        finally:
            self._write(student)

    def begin(self) -> None:
        """Have the student's present weights from now on, where the teacher has none of its own yet."""
        self._weights = self.weights

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Move towards the student: ``θ' ← momentum·θ' + (1 − momentum)·θ``."""
        self.begin()
        for name, parameter in self._parameters.items():
            self._weights[name].mul_(momentum).add_(parameter, alpha=1 - momentum)

    def forget(self) -> None:
        """Be equal to the student again."""
        self._weights = None

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Empty while the teacher is equal to the student."""
        return {} if self._weights is None else {name: value.clone() for name, value in self._weights.items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from ``state``."""
        self._weights = None
        if state:
            self._weights = {name: state[name].to(p, copy=True) for name, p in self._parameters.items()}

    def _copy(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def _write(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
