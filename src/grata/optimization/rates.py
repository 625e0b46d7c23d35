"""Learning rates that follow from a step itself: each rule is an object that gives the factor on the base rate."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from ..settings import Settings, choice, chosen
from .laws import LAWS, learning_rate_factor

__all__ = ["RATES", "CosineRate", "Rate", "StepSignals", "make_rate"]


@dataclasses.dataclass(frozen=True)
class StepSignals:
    """What a rule may look at, taken at the parameters before the step.

    Args:
        images: ``(B, C, ...)``.
        cosine: cosine between the auxiliary gradient and that of the step, -1 to 1; NaN without an auxiliary gradient.
        activation: activation of the prediction, ``sigmoid`` or ``softmax``.
        probabilities: function that computes, without gradients, the present network's prediction of ``images``
            ``(B, C, ...)`` and its deepest feature averaged over space ``(B, F)``.
    """

    images: torch.Tensor
    cosine: float
    activation: str
    probabilities: Callable[[], tuple[torch.Tensor, torch.Tensor]]


class Rate(Settings, ABC):
    """A rule for the learning rate; it belongs to one method, and forgets everything when that is restored."""

    @property
    def needs_auxiliary(self) -> bool:
        """Whether the rule looks at the cosine, so that the method needs an auxiliary objective."""
        return False

    @abstractmethod
    def factor(self, signals: StepSignals) -> float:
        """Return the factor on the base learning rate, at least 0."""

    def forget(self) -> None:
        """Forget what was seen: the method was restored."""

    def state_dict(self) -> dict[str, Any]:
        """Return what another process needs to go on; safe for ``torch.load(weights_only=True)``."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``."""


class CosineRate(Rate):
    """Factor by the cosine between the auxiliary gradient and that of the step (GraTa, AAAI 2025).

    The law ``constant`` gives 1, whatever the cosine.
    """

    law: str = choice(default="constant", of=tuple(LAWS), help="law that turns the cosine into the factor")

    @property
    def needs_auxiliary(self) -> bool:
        return self.law != "constant"

    def factor(self, signals: StepSignals) -> float:
        return learning_rate_factor(self.law, signals.cosine)


RATES: dict[str, Callable[..., Rate]] = {}
"""Rules with settings of their own, by their names in configurations; the laws of the cosine have none."""


def make_rate(setting: Rate | str | Mapping[str, Any]) -> Rate:
    """Return a rule from what a configuration says: an object, a name, or a mapping of ``name`` and its settings.

    Raises:
        GrataError: the name or a setting is not known, or a value is out of range.
    """
    table: dict[str, Callable[..., Rate]] = {law: partial(CosineRate, law) for law in LAWS}
    return chosen(setting, table | RATES, Rate, "learning_rate_law", "law")  # type: ignore[type-abstract]
