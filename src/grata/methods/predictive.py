"""Base of methods that use the network's predictions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import GrataError
from ..normalization import Rule
from ..objectives import ENTROPIES, entropy_loss
from ..objectives.entropy import entropy_map
from ..predictions import ACTIVATIONS
from ..settings import choice, setting
from .base import Method, check_output
from .prediction import PredictionNetwork, logits_in

__all__ = [
    "PredictionNetwork",
    "PredictiveMethod",
    "check_precision",
    "logits_in",
]

_AUTOCAST = {"bfloat16": torch.bfloat16, "bf16": torch.bfloat16, "float16": torch.float16, "fp16": torch.float16}


def check_precision(value: Any) -> torch.dtype | None:
    """Return the dtype called ``value``, or the dtype itself.

    Raises:
        GrataError: the value is none of ``bfloat16``, ``float16`` and None.
    """
    if value is None or isinstance(value, torch.dtype) and value in _AUTOCAST.values():
        return value
    if str(value) not in _AUTOCAST:
        raise GrataError(f"must be one of {', '.join(_AUTOCAST)}, or null, got {value!r}.")
    return _AUTOCAST[str(value)]


def _check_seed(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise GrataError(f"must be a whole number of at least 0, got {value!r}.")
    return value


class PredictiveMethod(Method):
    """Base of methods that need the meaning of the network's output: activation, logits and entropy.

    Raises:
        GrataError: a setting is not known or out of range.
    """

    activation: str = choice(
        of=ACTIVATIONS,
        missing="say sigmoid or softmax, as the network was trained.",
        help="activation of the network's output: sigmoid (multi-label) or softmax (multi-class)",
    )
    seed: int = setting(
        default=0,
        check=_check_seed,
        range="whole number, at least 0",
        help="seed of the method's own random generator",
        in_state=False,
    )
    entropy: str | None = choice(
        default=None,
        of=ENTROPIES,
        optional=True,
        help="formula of the entropy: binary is Shannon's entropy of each sigmoid channel; plogp omits the term of the "
        "complement, and is Shannon's entropy over softmax classes; null: binary for sigmoid, plogp for softmax",
    )
    batch_statistics: float | Rule | str = setting(
        default=1.0,
        range="0 to 1, median, or a rule",
        help="weight of the batch's statistics in batch normalization: 1 uses the batch's, 0 the source's; or a rule",
        in_state=False,
    )
    autocast: str | torch.dtype | None = setting(
        default=None,
        check=check_precision,
        range="bfloat16, float16 or null",
        help="precision of the forwards; null: that of the surrounding torch.autocast",
    )
    output: str | int | None = setting(
        default=None,
        check=check_output,
        range="key, index or null",
        help="key or index of the logits, for a network that returns a dict, list or tuple",
    )

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        # a wrong combination fails here, not after the first scan
        entropy_loss(torch.zeros(1, 2, 1), self.activation, self._entropy)
        self.entropy = self._entropy

    def _rule(self) -> float | Rule | str:
        return self.batch_statistics

    @property
    def _entropy(self) -> str:
        return self.entropy or ("binary" if self.activation == "sigmoid" else "plogp")

    def uncertainty(self, images: torch.Tensor) -> torch.Tensor:
        """Return the mean entropy of the method's present prediction for each image; shape ``(B,)``."""
        self._activate()
        self._network.eval()
        with torch.no_grad():
            return entropy_map(self._predict(self._plain(images)), self.activation, self._entropy).flatten(1).mean(1)

    def _predict(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits ``(B, C, ...)`` of the method's prediction, while it is active."""
        return self._logits(x)

    def _known(self, x: torch.Tensor) -> torch.Tensor | None:
        """Return the logits of ``x`` that the last ``adapt`` computed anyway; None: it computed none of ``x``."""
        return None if self.computed is None else self.computed.logits_of(x)

    def _half_precision(self, x: torch.Tensor) -> bool:
        """Return whether a forward runs in float16, which loses small gradients."""
        if self.autocast is not None:
            return self.autocast is torch.float16
        device = x.device.type
        return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) is torch.float16

    def _precision(self, x: torch.Tensor, autocast: str | torch.dtype | None = None) -> torch.autocast:
        """Return the precision of a forward: the given one, else the method's, else the surrounding autocast's."""
        device, dtype = x.device.type, autocast or self.autocast
        if isinstance(dtype, torch.dtype):
            return torch.autocast(device, dtype=dtype)
        return torch.autocast(device, enabled=torch.is_autocast_enabled(device))

    def _logits(
        self, x: torch.Tensor, autocast: str | torch.dtype | None = None, network: nn.Module | None = None
    ) -> torch.Tensor:
        """Return the float32 logits ``(B, C, ...)`` of the adapted network, or of another network of its kind."""
        with self._precision(x, autocast):
            logits = logits_in((network or self._network)(x), self.output)
        if self.activation == "softmax" and logits.shape[1] < 2:
            raise GrataError("activation=softmax needs two or more output channels; a single one is for sigmoid.")
        return logits if logits.dtype == torch.float64 else logits.float()
