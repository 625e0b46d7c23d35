"""Learning rates that follow from a step itself: the factor on the base rate, one rule an object."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..errors import GrataError
from .laws import LAWS, learning_rate_factor

__all__ = ["RATES", "CosineRate", "Rate", "StepSignals", "make_rate"]


@dataclasses.dataclass(frozen=True)
class StepSignals:
    """What a rule may look at, at the parameters before the step.

    Args:
        images: ``(B, C, ...)``.
        cosine: between the auxiliary gradient and that of the step, -1 to 1; NaN without an auxiliary gradient.
        activation: of the prediction, ``sigmoid`` or ``softmax``.
        probabilities: prediction of ``images`` by the present network, ``(B, C, ...)``, and its deepest feature
            averaged over space, ``(B, F)``; computed, without gradients, when it is called.
    """

    images: torch.Tensor
    cosine: float
    activation: str
    probabilities: Callable[[], tuple[torch.Tensor, torch.Tensor]]


class Rate(ABC):
    """A rule; it belongs to one method, and forgets all when that is restored.

    Attributes:
        needs_auxiliary: whether it looks at the cosine, so that the method needs an auxiliary objective.
    """

    needs_auxiliary: bool = False

    @abstractmethod
    def factor(self, signals: StepSignals) -> float:
        """The factor on the base learning rate, at least 0."""

    def forget(self) -> None:
        """The method was restored."""

    def state_dict(self) -> dict[str, Any]:
        """What another process needs to go on; safe for ``torch.load(weights_only=True)``."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""


@dataclasses.dataclass
class CosineRate(Rate):
    """By the cosine between the auxiliary gradient and that of the step (GraTa, AAAI 2025); ``constant`` is always 1.

    Args:
        law: a key of :data:`grata.alignment.LAWS`.

    Raises:
        GrataError: there is no such law.
    """

    law: str = "constant"

    def __post_init__(self) -> None:
        learning_rate_factor(self.law, 0.0)
        self.needs_auxiliary = self.law != "constant"

    def factor(self, signals: StepSignals) -> float:
        return learning_rate_factor(self.law, signals.cosine)


RATES: dict[str, Callable[..., Rate]] = {}
"""Rules with settings of their own, by the name that configs use; the laws of the cosine have none."""


def make_rate(setting: Rate | str | Mapping[str, Any]) -> Rate:
    """A rule from what a config says: an object, a name, or a mapping of ``name`` and its settings.

    Raises:
        GrataError: an unknown name or setting, or a value out of range.
    """
    if isinstance(setting, Rate):
        return setting
    settings = {"name": setting} if isinstance(setting, str) else setting
    name = settings.get("name") if isinstance(settings, Mapping) else None
    if not isinstance(name, str) or name not in (*LAWS, *RATES):
        raise GrataError(
            f"there is no law {setting!r}; the laws are {', '.join((*LAWS, *RATES))}.", key="learning_rate_law"
        )
    options = {key: value for key, value in settings.items() if key != "name"}
    known = [field.name for field in dataclasses.fields(RATES[name])] if name in RATES else []
    for key in options:
        if key not in known:
            raise GrataError(
                f"{name} has no such setting; its settings are {', '.join(known) or 'none'}.",
                key=f"learning_rate_law#{key}",
            )
    return RATES[name](**options) if name in RATES else CosineRate(name)
