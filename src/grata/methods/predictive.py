"""What methods share that look at the network's predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import GrataError, RunError
from ..normalization import Rule
from ..objectives import entropy_loss
from ..objectives.activation import check_activation
from ..objectives.entropy import entropy_map
from ..resets import ResetPolicy
from .base import Method

__all__ = [
    "PredictionNetwork",
    "PredictiveMethod",
    "check_count",
    "check_number",
    "check_positive",
    "check_precision",
    "logits_in",
]

_AUTOCAST = {"bfloat16": torch.bfloat16, "bf16": torch.bfloat16, "float16": torch.float16, "fp16": torch.float16}


class PredictiveMethod(Method):
    """Base of methods that need to know what the network's output means.

    Args:
        network: the source network.
        changed: what the method will change, parameters or buffers, by name.
        activation: ``sigmoid`` (multi-label) or ``softmax`` (multi-class).
        seed: of the method's own random generator.
        entropy: None: Shannon's, of each channel for sigmoid (``binary``), over the classes for softmax; or ``plogp``,
            see :func:`grata.objectives.entropy_loss`.
        batch_statistics: weight of the batch's statistics in batch normalization, 1 to 0 (the source's), or
            ``median``.
        reset: when to start from the source network again, see :mod:`grata.resets`; None: as the paper has it.
        autocast: ``bfloat16`` or ``float16`` for the forwards; None: as the surrounding ``torch.autocast`` says.
        output: key or index of the logits, for a network that returns a dict, list or tuple.

    Raises:
        GrataError: a setting is out of range.
    """

    def __init__(
        self,
        network: nn.Module,
        changed: Mapping[str, torch.Tensor],
        *,
        activation: str = "sigmoid",
        seed: int = 0,
        entropy: str | None = None,
        batch_statistics: float | Rule | str = 1.0,
        reset: ResetPolicy | str | Mapping[str, Any] | None = None,
        autocast: str | None = None,
        output: str | int | None = None,
    ) -> None:
        super().__init__(network, changed, batch_statistics, seed, reset)
        check_activation(activation)
        self.activation = activation
        self.entropy = ("binary" if activation == "sigmoid" else "plogp") if entropy is None else entropy
        # a wrong name fails here, not after the first scan
        entropy_loss(torch.zeros(1, 2, 1), activation, self.entropy)
        self.autocast = check_precision("autocast", autocast)
        self.output = output

    def uncertainty(self, images: torch.Tensor) -> torch.Tensor:
        """Mean entropy of the prediction of each image, as the method makes it at present; shape ``(B,)``."""
        self._activate()
        self._network.eval()
        with torch.no_grad():
            return entropy_map(self._predict(self._plain(images)), self.activation, self.entropy).flatten(1).mean(1)

    def _predict(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``(B, C, ...)`` that the method predicts images with, while it is active."""
        return self._logits(x)

    def _half_precision(self, x: torch.Tensor) -> bool:
        """Whether a forward is one in float16, in which small gradients are lost."""
        if self.autocast is not None:
            return self.autocast is torch.float16
        device = x.device.type
        return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) is torch.float16

    def _precision(self, x: torch.Tensor, autocast: torch.dtype | None = None) -> torch.autocast:
        """The precision of a forward: the one given, else the method's own, else that of the surrounding autocast."""
        device, dtype = x.device.type, autocast or self.autocast
        if dtype is not None:
            return torch.autocast(device, dtype=dtype)
        return torch.autocast(device, enabled=torch.is_autocast_enabled(device))

    def _logits(
        self, x: torch.Tensor, autocast: torch.dtype | None = None, network: nn.Module | None = None
    ) -> torch.Tensor:
        """Logits in float32 ``(B, C, ...)`` of the adapted network, or of another one of its kind."""
        with self._precision(x, autocast):
            logits = logits_in((network or self._network)(x), self.output)
        if self.activation == "softmax" and logits.shape[1] < 2:
            raise GrataError("activation=softmax needs two or more output channels; a single one is for sigmoid.")
        return logits if logits.dtype == torch.float64 else logits.float()


class PredictionNetwork(nn.Module):
    """The network that a method predicts with, where its ``_predict`` is more than the adapted network itself.

    Before the first batch, after ``restore()`` and inside ``source_network()`` it predicts as the source network.

    Args:
        method: whose network it is; its ``_predict`` is called without gradients.
    """

    def __init__(self, method: PredictiveMethod) -> None:
        super().__init__()
        self.network = method._network
        self._method = method
        # without a word to the network, whose own mode this is not
        self.training = False

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """As the network's: logits where it returns a dict, list or tuple are put in their place."""
        method = self._method
        if not method._active or method._as_source:
            return self.network(x, *args, **kwargs)
        if args or kwargs:
            raise GrataError(
                f"The network is given more than the image, which {method.name} cannot pass on to all that it predicts "
                "with. Use method source, ptbn or bn_alpha, or a network of the image alone."
            )
        with torch.no_grad():
            logits = method._predict(method._plain(x))
        if method.output is None:
            return logits
        returned = self.network(x, *args, **kwargs)
        if isinstance(returned, torch.Tensor):
            return logits
        if isinstance(returned, Mapping):
            return {**returned, method.output: logits}
        items = list(returned)
        items[method.output] = logits
        return tuple(items) if isinstance(returned, tuple) else items


def check_number(name: str, value: Any, low: float, high: float = float("inf")) -> float:
    """``value`` as a float; :class:`GrataError` unless it is a finite number of at least ``low`` and at most
    ``high``.
    """
    number = not isinstance(value, bool) and isinstance(value, int | float)
    if not number or not low <= value <= high or abs(value) == float("inf"):
        limit = f" and at most {high:g}" if high < float("inf") else ""
        raise GrataError(f"must be a finite number of at least {low:g}{limit}, got {value!r}.", key=name)
    return float(value)


def check_positive(name: str, value: Any, high: float = float("inf"), why: str = "") -> float:
    """``value`` as a float; :class:`GrataError` unless it is a finite number above 0 and at most ``high``.

    Args:
        name: of the setting.
        value: of it.
        high: the most.
        why: what would be otherwise, for the message.
    """
    number = check_number(name, value, 0.0, high)
    if number == 0.0:
        raise GrataError(f"must be above 0{why and f', {why}'}.", key=name)
    return number


def check_count(name: str, value: Any, low: int = 1) -> int:
    """``value``; :class:`GrataError` unless it is a whole number of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise GrataError(f"must be a whole number of at least {low}, got {value!r}.", key=name)
    return value


def check_precision(name: str, value: str | None) -> torch.dtype | None:
    """The dtype called ``value``; :class:`GrataError` unless it is ``bfloat16``, ``float16`` or None."""
    if value is not None and str(value) not in _AUTOCAST:
        raise GrataError(f"must be one of {', '.join(_AUTOCAST)}, or null, got {value!r}.", key=name)
    return None if value is None else _AUTOCAST[value]


def logits_in(output: Any, which: str | int | None) -> torch.Tensor:
    """The logits in what a network returns; :class:`GrataError` where ``which``, a key or an index, does not lead to
    any.
    """
    # A network with deep supervision returns a list in training alone.
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


def _described(output: Any) -> str:
    has = f" with keys {list(output)}" if isinstance(output, Mapping) else ""
    has = f" of {len(output)} items" if isinstance(output, list | tuple) else has
    return f"a {type(output).__name__}{has}"
