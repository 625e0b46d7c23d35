"""The memory of methods: values are declared once, and restoring, saving and loading follow from the declaration."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar, cast, overload

import torch

__all__ = ["Part", "Remembered", "Remembers"]

T = TypeVar("T")
P = TypeVar("P", bound="Part")


class Part(Protocol):
    """An object with its own memory that belongs to a method, such as an optimizer or a teacher."""

    def forget(self) -> None:
        """Return to the state after construction."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which another process can continue."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``."""


class Remembered(Generic[T]):
    """A value that a method remembers from batch to batch.

    A class declares it as ``_average = Remembered[torch.Tensor | None](None)`` and uses it as a plain attribute. It
    starts with its initial value, and ``restore()`` resets it to that. In a saved state its key is its name without the
    underscore.

    Args:
        initial: value at the source network; a loaded number is converted to its type.
    """

    def __init__(self, initial: T) -> None:
        self.initial = initial

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self.key = name.lstrip("_")

    @overload
    def __get__(self, instance: None, owner: type) -> Remembered[T]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object | None, owner: type) -> Remembered[T] | T:
        if instance is None:
            return self
        if self.name not in vars(instance):
            self.forget(instance)
        return cast(T, vars(instance)[self.name])

    def __set__(self, instance: object, value: T) -> None:
        vars(instance)[self.name] = value

    def forget(self, instance: object) -> None:
        """Set the value of ``instance`` to the initial value."""
        vars(instance)[self.name] = copy.copy(self.initial)

    def saved(self, instance: object) -> Any:
        """Return a copy of the value of ``instance`` for a saved state."""
        return _copy(self.__get__(instance, type(instance)))

    def load(self, instance: object, value: Any) -> None:
        """Set the value of ``instance`` to a copy of a saved value."""
        number = isinstance(self.initial, bool | int | float)
        vars(instance)[self.name] = type(self.initial)(value) if number else _copy(value)  # type: ignore[call-arg]


class Remembers:
    """Base of classes with a memory: :class:`Remembered` values of the class, and parts of an instance."""

    def _keep(self, key: str | None, part: P) -> P:
        """Add ``part`` to the method's parts and return it.

        Args:
            key: key of the part's state in the method's state; None: the keys of the part's state are added directly.
            part: object with its own memory.
        """
        vars(self).setdefault("_parts", []).append((key, part))
        return part

    @property
    def _kept(self) -> list[tuple[str | None, Part]]:
        return list(vars(self).get("_parts", []))

    def _forget(self) -> None:
        """Reset all values to the initial ones, and let each part forget."""
        for value in self._remembered():
            value.forget(self)
        for _, part in self._kept:
            part.forget()

    def _memory_state(self) -> dict[str, Any]:
        """Return copies of the values and the states of the parts, by their keys."""
        state: dict[str, Any] = {}
        for key, part in self._kept:
            state |= part.state_dict() if key is None else {key: part.state_dict()}
        return state | {value.key: value.saved(self) for value in self._remembered()}

    def _load_memory(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`_memory_state` returned."""
        for value in self._remembered():
            value.load(self, state[value.key])
        for key, part in self._kept:
            part.load_state_dict(state if key is None else state[key])

    @classmethod
    def _remembered(cls) -> list[Remembered[Any]]:
        found = {
            name: value
            for base in reversed(cls.__mro__)
            for name, value in vars(base).items()
            if isinstance(value, Remembered)
        }
        return list(found.values())


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    return copy.copy(value)
