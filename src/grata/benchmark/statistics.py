"""Confidence intervals and tests over images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import bootstrap, spearmanr, wilcoxon

__all__ = ["holm", "mean_and_interval", "rank_correlation", "signed_rank"]

_RESAMPLES = 10_000
_CONFIDENCE = 0.95

_Sums = tuple[np.ndarray, np.ndarray]
"""Sum and number of the values of each group of a site."""


def mean_and_interval(
    samples: Sequence[np.ndarray],
    seed: int = 0,
    groups: Sequence[np.ndarray] | None = None,
    resample_sites: bool = False,
) -> tuple[float, float, float]:
    """Return the mean of the samples' means with its 95 % percentile bootstrap interval.

    Args:
        samples: finite values of one or more sites. Each site is resampled within itself, and all weigh equally.
        seed: seed of the interval's own random generator, so that the interval depends on its values only.
        groups: names of the groups of each site's values, such as their patients. Groups are resampled as wholes,
            because the images of one resemble each other. None: each value is a group of its own.
        resample_sites: whether the sites are resampled, too, before what they hold: the interval is then one for
            further sites of the same kind. It has no effect for a single site.

    Returns:
        Mean, lower and upper end. All are NaN if a site has no value; the ends are NaN if a site has a single group.
    """
    if not samples or any(len(values) == 0 for values in samples):
        return math.nan, math.nan, math.nan
    mean = float(np.mean([values.mean() for values in samples]))
    sites = list(map(_sums, samples, groups or itertools.repeat(None)))
    if min(len(sums) for sums, _ in sites) < 2:
        return mean, math.nan, math.nan
    over_sites = resample_sites and len(sites) > 1
    interval = _interval_over_sites if over_sites else _interval_within_sites
    return mean, *interval(sites, np.random.default_rng(seed))


def _interval_within_sites(sites: Sequence[_Sums], generator: np.random.Generator) -> tuple[float, float]:
    def statistic(*resampled: np.ndarray, axis: int) -> np.ndarray:
        pairs = zip(sites, resampled)
        return np.mean([sums[drawn].sum(axis) / sizes[drawn].sum(axis) for (sums, sizes), drawn in pairs], axis=0)

    # SciPy before 1.15 has only this name for the generator, and later versions still accept it.
    interval = bootstrap(
        tuple(np.arange(len(sums)) for sums, _ in sites),
        statistic,
        n_resamples=_RESAMPLES,
        confidence_level=_CONFIDENCE,
        method="percentile",
        vectorized=True,
        batch=1000,
        random_state=generator,
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _sums(values: np.ndarray, groups: np.ndarray | None) -> _Sums:
    """Return the sum and the number of the values of each group."""
    if groups is None:
        return values, np.ones(len(values))
    _, places = np.unique(groups, return_inverse=True)
    return np.bincount(places, values), np.bincount(places).astype(float)


def _interval_over_sites(sites: Sequence[_Sums], generator: np.random.Generator) -> tuple[float, float]:
    means = np.empty((len(sites), _RESAMPLES))
    for place in range(len(sites)):
        chosen = generator.integers(len(sites), size=_RESAMPLES)
        for number, (sums, sizes) in enumerate(sites):
            taken = chosen == number
            drawn = generator.integers(len(sums), size=(int(taken.sum()), len(sums)))
            means[place, taken] = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means.mean(0), [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return float(low), float(high)


def signed_rank(differences: np.ndarray, groups: np.ndarray | None = None) -> float:
    """Return the two-sided p value of Wilcoxon's signed-rank test; 1 if nothing differs, NaN without a pair.

    Args:
        differences: differences of the pairs.
        groups: names of the groups that the pairs belong to, each of which counts once, with its mean; None: all pairs
            count.
    """
    sums, sizes = _sums(differences, groups)
    differences = sums / sizes
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
