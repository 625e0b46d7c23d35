"""Overlap and surface distance per case and class, as a table on disk and as means with bootstrap intervals."""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance
from monai.utils import convert_to_numpy
from scipy.stats import bootstrap

from ..errors import GrataError
from .tables import write_table

__all__ = ["MEAN_CLASS", "SOURCE", "case_scores", "read_scores", "summarise_scores", "write_scores"]

MEAN_CLASS = "mean"
"""The class under which a summary gives the mean over all classes of a case."""

SOURCE = "source"
"""The variant that every other one is compared with, case by case."""

_METRICS = ("dice", "hd95", "assd")
_COLUMNS = ("case", "site", "variant", "class", *_METRICS, "unit")
_MM = "mm"
_RESAMPLES = 10_000
_CONFIDENCE = 0.95


def case_scores(
    prediction: np.ndarray | torch.Tensor,
    label: np.ndarray | torch.Tensor,
    class_names: Mapping[int, str],
    spacing: Sequence[float] | None,
    includes: Mapping[int, Sequence[int]] | None = None,
) -> list[dict[str, Any]]:
    """Score one segmentation against its label.

    A structure that neither map has cannot be scored: all three values are nan. One that only one of the maps has was
    missed or made up: Dice is 0 and both distances are inf. (MONAI leaves a made-up structure out of the Dice mean;
    here it counts.)

    Args:
        prediction: label map of shape ``(H, W)`` or ``(H, W, D)``.
        label: label map of the same shape.
        class_names: name of each label value, without the background 0.
        spacing: distance between neighbouring voxels along each axis, in mm; None for a picture, whose pixels have no
            size: its distances are in pixels.
        includes: for a label value, the further ones that its class takes in.

    Returns:
        One dict a class, in the order of ``class_names``: ``class``; ``dice``, 0 to 1; ``hd95``, the larger of the two
        directed 95th percentiles of the distance between the surfaces; ``assd``, the mean distance over the voxels of
        both surfaces; ``unit`` of the distances, ``"mm"`` or ``"px"``. Surfaces are the voxels that a face neighbour
        outside the class touches.

    Raises:
        GrataError: the shapes differ, the spacing does not fit them, or a map holds a value without a name.
    """
    maps = {
        "segmentation": convert_to_numpy(prediction),
        "label": convert_to_numpy(label),
    }
    shapes = {name: values.shape for name, values in maps.items()}
    if shapes["segmentation"] != shapes["label"]:
        raise GrataError(f"The label has shape {shapes['label']}, but the segmentation {shapes['segmentation']}.")
    unit, spacing = ("px", [1.0] * len(shapes["label"])) if spacing is None else (_MM, spacing)
    includes = includes or {}
    if len(spacing) != len(shapes["label"]) or not all(math.isfinite(mm) and mm > 0 for mm in spacing):
        raise GrataError(f"The spacing {tuple(spacing)} does not fit a label of shape {shapes['label']}.")
    for name, values in maps.items():
        unknown = np.unique(values[~np.isin(values, [0, *class_names, *chain(*includes.values())])])
        if unknown.size:
            raise GrataError(
                f"The {name} holds the values {', '.join(f'{value:g}' for value in unknown.tolist())}, "
                f"which have no class; the classes are {dict(class_names)} and 0 is background."
            )
    return [
        {
            "class": name,
            **_class_scores(*(np.isin(values, [value, *includes.get(value, ())]) for values in maps.values()), spacing),
            "unit": unit,
        }
        for value, name in class_names.items()
    ]


def _class_scores(prediction: np.ndarray, label: np.ndarray, spacing: Sequence[float]) -> dict[str, float]:
    found, real = bool(prediction.any()), bool(label.any())
    # MONAI warns here, and its 95th percentile of infinite distances is nan by interpolation.
    if not (found and real):
        return dict.fromkeys(_METRICS, math.nan) if found == real else {"dice": 0.0, "hd95": math.inf, "assd": math.inf}
    y_pred, y = (torch.as_tensor(mask[None, None]).float() for mask in (prediction, label))
    pair = {"y_pred": y_pred, "y": y, "include_background": True}
    distances = [float(distance) for distance in spacing]
    with warnings.catch_warnings():
        # MONAI 1.6 calls its own function with an argument that it deprecates.
        warnings.filterwarnings("ignore", ".*always_return_as_numpy", FutureWarning)
        return {
            "dice": compute_dice(**pair).item(),
            "hd95": compute_hausdorff_distance(**pair, percentile=95, spacing=distances).item(),
            "assd": compute_average_surface_distance(**pair, symmetric=True, spacing=distances).item(),
        }


def write_scores(rows: Iterable[Mapping[str, Any]], path: str | Path) -> None:
    """Write score rows as CSV, whole or not at all.

    Args:
        rows: ``case``, ``site``, ``variant``, ``class``, ``dice``, ``hd95``, ``assd`` and ``unit`` of the two distances
            (``"mm"`` where it is not given), written in the order given, numbers with six decimals, missing ones as
            ``nan`` and ``inf``.
        path: the file, in a folder that exists; an older one is replaced.

    Raises:
        GrataError: the file cannot be written.
    """
    table = ({"unit": _MM, **row, **{metric: float(row[metric]) for metric in _METRICS}} for row in rows)
    write_table(table, _COLUMNS, path)


def read_scores(path: str | Path) -> list[dict[str, Any]]:
    """Read what :func:`write_scores` wrote.

    Raises:
        GrataError: the file cannot be read, or is not such a table.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        if tuple(reader.fieldnames or ()) != _COLUMNS:
            raise ValueError(f"its columns are not {','.join(_COLUMNS)}")
        return [{**row, **{metric: float(row[metric]) for metric in _METRICS}} for row in rows]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise GrataError(f"{path}: cannot be read as a table of scores: {error}.") from error


def summarise_scores(rows: Iterable[Mapping[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Means over cases, with 95 % percentile bootstrap intervals over cases (10 000 resamples).

    Args:
        rows: as for :func:`write_scores`.
        seed: every interval is drawn with its own generator of this seed, so that it depends on its cases alone.

    Returns:
        One dict for each site, variant and class in the order of their first row, the mean over classes (class
        ``"mean"``) last in its site and variant. What does not exist is nan; an interval needs two cases.

        - ``site``, ``variant``, ``class``, and ``cases``, how many there are;
        - ``dice``, ``dice_low``, ``dice_high``: mean and interval over the cases whose Dice is defined;
        - ``hd95``, ``assd``: means over the finite distances, in ``unit``, and ``distances_left_out``, how many were
          not; where some cases are measured in mm and others in pixels, all are left out and ``unit`` is empty;
        - ``pairs``, ``difference``, ``difference_low``, ``difference_high``: Dice minus the Dice of the variant
          ``"source"`` in the same case, mean and interval, for every other variant where there is a source.

        A case's mean over classes leaves out classes that neither map has, and is infinite for the distances when a
        class was missed.

    Raises:
        GrataError: a case has two rows for one site, variant and class.
    """
    table: dict[tuple[str, str], dict[str, dict[str, np.ndarray]]] = {}
    units: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        units.setdefault((row["site"], row["variant"]), set()).add(row.get("unit", _MM))
        cases = table.setdefault((row["site"], row["variant"]), {}).setdefault(row["class"], {})
        if row["case"] in cases:
            raise GrataError(
                f"Case {row['case']} has two scores for site {row['site']!r}, variant {row['variant']}, "
                f"class {row['class']}: give every case its own name."
            )
        cases[row["case"]] = np.array([row[metric] for metric in _METRICS], dtype=float)
    for classes in table.values():
        classes[MEAN_CLASS] = _mean_over_classes(classes)
    return [
        {
            "site": site,
            "variant": variant,
            "class": name,
            **_summary(cases, units[site, variant], seed),
            **_comparison(cases, table.get((site, SOURCE), {}).get(name, {}) if variant != SOURCE else {}, seed),
        }
        for (site, variant), classes in table.items()
        for name, cases in classes.items()
    ]


def _mean_over_classes(classes: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    per_case: dict[str, list[np.ndarray]] = {}
    for cases in classes.values():
        for case, values in cases.items():
            per_case.setdefault(case, []).append(values)
    # A structure that neither map has makes all three of its values nan.
    scored = {case: [v for v in values if not np.isnan(v[0])] for case, values in per_case.items()}
    return {case: np.mean(v, axis=0) if v else np.full(len(_METRICS), math.nan) for case, v in scored.items()}


def _summary(cases: Mapping[str, np.ndarray], units: set[str], seed: int) -> dict[str, Any]:
    dice, hd95, assd = np.stack(list(cases.values())).T
    mean, low, high = _mean_and_interval(dice[np.isfinite(dice)], seed)
    finite = np.isfinite(hd95) & np.isfinite(assd) & (len(units) == 1)
    return {
        "cases": len(cases),
        "dice": mean,
        "dice_low": low,
        "dice_high": high,
        "hd95": float(hd95[finite].mean()) if finite.any() else math.nan,
        "assd": float(assd[finite].mean()) if finite.any() else math.nan,
        "unit": next(iter(units)) if len(units) == 1 else "",
        "distances_left_out": int((~finite).sum()),
    }


def _comparison(cases: Mapping[str, np.ndarray], source: Mapping[str, np.ndarray], seed: int) -> dict[str, Any]:
    differences = np.array([values[0] - source[case][0] for case, values in cases.items() if case in source])
    differences = differences[np.isfinite(differences)]
    mean, low, high = _mean_and_interval(differences, seed)
    return {"pairs": len(differences), "difference": mean, "difference_low": low, "difference_high": high}


def _mean_and_interval(values: np.ndarray, seed: int) -> tuple[float, float, float]:
    if len(values) < 2:
        return (float(values[0]) if len(values) else math.nan), math.nan, math.nan
    # SciPy before 1.15 knows the generator by this name only, and later ones still take it.
    interval = bootstrap(
        (values,),
        np.mean,
        n_resamples=_RESAMPLES,
        confidence_level=_CONFIDENCE,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return float(values.mean()), float(interval.low), float(interval.high)
