"""A teacher: second weights for the parameters of one network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch

from ..networks.parameters import copied, in_place

__all__ = ["Teacher"]


class Teacher:
    """Weights of a teacher, which uses the student's network with its own weights in place.

    There is one network, so that hooks, statistics and memory are those of one; the teacher costs a copy of the
    parameters. Until it is first told to differ it is equal to the student.

    Args:
        parameters: parameters of the student, by name.
    """

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        self._parameters = parameters
        self._weights: dict[str, torch.Tensor] | None = None

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The teacher's weights by the parameters' names; the student's where the teacher has none of its own yet."""
        return copied(self._parameters) if self._weights is None else self._weights

    @contextlib.contextmanager
    def in_place(self, learns: bool = False) -> Iterator[None]:
        """Give the network the teacher's weights for a ``with`` block, then the student's, exactly.

        Args:
            learns: whether the teacher keeps what the block makes of its weights.
        """
        if self._weights is None and not learns:
            yield
            return
        with in_place(self._parameters, self.weights):
            yield
            if learns:
                self._weights = copied(self._parameters)

    def begin(self) -> None:
        """Take the student's present weights, where the teacher has none of its own yet."""
        self._weights = self.weights

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Move towards the student: ``θ' ← momentum·θ' + (1 − momentum)·θ``."""
        weights = self._weights = self.weights
        for name, parameter in self._parameters.items():
            weights[name].mul_(momentum).add_(parameter, alpha=1 - momentum)

    def forget(self) -> None:
        """Make the teacher equal to the student again."""
        self._weights = None

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return copies of the weights; empty while the teacher is equal to the student."""
        return {} if self._weights is None else copied(self._weights)

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue from ``state``."""
        self._weights = None
        if state:
            self._weights = {name: state[name].to(p, copy=True) for name, p in self._parameters.items()}
