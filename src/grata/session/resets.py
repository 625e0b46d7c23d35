"""When a method starts from the source network again: policies for streams that last, as objects for any method."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ..errors import GrataError
from ..settings import Settings, chosen, count, number

if TYPE_CHECKING:
    from ..methods import Method

__all__ = [
    "RESETS",
    "Drift",
    "EntropyCollapse",
    "EveryN",
    "Never",
    "PerCase",
    "ResetPolicy",
    "SiteChange",
    "make_reset",
]


class ResetPolicy(Settings, ABC):
    """Decides before each case whether the method starts from the source network again.

    A policy belongs to one method. It is asked before each case, sees each batch after the method adapted to it, and
    forgets what it saw whenever the method is restored. Its settings are declared as in :mod:`grata.settings`.

    Attributes:
        name: name of the policy in configurations.
        summary: one line on when it resets.
    """

    name: ClassVar[str]
    summary: ClassVar[str]

    def check(self, method: Method) -> None:
        """Raise :class:`GrataError` where the policy could never act on ``method``."""

    @abstractmethod
    def due(self, method: Method, site: str | None) -> bool:
        """Return whether to start again before the next case, which comes from ``site``."""

    def begin(self, site: str | None) -> None:
        """Note that a case of ``site`` begins, whether or not the method was restored before it."""

    def observe(self, method: Method, images: torch.Tensor) -> None:
        """Look at a batch ``(B, C, ...)`` that the method has just adapted to."""

    def forget(self) -> None:
        """Forget what was seen: the method was restored."""

    def state_dict(self) -> dict[str, Any]:
        """Return what another process needs to decide as this one would."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``."""


class Never(ResetPolicy):
    """Online adaptation: each case starts from what the last one left."""

    name = "never"
    summary = "each case starts from what the last one left (online)"

    def due(self, method: Method, site: str | None) -> bool:
        return False


class PerCase(ResetPolicy):
    """Episodic adaptation: every case starts from the source network."""

    name = "per-case"
    summary = "every case starts from the source network (episodic)"

    def due(self, method: Method, site: str | None) -> bool:
        return True


class EveryN(ResetPolicy):
    """Reset after a number of cases (as RDumb, Press et al., NeurIPS 2023, which does so after 1000 images)."""

    name = "every-n"
    summary = "after `cases` cases"

    cases: int = count(default=1000, help="number of cases between two resets")

    def _setup(self) -> None:
        self._seen = 0

    def due(self, method: Method, site: str | None) -> bool:
        return self._seen >= self.cases

    def begin(self, site: str | None) -> None:
        self._seen += 1

    def forget(self) -> None:
        self._seen = 0

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self._seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._seen = int(state["seen"])


class EntropyCollapse(ResetPolicy):
    """Reset when the network has become too sure: the collapse that entropy minimization ends in on long streams.

    A moving average of the mean entropy of the adapted network's predictions is compared with that entropy on the first
    cases after the start. The recovery of SAR (Niu et al., ICLR 2023) compares with a fixed number instead, which fits
    one task and number of classes: a mean over the voxels of an image depends on how much of it is background. The
    policy costs one more forward a batch.
    """

    name = "entropy-collapse"
    summary = "when the mean entropy falls below `fraction` of what it was at first"

    fraction: float = number(
        default=0.5, above=0, at_most=1, convert=False, help="share of the entropy at the start that is the bound"
    )
    momentum: float = number(default=0.9, above=0, at_most=1, convert=False, help="momentum of the moving average")
    first: int = count(default=5, help="number of batches that give the entropy at the start")

    def _setup(self) -> None:
        self._start: list[float] = []
        self._average: float = math.nan

    def due(self, method: Method, site: str | None) -> bool:
        return len(self._start) == self.first and self._average < self.fraction * sum(self._start) / self.first

    def observe(self, method: Method, images: torch.Tensor) -> None:
        try:
            entropy = float(method.uncertainty(images).mean())
        except NotImplementedError as error:
            raise GrataError(
                f"method {method.name} learns nothing that could collapse, and gives no entropy. Leave it at never.",
                key="reset",
            ) from error
        if not math.isfinite(entropy):
            return
        if len(self._start) < self.first:
            self._start.append(entropy)
        known = not math.isnan(self._average)
        self._average = self.momentum * self._average + (1 - self.momentum) * entropy if known else entropy

    def forget(self) -> None:
        self._start = []
        self._average = math.nan

    def state_dict(self) -> dict[str, Any]:
        return {"start": list(self._start), "average": self._average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._start, self._average = list(state["start"]), float(state["average"])


class Drift(ResetPolicy):
    """Reset when the parameters have moved too far from the source's."""

    name = "drift"
    summary = "when the parameters have moved by more than `bound` of the source's norm"

    bound: float = number(
        default=0.1, above=0, convert=False, help="largest Euclidean distance to the source, relative to its norm"
    )

    def check(self, method: Method) -> None:
        if not method.parameters:
            raise GrataError(
                f"method {method.name} changes no parameters that could drift from the source's. Use every-n, "
                "site-change or per-case.",
                key="reset",
            )

    def due(self, method: Method, site: str | None) -> bool:
        return method.parameter_change()["relative"] > self.bound


class SiteChange(ResetPolicy):
    """Reset when the next case comes from another site than the last one."""

    name = "site-change"
    summary = "when the next case comes from another site"

    def _setup(self) -> None:
        self._site: str | None = None

    def due(self, method: Method, site: str | None) -> bool:
        return self._site is not None and site != self._site

    def begin(self, site: str | None) -> None:
        self._site = site

    def forget(self) -> None:
        self._site = None

    def state_dict(self) -> dict[str, Any]:
        return {"site": self._site}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._site = state["site"]


RESETS: dict[str, type[ResetPolicy]] = {
    policy.name: policy for policy in (Never, PerCase, EveryN, EntropyCollapse, Drift, SiteChange)
}
"""Every policy by the name that configs use."""


def make_reset(setting: ResetPolicy | str | Mapping[str, Any]) -> ResetPolicy:
    """Return a policy from what a configuration says: an object, a name, or a mapping of ``name`` and its settings.

    Raises:
        GrataError: the name or a setting is not known, or a value is out of range.
    """
    return chosen(setting, RESETS, ResetPolicy, "reset", "policy")  # type: ignore[type-abstract]
