"""Laws that turn the cosine between the two gradients into a learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..errors import GrataError

__all__ = ["LAWS", "learning_rate_factor"]

LAWS: dict[str, Callable[[float], float]] = {
    "quadratic": lambda c: (1 + c) ** 2 / 4,
    "linear": lambda c: (1 + c) / 2,
    "softplus": lambda c: math.log1p(math.exp(c)),
    "constant": lambda c: 1.0,
}
"""Factor on the base learning rate by the cosine ``c``; ``quadratic`` is GraTa's own (AAAI 2025)."""


def learning_rate_factor(law: str, cosine: float) -> float:
    """Return the factor on the base learning rate: 0 at full conflict to 1 in agreement (softplus: 0.31 to 1.31).

    Args:
        law: a key of :data:`LAWS`.
        cosine: cosine of the angle between the auxiliary and the pseudo gradient, -1 to 1.

    Raises:
        GrataError: there is no such law.
    """
    if not isinstance(law, str) or law not in LAWS:
        raise GrataError(f"there is no law {law!r}; the laws are {', '.join(LAWS)}.", key="learning_rate_law")
    return LAWS[law](cosine)
