"""Confidence intervals and tests over images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import bootstrap, spearmanr, wilcoxon

__all__ = ["holm", "mean_and_interval", "rank_correlation", "signed_rank"]

_RESAMPLES = 10_000
_CONFIDENCE = 0.95


def mean_and_interval(samples: Sequence[np.ndarray], seed: int = 0) -> tuple[float, float, float]:
    """Return the mean of the samples' means with its 95 % percentile bootstrap interval.

    Args:
        samples: finite values of one or more sites. Each site is resampled within itself, and all weigh equally.
        seed: seed of the interval's own random generator, so that the interval depends on its values only.

    Returns:
        Mean, lower and upper end. All are NaN if a site has no value; the ends are NaN if a site has a single value.
    """
    if not samples or any(len(values) == 0 for values in samples):
        return math.nan, math.nan, math.nan
    mean = float(np.mean([values.mean() for values in samples]))
    if any(len(values) < 2 for values in samples):
        return mean, math.nan, math.nan

    def statistic(*resampled: np.ndarray, axis: int) -> np.ndarray:
        return np.mean([values.mean(axis=axis) for values in resampled], axis=0)

    # SciPy before 1.15 has only this name for the generator, and later versions still accept it.
    interval = bootstrap(
        tuple(samples),
        statistic,
        n_resamples=_RESAMPLES,
        confidence_level=_CONFIDENCE,
        method="percentile",
        vectorized=True,
        batch=1000,
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return mean, float(interval.low), float(interval.high)


def signed_rank(differences: np.ndarray) -> float:
    """Return the two-sided p value of Wilcoxon's signed-rank test; 1 if nothing differs, NaN without a pair."""
    if len(differences) == 0:
        return math.nan
    if not np.any(differences):
        return 1.0
    return float(wilcoxon(differences).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted by Holm's step-down procedure; NaN stays NaN and is not counted."""
    adjusted = [math.nan] * len(p_values)
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return Spearman's correlation over the finite pairs; NaN for fewer than three, or if one side is constant."""
    finite = np.isfinite(a) & np.isfinite(b)
    a, b = a[finite], b[finite]
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(spearmanr(a, b).statistic)
