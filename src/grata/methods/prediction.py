"""Networks that predict in place of the adapted one: by a method's own rule, or by the mean over weak views."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast

import torch
from torch import nn

from ..errors import GrataError, RunError
from ..predictions import activate, logits_of, view_agreement
from ..views import View, resolve_views

__all__ = ["Chosen", "ChosenPrediction", "Computed", "PredictionNetwork", "logits_in", "put_logits"]


@dataclass(frozen=True)
class Computed:
    """Predictions of a batch that a step has computed anyway.

    Attributes:
        images: the batch ``(B, C, ...)``.
        before: logits at the parameters before the step; None: the step did not predict the images as they are.
        views: weak views of ``mean``.
        mean: mean probability over the views, mapped back; None: the step did not predict the views.
    """

    images: torch.Tensor
    before: torch.Tensor | None = None
    views: tuple[View, ...] = ()
    mean: torch.Tensor | None = None

    def logits_of(self, x: torch.Tensor) -> torch.Tensor | None:
        """Return the logits before the step where ``x`` is the batch; None: they are not known."""
        return self.before if self.before is not None and self.is_of(x) else None

    def is_of(self, x: torch.Tensor) -> bool:
        """Return whether ``x`` is the batch."""
        same = x.shape == self.images.shape and x.dtype == self.images.dtype and x.device == self.images.device
        return same and torch.equal(x, self.images)


class _Predicting(Protocol):
    """What a method shows to the network that predicts in its place."""

    @property
    def name(self) -> str:
        """Name of the method."""

    output: str | int | None
    _network: nn.Module
    _active: bool
    _as_source: bool

    def _plain(self, images: torch.Tensor) -> torch.Tensor: ...


class _Predicts(_Predicting, Protocol):
    def _predict(self, x: torch.Tensor) -> torch.Tensor: ...


class Chosen(_Predicting, Protocol):
    """What a method shows to :class:`ChosenPrediction`."""

    predict: str
    computed: Computed | None
    view_agreements: list[float]

    @property
    def prediction_views(self) -> Sequence[str] | None:
        """Names of the weak views that predict."""

    @property
    def meaning(self) -> dict[str, Any]:
        """The ``activation`` of the network's output."""


M = TypeVar("M", bound=_Predicting)


class _Instead(nn.Module, Generic[M]):
    """Network that predicts in place of another one, while a method is active.

    Before the first batch, after ``restore()`` and inside ``source_network()`` it predicts as the source network.

    Args:
        method: method that says what predicts.
        network: network that predicts otherwise.
    """

    def __init__(self, method: M, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._method = method
        # set directly, because .eval() would change the mode of the network as well
        self.training = False

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return what the network returns; in a dict, list or tuple other logits replace the network's."""
        method = self._method
        if not method._active or method._as_source:
            return self.network(x, *args, **kwargs)
        if args or kwargs:
            raise GrataError(
                f"The network is given more than the image, which {method.name} cannot pass on to all that it predicts "
                "with. Use method source, ptbn or bn_alpha, or a network of the image alone."
            )
        with torch.no_grad():
            logits = self._logits(method._plain(x))
            if logits is None:
                return self.network(x)
        return logits if method.output is None else put_logits(self.network(x), method.output, logits)

    def _logits(self, x: torch.Tensor) -> torch.Tensor | None:
        """Return the logits ``(B, C, ...)``; None: they are the network's."""
        raise NotImplementedError


class PredictionNetwork(_Instead[_Predicts]):
    """Network for methods whose ``_predict`` does more than call the adapted network.

    Before the first batch, after ``restore()`` and inside ``source_network()`` it predicts as the source network.

    Args:
        method: method whose ``_predict`` is called, without gradients.
    """

    def __init__(self, method: _Predicts) -> None:
        super().__init__(method, method._network)

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        return self._method._predict(x)


class ChosenPrediction(_Instead[Chosen]):
    """Network that predicts by what the setting ``predict`` of a method names, once the method has adapted.

    ``views`` is the mean probability over weak views, each prediction mapped back; ``before`` is the prediction that
    the method's step computed before it changed anything. Predictions that the step computed of the same images are
    used instead of new ones. Before the first batch, after ``restore()`` and inside ``source_network()`` it predicts as
    the source network.

    Args:
        method: method that says what predicts.
        network: network that the method predicts with otherwise.
    """

    def _logits(self, x: torch.Tensor) -> torch.Tensor | None:
        """Return the chosen logits ``(B, C, ...)``; None: they are the network's."""
        method, computed = self._method, self._method.computed
        known = computed if computed is not None and computed.is_of(x) else None
        if method.predict == "before":
            return None if known is None else known.before
        activation = method.meaning["activation"]
        if activation is None:
            raise GrataError(
                f"predict: views averages probabilities. Give {method.name} the activation of the network's output, "
                "sigmoid or softmax.",
                key="activation",
            )
        views = resolve_views(method.prediction_views, x.shape[2:])
        if known is not None and known.mean is not None and known.views == views:
            return logits_of(known.mean, activation)
        return logits_of(self._mean(x, views, activation), activation)

    def _mean(self, x: torch.Tensor, views: Sequence[View], activation: str) -> torch.Tensor:
        total: Any = 0

        def predicted(view: View) -> torch.Tensor:
            nonlocal total
            logits = logits_in(self.network(view(x)), self._method.output)
            p = view.inverse(activate(logits if logits.dtype == torch.float64 else logits.float(), activation))
            total = total + p
            return p

        agreement = view_agreement(map(predicted, views), background=activation == "softmax")
        if math.isfinite(agreement):
            self._method.view_agreements.append(agreement)
        mean: torch.Tensor = total / len(views)
        return mean


def logits_in(output: Any, which: str | int | None) -> torch.Tensor:
    """Return the logits in what a network returns.

    Args:
        output: what the network returned.
        which: key or index of the logits; None: the network returns them alone.

    Raises:
        RunError: ``which`` does not lead to logits.
    """
    # a network with deep supervision returns a list in training only
    if isinstance(output, torch.Tensor) and not isinstance(which, str):
        return output
    if which is not None:
        try:
            output = output[which]
        except (LookupError, TypeError, ValueError) as error:
            raise RunError(
                f"{which!r} is not in what the network returns, {_described(output)}.", key="output"
            ) from error
    if not isinstance(output, torch.Tensor):
        raise RunError(f"the network returns {_described(output)}. Name the logits in it by this key.", key="output")
    return output


def put_logits(returned: Any, which: str | int, logits: torch.Tensor) -> Any:
    """Return what a network returned, with other logits in it.

    Args:
        returned: what the network returned.
        which: key or index of the logits.
        logits: logits to put there.
    """
    if isinstance(returned, torch.Tensor):
        return logits
    if isinstance(returned, Mapping):
        return {**returned, which: logits}
    items = list(returned)
    items[cast(int, which)] = logits
    return tuple(items) if isinstance(returned, tuple) else items


def _described(output: Any) -> str:
    has = f" with keys {list(output)}" if isinstance(output, Mapping) else ""
    has = f" of {len(output)} items" if isinstance(output, list | tuple) else has
    return f"a {type(output).__name__}{has}"
