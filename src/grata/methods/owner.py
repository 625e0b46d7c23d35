"""Who adapts a network, noted in the network itself: another method would take its parameters for the source's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from ..errors import GrataError

__all__ = ["check_free", "disown", "own", "owners"]

_KEY = "_changed_by"


class _Owner:
    """The method that changes a network; a copy of the network alone, also in a file, has none.

    It keeps the method, and with it the source weights, so that the network can be restored after everything else that
    knew the method is gone.
    """

    def __init__(self, method: object) -> None:
        self.method = method

    def __deepcopy__(self, memo: dict[int, Any]) -> _Owner | None:
        # within the copy of the method, the copy of the network belongs to it
        return _Owner(memo[id(self.method)]) if id(self.method) in memo else None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


def owners(network: nn.Module) -> Iterator[Any]:
    """Yield the methods that change a network or a part of it, each once."""
    found = (vars(module).get(_KEY) for module in network.modules())
    yield from dict.fromkeys(owner.method for owner in found if isinstance(owner, _Owner))


def check_free(network: nn.Module, method: object) -> None:
    """Check that no other method changes a network.

    Raises:
        GrataError: another method does.
    """
    if any(owner is not method for owner in owners(network)):
        raise GrataError(
            "The network is being adapted by another method. Call that method's restore() first, or "
            "grata.restore(network)."
        )


def own(network: nn.Module, method: object) -> None:
    """Note that a method changes a network."""
    owner = _Owner(method)
    for module in network.modules():
        vars(module)[_KEY] = owner


def disown(network: nn.Module, method: object) -> None:
    """Remove the note of a method."""
    for module in network.modules():
        owner = vars(module).get(_KEY)
        if isinstance(owner, _Owner) and owner.method is method:
            del vars(module)[_KEY]
