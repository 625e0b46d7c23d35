"""Overlap and surface distances per case and class, as a CSV table and as means with bootstrap intervals."""

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
from .tables import read_table, write_table

__all__ = ["MEAN_CLASS", "SOURCE", "case_scores", "read_scores", "summarise_scores", "write_scores"]

MEAN_CLASS = "mean"
"""Class name of a summary's mean over all classes of a case."""

SOURCE = "source"
"""Variant that every other variant is compared with, case by case."""

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

    A structure that is in neither map cannot be scored: all three values are nan. A structure that is in only one of
    the maps was missed or is false: Dice is 0 and both distances are inf. (MONAI leaves a false structure out of its
    mean Dice; here it counts.)

    Args:
        prediction: predicted label map of shape ``(H, W)`` or ``(H, W, D)``.
        label: true label map of the same shape.
        class_names: name of each label value, without the background 0.
        spacing: distance between neighbouring voxels along each axis, in mm; None for a picture, whose pixels have no
            size and whose distances are in pixels.
        includes: further label values that belong to a class too, by the label value of the class.

    Returns:
        One dict per class, in the order of ``class_names``:

        - ``class``: name of the class;
        - ``dice``: Dice, 0 to 1;
        - ``hd95``: larger of the two directed 95th percentiles of the distance between the surfaces;
        - ``assd``: mean distance over the voxels of both surfaces;
        - ``unit``: unit of the distances, ``"mm"`` or ``"px"``.

        A surface consists of the voxels that have a face neighbour outside the class.

    Raises:
        GrataError: the shapes differ, the spacing does not fit them, or a map holds a value without a name.
    """
    maps = {"segmentation": convert_to_numpy(prediction), "label": convert_to_numpy(label)}
    shapes = {name: values.shape for name, values in maps.items()}
    if shapes["segmentation"] != shapes["label"]:
        raise GrataError(
            f"The label has shape {shapes['label']}, but the segmentation {shapes['segmentation']}. Give two maps of "
            "the same scan."
        )
    unit, spacing = ("px", [1.0] * len(shapes["label"])) if spacing is None else (_MM, spacing)
    includes = includes or {}
    if len(spacing) != len(shapes["label"]) or not all(math.isfinite(mm) and mm > 0 for mm in spacing):
        raise GrataError(
            f"must be one distance above 0 per axis of a label of shape {shapes['label']}, got {tuple(spacing)}.",
            key="spacing",
        )
    for name, values in maps.items():
        _check_values(name, values, class_names, includes)
    rows = []
    for value, name in class_names.items():
        found, real = (np.isin(values, [value, *includes.get(value, ())]) for values in maps.values())
        rows.append({"class": name, **_class_scores(found, real, spacing), "unit": unit})
    return rows


def _check_values(
    name: str, values: np.ndarray, class_names: Mapping[int, str], includes: Mapping[int, Sequence[int]]
) -> None:
    unknown = np.unique(values[~np.isin(values, [0, *class_names, *chain(*includes.values())])])
    if unknown.size:
        found = ", ".join(f"{value:g}" for value in unknown.tolist())
        raise GrataError(
            f"The {name} holds the values {found}, which have no class. The classes are {dict(class_names)}, and 0 is "
            "background. Correct the map or the classes."
        )


def _class_scores(prediction: np.ndarray, label: np.ndarray, spacing: Sequence[float]) -> dict[str, float]:
    found, real = bool(prediction.any()), bool(label.any())
    # MONAI would warn of an empty mask, and interpolate infinite distances to a 95th percentile of nan.
    if not (found and real):
        return dict.fromkeys(_METRICS, math.nan) if found == real else {"dice": 0.0, "hd95": math.inf, "assd": math.inf}
    y_pred, y = (torch.as_tensor(mask[None, None]).float() for mask in (prediction, label))
    mm = [float(distance) for distance in spacing]
    with warnings.catch_warnings():
        # MONAI 1.6 calls its own function with an argument that it deprecates.
        warnings.filterwarnings("ignore", ".*always_return_as_numpy", FutureWarning)
        return {
            "dice": compute_dice(y_pred, y, include_background=True).item(),
            "hd95": compute_hausdorff_distance(y_pred, y, include_background=True, percentile=95, spacing=mm).item(),
            "assd": compute_average_surface_distance(
                y_pred, y, include_background=True, symmetric=True, spacing=mm
            ).item(),
        }


def write_scores(rows: Iterable[Mapping[str, Any]], path: str | Path) -> None:
    """Write score rows as CSV, whole or not at all.

    Args:
        rows: dicts with ``case``, ``site``, ``variant``, ``class``, ``dice``, ``hd95``, ``assd`` and, optionally,
            ``unit`` of the two distances (default ``"mm"``), written in the order given. Numbers have six decimals;
            undefined ones are written as ``nan``, infinite ones as ``inf``.
        path: file to write, in a folder that exists; an existing file is replaced.

    Raises:
        GrataError: the file cannot be written.
    """
    table = ({"unit": _MM, **row, **{metric: float(row[metric]) for metric in _METRICS}} for row in rows)
    write_table(table, _COLUMNS, path)


def read_scores(path: str | Path) -> list[dict[str, Any]]:
    """Read a table that :func:`write_scores` wrote.

    Raises:
        GrataError: the file cannot be read, or is not such a table.
    """
    try:
        columns, rows = read_table(path)
        if tuple(columns) != _COLUMNS:
            raise ValueError(f"its columns are not {','.join(_COLUMNS)}")
        return [{**row, **{metric: float(row[metric]) for metric in _METRICS}} for row in rows]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise GrataError(
            f"{path} cannot be read as a table of scores: {error}. Give the scores.csv of a run."
        ) from error


def summarise_scores(rows: Iterable[Mapping[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Return means over cases, with 95 % percentile bootstrap intervals over cases (10 000 resamples).

    Args:
        rows: score rows, as for :func:`write_scores`.
        seed: seed of the bootstrap. Each interval has a generator of its own, so that it depends only on its cases.

    Returns:
        One dict for each site, variant and class, in the order of their first row; the mean over classes (class
        ``"mean"``) comes last for its site and variant. Undefined numbers are nan; an interval needs two cases.

        - ``site``, ``variant``, ``class``;
        - ``cases``: number of cases;
        - ``dice``, ``dice_low``, ``dice_high``: mean and interval over the cases whose Dice is defined;
        - ``hd95``, ``assd``: means over the finite distances;
        - ``unit``: unit of the distances. Where some cases are measured in mm and others in pixels, it is empty and all
          distances are left out;
        - ``distances_left_out``: number of cases whose distances are left out;
        - ``pairs``, ``difference``, ``difference_low``, ``difference_high``: number of cases that the variant
          ``"source"`` has too, and mean and interval of the Dice minus that of ``"source"`` in the same case, for every
          other variant.

        A case's mean over classes leaves out classes that are in neither map. Its distances are infinite where a class
        was missed.

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
                f"Case {row['case']} has two scores for site {row['site']!r}, variant {row['variant']}, class "
                f"{row['class']}. Give every case its own name."
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
    # A structure that is in neither map has a Dice of nan.
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
    # SciPy before 1.15 has only this name for the generator, and later versions still accept it.
    interval = bootstrap(
        (values,),
        np.mean,
        n_resamples=_RESAMPLES,
        confidence_level=_CONFIDENCE,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return float(values.mean()), float(interval.low), float(interval.high)
