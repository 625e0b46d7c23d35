"""Numbers in the tables of a benchmark's pages."""

from __future__ import annotations

import math

__all__ = ["NONE", "estimate", "number", "p_value"]

NONE = "-"
"""Cell without a value."""


def number(value: float, form: str) -> str:
    """Return a number by a format such as ``.3f``; what is not finite is no value."""
    return format(value, form) if math.isfinite(value) else NONE


def estimate(value: float, low: float, high: float, form: str) -> str:
    """Return a number with its interval, where that is known."""
    return number(value, form) + (f" [{low:{form}}, {high:{form}}]" if math.isfinite(low) else "")


def p_value(value: float) -> str:
    """Return a p value with three decimals; NaN is no value."""
    return NONE if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
