"""Methods against the source network and against batch statistics, image by image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd

from .statistics import mean_and_interval, signed_rank

__all__ = ["HARM", "Estimate", "Gain", "by_image", "cost", "dice", "gain"]

HARM = 0.05
"""Loss of Dice against the source network above which an image counts as harmed."""

_IMAGE = ["target", "case"]


class Estimate(NamedTuple):
    """A mean with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Gain:
    """How the Dice of a method differs from another's on the same images.

    Attributes:
        difference: mean difference.
        harmed: share of the images that are worse by more than :data:`HARM`.
        worst: smallest difference.
        differences: difference of each image.
        groups: name of the group of each image.
    """

    difference: Estimate
    harmed: float
    worst: float
    differences: np.ndarray
    groups: np.ndarray

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.differences)

    @cached_property
    def p(self) -> float:
        """Two-sided p value of Wilcoxon's signed-rank test, each group counted once; with ties it takes a second."""
        return signed_rank(self.differences, self.groups)


def by_image(table: pd.DataFrame, column: str = "dice/mean") -> pd.DataFrame:
    """Return one line for each image: its target, case, group and mean over seeds and rounds.

    Args:
        table: lines of one protocol, source and method, see :func:`grata.benchmark.cases.case_table`.
        column: value to take the mean of, which becomes the column ``value``.
    """
    # pandas cannot tell a mean over infinite values from one that is missing otherwise.
    means = table.groupby(_IMAGE, sort=False).agg(group=("group", "first"), value=(column, "mean")).reset_index()
    return means.dropna(subset="value")


def dice(table: pd.DataFrame, column: str = "dice/mean", resample_sites: bool = False) -> Estimate:
    """Return the mean Dice over sites, which weigh equally, of the lines of one protocol, source and method."""
    return _estimate(by_image(table, column), resample_sites)


def gain(table: pd.DataFrame, other: pd.DataFrame, resample_sites: bool = False, weigh_images: bool = False) -> Gain:
    """Compare the lines of a method with those of another one, on the images that both have.

    Args:
        table: lines of one protocol, source and method.
        other: lines of the other method, of the same protocol and source.
        resample_sites: whether the interval is one for further sites, see
            :func:`grata.benchmark.statistics.mean_and_interval`.
        weigh_images: whether images weigh equally in the mean difference, and not sites.
    """
    pairs = by_image(table).merge(by_image(other)[[*_IMAGE, "value"]], on=_IMAGE, suffixes=("", "_other"))
    pairs = pairs.assign(value=pairs["value"] - pairs["value_other"])
    differences = pairs["value"].to_numpy(float)
    groups = (pairs["target"] + "/" + pairs["group"].astype(str)).to_numpy()
    if pairs.empty:
        return Gain(Estimate(math.nan, math.nan, math.nan), math.nan, math.nan, differences, groups)
    harmed, worst = float((differences < -HARM).mean()), float(differences.min())
    estimated = pairs.assign(target="", group=groups) if weigh_images else pairs
    return Gain(_estimate(estimated, resample_sites), harmed, worst, differences, groups)


def _estimate(images: pd.DataFrame, resample_sites: bool) -> Estimate:
    sites = [site for _, site in images.groupby("target", sort=False)]
    values = [site["value"].to_numpy(float) for site in sites]
    groups = [site["group"].astype(str).to_numpy() for site in sites]
    return Estimate(*mean_and_interval(values, groups=groups, resample_sites=resample_sites))


def cost(table: pd.DataFrame, source: pd.DataFrame) -> float:
    """Return the time of a method in plain forwards: relative to the source network's on the same image.

    The median over the images, because a run of hours may stand still for some time.
    """
    if "seconds" not in table:
        return math.nan
    pairs = by_image(table, "seconds").merge(by_image(source, "seconds"), on=_IMAGE, suffixes=("", "_source"))
    return float((pairs["value"] / pairs["value_source"]).median())
