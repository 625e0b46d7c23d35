"""When a method starts from the source network again: policies for streams that last, as objects for any method."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from .errors import GrataError

if TYPE_CHECKING:
    from .methods import Method

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


@dataclasses.dataclass
class ResetPolicy(ABC):
    """Decides before each case whether the method is to start from the source network again.

    A policy belongs to one method. It is asked before each case, sees each batch after it was adapted to, and forgets
    what it saw whenever the method is restored.

    Attributes:
        name: how configs call it.
        summary: one line on when it resets.
    """

    name: ClassVar[str]
    summary: ClassVar[str]

    def check(self, method: Method) -> None:
        """Raise :class:`GrataError` where the policy could never act on ``method``."""

    @abstractmethod
    def due(self, method: Method, site: str | None) -> bool:
        """Whether to start again before the next case, which comes from ``site``."""

    def begin(self, site: str | None) -> None:
        """A case of ``site`` begins, whether or not the method was restored before it."""

    def observe(self, method: Method, images: torch.Tensor) -> None:
        """See a batch ``(B, C, ...)`` that the method has just adapted to."""

    def forget(self) -> None:
        """The method was restored."""

    def state_dict(self) -> dict[str, Any]:
        """What another process needs to decide as this one would."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""


@dataclasses.dataclass
class Never(ResetPolicy):
    """Online adaptation: each case starts from what the last one left."""

    name = "never"
    summary = "each case starts from what the last one left (online)"

    def due(self, method: Method, site: str | None) -> bool:
        return False


@dataclasses.dataclass
class PerCase(ResetPolicy):
    """Episodic adaptation: every case starts from the source network."""

    name = "per-case"
    summary = "every case starts from the source network (episodic)"

    def due(self, method: Method, site: str | None) -> bool:
        return True


@dataclasses.dataclass
class EveryN(ResetPolicy):
    """After a number of cases (as RDumb, Press et al., NeurIPS 2023, which does so after 1000 images).

    Args:
        cases: how many.

    Raises:
        GrataError: it is no whole number of at least 1.
    """

    cases: int = 1000

    name = "every-n"
    summary = "after `cases` cases"

    def __post_init__(self) -> None:
        if isinstance(self.cases, bool) or not isinstance(self.cases, int) or self.cases < 1:
            raise GrataError(f"must be a whole number of at least 1, got {self.cases!r}.", key="reset#cases")
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


@dataclasses.dataclass
class EntropyCollapse(ResetPolicy):
    """When the network has become too sure of itself: the collapse that entropy minimization ends in on long streams.

    A moving average of the mean entropy of the adapted network's predictions is compared with what that entropy was on
    the first cases after the start. The recovery of SAR (Niu et al., ICLR 2023) compares with a fixed number instead,
    which fits one task and number of classes; a mean over the voxels of an image depends on how much of it is
    background. Costs one more forward a batch.

    Args:
        fraction: of the entropy at the start below which the method is restored, 0 to 1.
        momentum: of the moving average, 0 to 1.
        first: how many batches give the entropy at the start.

    Raises:
        GrataError: a value out of range.
    """

    fraction: float = 0.5
    momentum: float = 0.9
    first: int = 5

    name = "entropy-collapse"
    summary = "when the mean entropy falls below `fraction` of what it was at first"

    def __post_init__(self) -> None:
        for key in ("fraction", "momentum"):
            _check_between(key, getattr(self, key), 0.0, 1.0)
        if isinstance(self.first, bool) or not isinstance(self.first, int) or self.first < 1:
            raise GrataError(f"must be a whole number of at least 1, got {self.first!r}.", key="reset#first")
        self.forget()

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
        self._start: list[float] = []
        self._average = math.nan

    def state_dict(self) -> dict[str, Any]:
        return {"start": list(self._start), "average": self._average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._start, self._average = list(state["start"]), float(state["average"])


@dataclasses.dataclass
class Drift(ResetPolicy):
    """When the parameters have moved too far from the source's.

    Args:
        bound: of the Euclidean distance to the source, relative to the source's norm, above 0.

    Raises:
        GrataError: it is no number above 0.
    """

    bound: float = 0.1

    name = "drift"
    summary = "when the parameters have moved by more than `bound` of the source's norm"

    def __post_init__(self) -> None:
        _check_between("bound", self.bound, 0.0, math.inf)

    def check(self, method: Method) -> None:
        if not method.parameters:
            raise GrataError(
                f"method {method.name} changes no parameters that could drift from the source's. Use every-n, "
                "site-change or per-case.",
                key="reset",
            )

    def due(self, method: Method, site: str | None) -> bool:
        return method.parameter_change()["relative"] > self.bound


@dataclasses.dataclass
class SiteChange(ResetPolicy):
    """When the next case comes from another site than the last one."""

    name = "site-change"
    summary = "when the next case comes from another site"

    def __post_init__(self) -> None:
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
    """A policy from what a config says: an object, a name, or a mapping of ``name`` and its settings.

    Raises:
        GrataError: an unknown name or setting, or a value out of range.
    """
    if isinstance(setting, ResetPolicy):
        return setting
    settings = {"name": setting} if isinstance(setting, str) else setting
    name = settings.get("name") if isinstance(settings, Mapping) else None
    if not isinstance(name, str) or name not in RESETS:
        raise GrataError(f"there is no policy {setting!r}; they are {', '.join(RESETS)}.", key="reset")
    options = {key: value for key, value in settings.items() if key != "name"}
    known = [field.name for field in dataclasses.fields(RESETS[name])]
    for key in options:
        if key not in known:
            raise GrataError(
                f"{name} has no such setting; its settings are {', '.join(known) or 'none'}.", key=f"reset#{key}"
            )
    return RESETS[name](**options)


def _check_between(key: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low < value <= high:
        raise GrataError(f"must be a number above {low:g} and of at most {high:g}, got {value!r}.", key=f"reset#{key}")
