"""Scores of one prediction: overlap, surface distances and calibration."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics import compute_average_surface_distance

from ..bundles.regions import Region
from ..errors import GrataError
from ..report import case_scores

__all__ = ["DISTANCES", "METRICS", "calibration_error", "score"]

METRICS = ("dice", "assd", "hd95", "asd_pred_to_label", "ece")
"""All metrics, in the order of the tables."""

DISTANCES = ("assd", "hd95", "asd_pred_to_label")
"""Metrics that are distances."""

_BINS = 15
_REFERENCE_DISTANCE = 100.0


def score(
    prediction: np.ndarray,
    probabilities: np.ndarray,
    label: np.ndarray,
    regions: Sequence[Region],
    spacing: Sequence[float],
    empty: str = "nan",
    scored: Sequence[str] | None = None,
) -> dict[str, float]:
    """Score one prediction.

    Args:
        prediction: label map ``(H, W[, D])``.
        probabilities: probabilities ``(C, H, W[, D])`` on the same grid. With as many channels as regions, channel i
            belongs to segment i (sigmoid); otherwise channel v belongs to label value v (softmax).
        label: label map of the same shape.
        regions: result of :func:`make_regions` for all segments.
        spacing: distance between neighbouring pixels along each axis.
        empty: ``nan`` or ``reference``, see :class:`~grata.benchmark.keys.MetricSettings`.
        scored: labels of the regions to score; None: all.

    Returns:
        ``<metric>/<region>`` for each metric, and ``<metric>/mean`` over the regions whose Dice is defined:

        - ``dice``, 0 to 1;
        - ``assd``: mean distance over the pixels of both surfaces (symmetric);
        - ``hd95``: the larger of the two directed 95th percentiles;
        - ``asd_pred_to_label``: mean distance from the prediction's surface to the label's (directed: a structure that
          is found only in part scores well), which reference implementations call ASSD;
        - ``ece``: expected calibration error of the region's probability over all pixels, 15 bins of equal width.

    Raises:
        GrataError: the shapes differ, the label holds a value that no segment has, or the channels match neither the
            segments nor the label values.
    """
    _check_label(label, prediction, regions)
    scores: dict[str, float] = {}
    chosen = [region for region in regions if scored is None or region.label in scored]
    for region in chosen:
        found, real = (np.isin(labels, region.values) for labels in (prediction, label))
        values = _overlap_and_distances(found, real, spacing, empty)
        values["ece"] = calibration_error(_probability(probabilities, region, regions), real)
        scores |= {f"{metric}/{region.label}": values[metric] for metric in METRICS}
    for metric in METRICS:
        defined = [scores[f"{metric}/{r.label}"] for r in chosen if not math.isnan(scores[f"dice/{r.label}"])]
        scores[f"{metric}/mean"] = float(np.mean(defined)) if defined else math.nan
    return scores


def _check_label(label: np.ndarray, prediction: np.ndarray, regions: Sequence[Region]) -> None:
    if prediction.shape != label.shape:
        raise GrataError(f"The label has shape {label.shape}, but the prediction {prediction.shape}.")
    known = [0, *(value for region in regions for value in region.values)]
    if (unknown := np.setdiff1d(label, known)).size:
        listed = ", ".join(f"{value:g}" for value in unknown[:5].tolist())
        raise GrataError(f"The label holds the values {listed}, which no segment has.")


def calibration_error(probability: np.ndarray, label: np.ndarray, bins: int = _BINS) -> float:
    """Return the expected calibration error.

    That is the mean over all pixels of |mean probability - share of positives| in the pixel's bin.

    Args:
        probability: probabilities from 0 to 1, of any shape.
        label: boolean mask of the same shape.
        bins: number of bins of equal width.
    """
    # MONAI counts in float32, which is exact up to 2²⁴ pixels only; a volume has more.
    p = probability.astype(np.float64).ravel().clip(0.0, 1.0)
    index = np.minimum((p * bins).astype(np.int64), bins - 1)
    gap = np.bincount(index, p, bins) - np.bincount(index, label.ravel().astype(np.float64), bins)
    return float(np.abs(gap).sum() / p.size)


def _overlap_and_distances(
    found: np.ndarray, real: np.ndarray, spacing: Sequence[float], empty: str
) -> dict[str, float]:
    values = case_scores(found.astype(np.uint8), real.astype(np.uint8), {1: "region"}, spacing)[0]
    if found.any() and real.any():
        with warnings.catch_warnings():
            # MONAI 1.6 passes a deprecated argument to its own function.
            warnings.filterwarnings("ignore", ".*always_return_as_numpy", FutureWarning)
            directed = compute_average_surface_distance(
                torch.as_tensor(found[None, None]).float(),
                torch.as_tensor(real[None, None]).float(),
                include_background=True,
                symmetric=False,
                spacing=[float(s) for s in spacing],
            ).item()
        return {**values, "asd_pred_to_label": directed}
    if empty == "reference":
        dice = 1.0 if not found.any() and not real.any() else 0.0
        return {"dice": dice, **dict.fromkeys(DISTANCES, _REFERENCE_DISTANCE)}
    return {**values, "asd_pred_to_label": values["assd"]}


def _probability(probabilities: np.ndarray, region: Region, regions: Sequence[Region]) -> np.ndarray:
    if len(probabilities) == len(regions):
        return probabilities[region.index]
    if len(probabilities) <= max(region.values):
        raise GrataError(
            f"{len(probabilities)} channels are neither one per segment (sigmoid) nor one per label value (softmax).",
            key="to_probabilities",
        )
    return probabilities[list(region.values)].sum(axis=0)
