"""The mark that a network is being adapted, on the network itself: a second method would take it for the source."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

from torch import nn

from ..errors import GrataError, RunError
from ..methods import Method
from ..methods.owner import owners

__all__ = ["Mark", "loosen", "mark_of", "release", "restore", "take"]

_KEY = "_adapted_by"


class Mark:
    """The method that adapts a network, and the session that holds it.

    The method keeps the source weights, so the network can be restored after everything else that knew it is gone. A
    copy of the network, also in a file, has no mark.

    Args:
        method: method whose network is marked.
        holder: session that adapts; it is not kept alive.

    Attributes:
        method: method that adapts the network.
    """

    def __init__(self, method: Method, holder: object) -> None:
        self.method = method
        self._holder: weakref.ref[object] | None = weakref.ref(holder)

    @property
    def holder(self) -> object | None:
        """The session; None once it is gone or has failed."""
        return None if self._holder is None else self._holder()

    def loosen(self) -> None:
        """Let the next session have the network, which it restores first."""
        self._holder = None

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


def mark_of(network: nn.Module) -> Mark | None:
    """Return the mark of a network, of one inside it or of one around it; None: no method adapts it."""
    return next((mark for mark in _marks(network) if mark.method.active), None)


def _marks(network: nn.Module) -> Iterator[Mark]:
    """Yield the marks on a network and on what is in it, also those of methods that were restored since."""
    for module in network.modules():
        mark = vars(module).get(_KEY)
        if isinstance(mark, Mark):
            yield mark


def take(method: Method, holder: object) -> bool:
    """Mark the network of a method as taken by a session.

    A network that is still adapted by a session that is gone or has failed is restored first.

    Args:
        method: method that is about to adapt its network.
        holder: its session.

    Returns:
        Whether the network had no mark of the method: nobody had it, or it was restored since.

    Raises:
        RunError: another method adapts the network for a session that is still there, or what was attached to the
            network is gone.
    """
    mark = mark_of(method.given)
    if mark is not None and mark.method is method and mark.holder is holder:
        return False
    if mark is not None and mark.method is not method:
        if _is_held(mark):
            raise RunError(
                f"method {mark.method.name} adapts it already, for a stream or a handler that is still there. "
                "Call grata.restore(network) to bring its source weights back, and begin anew.",
                key="network",
            )
        release(mark.method)
    if method.attached is not None and not method.attached.present:
        raise RunError(
            "the parameters that were attached to its normalization layers are gone, because it was restored since. "
            "Begin anew: make the stream, the handler or the method again.",
            key="network",
        )
    return _mark(method, holder)


def _mark(method: Method, holder: object) -> bool:
    """Mark the network of a method; return whether it had no mark of that method."""
    new, former = Mark(method, holder), vars(method.given).get(_KEY)
    for module in method.given.modules():
        vars(module)[_KEY] = new
    return not (isinstance(former, Mark) and former.method is method)


def _is_held(mark: Mark) -> bool:
    if mark.holder is not None:
        # What nobody can reach any more may still wait for its collection.
        gc.collect()
    return mark.holder is not None


def loosen(session: Any) -> None:
    """Let the next session have the network of one that has failed; that one may go on until then."""
    mark = vars(session.method.given).get(_KEY)
    if isinstance(mark, Mark) and mark.holder is session:
        mark.loosen()


def release(method: Method) -> None:
    """Restore the source network of a method, and remove its mark; other weights that were loaded since stay."""
    method.let_go()
    for module in method.given.modules():
        mark = vars(module).get(_KEY)
        if isinstance(mark, Mark) and mark.method is method:
            del vars(module)[_KEY]


def restore(network: nn.Module) -> bool:
    """Bring the source weights of a network back, whoever adapts it, and remove what was attached to it.

    Other weights that were loaded into the adapted network stay as they are.

    A stream, handler or session that goes on afterwards begins from the source again. Where parameters had been
    attached to the network, it is refused: make a new one.

    Args:
        network: network that was given to :func:`grata.adapt`, to a handler, to a session or to a method.

    Returns:
        Whether the network was adapted.

    Raises:
        GrataError: it is not a network.
    """
    if not isinstance(network, nn.Module):
        raise GrataError(
            "must be the network (a torch.nn.Module) that was given to grata.adapt, to a handler, to a session or to a "
            f"method, got {type(network).__name__}.",
            key="network",
        )
    methods = list(dict.fromkeys([*(mark.method for mark in _marks(network)), *owners(network)]))
    adapted = any(method.active for method in methods)
    for method in methods:
        release(method)
        if method.attached is not None:
            method.attached.detach()
    return adapted
