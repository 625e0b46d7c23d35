"""Tables of a benchmark: means with intervals, paired tests and cost, as Markdown, CSV and LaTeX."""

from __future__ import annotations

import datetime
import json
import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from tabulate import tabulate

from .._version import __version__
from ..files import atomic_write
from ..methods.base import SKIPPED
from ..report.tables import cell
from .cells import estimate, number, p_value
from .config import BenchmarkConfig
from .metrics import DISTANCES, METRICS
from .protocols import Protocol
from .statistics import holm, mean_and_interval, rank_correlation, signed_rank

__all__ = ["ALL", "command_line", "per_image", "summarise", "without_places", "write_summary"]

ALL = "all"
"""Name of all targets, or all sources, together."""

_Group = tuple[str, list[str]]
"""Name of one or more sources or targets, and the names of its members."""

_IMAGE = ["protocol", "source", "target", "method", "case"]
_PAIR = ["source", "target", "case"]


def per_image(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return one line per image and method: means over seeds and rounds.

    Failed images are left out; if an image failed for one seed only, the mean is taken over the other seeds.
    """
    frame = pd.DataFrame([row for row in rows if not row["error"]])
    if frame.empty:
        return frame
    measured = [
        c for c in frame.columns if c.split("/")[0] in METRICS or c in ("seconds", "seconds_predict", "agreement")
    ]
    # pandas' mean skips NaN, and a distance that is infinite for one seed stays infinite.
    return frame.groupby(_IMAGE, sort=False)[measured].mean().reset_index()


def summarise(config: BenchmarkConfig, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return one line per protocol, source, target and method; ``all`` stands for all targets or all sources together.

    For all sources together each image of a target counts once, with its mean over the sources: images are drawn from a
    population, and the same image through another network is not a further draw.

    Args:
        config: configuration of the benchmark.
        rows: all finished rows.

    Returns:
        A frame with these columns beside ``protocol``, ``source``, ``target`` and ``method``:

        - ``images``: number of scored images; ``unlabelled``: number of finished images without a label; ``failed``:
          number of failed runs of images; ``skipped``: number of skipped steps;
        - ``<metric>/<segment>``: mean, for distances over the finite ones; ``undefined/<segment>``: number of infinite
          distances; for Dice also ``:low`` and ``:high``, the 95 % bootstrap interval over images;
        - ``difference``: mean Dice minus the reference method's on the same images, with its interval; ``p``: p value
          of the paired Wilcoxon test; ``p_holm``: the same, corrected for the number of methods in the block;
        - ``seconds_adapt``, ``seconds_predict`` and their sum ``seconds``: time per image without the first image after
          each start; ``ratio``: ``seconds`` relative to the source network's; ``peak_memory_mib``: peak memory;
        - ``agreement_spearman``: correlation of the label-free score with the Dice.
    """
    everything, images = pd.DataFrame(list(rows)), per_image(rows)
    lines = []
    for protocol in config.protocols:
        for source, targets in _blocks(config):
            lines += _block(config, everything, images, protocol, source, targets)
    return pd.DataFrame(lines)


def _block(
    config: BenchmarkConfig,
    everything: pd.DataFrame,
    images: pd.DataFrame,
    protocol: Protocol,
    source: _Group,
    target: _Group,
) -> list[dict[str, Any]]:
    """Return the lines of all methods for one source and one target."""
    block: list[dict[str, Any]] = []
    reference = _select(images, protocol.label, source, target, config.reference_method)
    for row in config.methods:
        chosen = _select(everything, protocol.label, source, target, row.name)
        mine = _select(images, protocol.label, source, target, row.name)
        strata = _strata(mine, protocol)
        block.append(
            {
                "protocol": protocol.label,
                "source": source[0],
                "target": target[0],
                "method": row.name,
                **_counts(chosen),
                **_means(strata, list(images.columns)),
                **_comparison(mine, reference, protocol, row.name == config.reference_method),
                **_cost(chosen),
                "agreement_spearman": _agreement(strata),
            }
        )
    base = next((line["seconds"] for line in block if _is_source(config, line["method"])), math.nan)
    for line, adjusted in zip(block, holm([line["p"] for line in block]), strict=True):
        line["p_holm"] = adjusted
        line["ratio"] = line["seconds"] / base
    return block


def _agreement(strata: list[pd.DataFrame]) -> float:
    pooled = pd.concat(strata) if strata else pd.DataFrame()
    if not {"agreement", "dice/mean"} <= set(pooled.columns):
        return math.nan
    return rank_correlation(pooled["agreement"].to_numpy(float), pooled["dice/mean"].to_numpy(float))


def write_summary(
    config: BenchmarkConfig, rows: Sequence[Mapping[str, Any]], folder: Path, threads: int, minutes: float, missing: int
) -> None:
    """Write ``summary.csv``, ``summary.md`` and ``summary.tex``, each whole or not at all.

    Args:
        config: configuration of the benchmark.
        rows: all finished rows.
        folder: folder of the benchmark.
        threads: number of torch threads in each process.
        minutes: duration of this run.
        missing: number of images that are not finished yet.
    """
    table = summarise(config, rows)
    with atomic_write(folder / "summary.csv") as temporary:
        table.map(cell).to_csv(temporary, index=False, lineterminator="\n")
    markdown = "\n".join([*_header(config, rows, threads, minutes, missing), *_body(config, table, rows, "pipe")])
    latex = "\n".join(_body(config, table, rows, "latex_booktabs"))
    for name, text in (("summary.md", markdown), ("summary.tex", latex)):
        with atomic_write(folder / name) as temporary:
            temporary.write_text(f"{text}\n", encoding="utf-8")


def _blocks(config: BenchmarkConfig) -> Iterator[tuple[_Group, _Group]]:
    """Yield the sources and targets of each table: each source and target, then all targets, then all sources."""
    for source in config.sources:
        targets = config.targets_of(source)
        for target in targets:
            yield (source, [source]), (target, [target])
        if len(targets) > 1:
            yield (source, [source]), (ALL, targets)
    if len(config.sources) > 1:
        yield (ALL, list(config.sources)), (ALL, list(config.targets))


def _select(frame: pd.DataFrame, protocol: str, source: _Group, target: _Group, method: str) -> pd.DataFrame:
    if frame.empty:
        return frame
    return frame[
        (frame["protocol"] == protocol)
        & frame["source"].isin(source[1])
        & frame["target"].isin(target[1])
        & (frame["method"] == method)
    ]


def _strata(images: pd.DataFrame, protocol: Protocol) -> list[pd.DataFrame]:
    """Return the frames that weigh equally: one per site or one for all, with each image's mean over the sources."""
    if images.empty:
        return []
    values = [column for column in images.columns if column not in _IMAGE]
    # As over seeds, the mean skips NaN, and infinite stays infinite.
    averaged = images.groupby(["target", "case"], sort=False)[values].mean().reset_index()
    if protocol.weighting == "images":
        return [averaged]
    return [group for _, group in averaged.groupby("target", sort=False)]


def _counts(chosen: pd.DataFrame) -> dict[str, Any]:
    if chosen.empty:
        return {"images": 0, "unlabelled": 0, "failed": 0, "skipped": 0}
    fine = chosen[chosen["error"] == ""]
    skipped = fine["flags"].fillna("").str.contains(SKIPPED).sum() if "flags" in fine else 0
    # With a label the calibration is defined even if the Dice of a missing structure is not.
    scores = [column for column in fine.columns if column.split("/")[0] in METRICS]
    scored = fine[fine[scores].notna().any(axis=1)].groupby(["target", "case"]).ngroups
    return {
        "images": scored,
        "unlabelled": fine.groupby(["target", "case"]).ngroups - scored,
        "failed": int((chosen["error"] != "").sum()),
        "skipped": int(skipped),
    }


def _means(strata: list[pd.DataFrame], columns: Sequence[str]) -> dict[str, float]:
    means: dict[str, float] = {}
    for column in sorted((c for c in columns if c.split("/")[0] in METRICS), key=_metric_order):
        metric, _, segment = column.partition("/")
        values = [stratum[column].to_numpy(float) for stratum in strata]
        # A site where a segment is not scored does not count in its mean.
        values = [v for v in values if not np.isnan(v).all()]
        finite = [v[np.isfinite(v)] for v in values]
        if metric == "dice":
            means[column], means[f"{column}:low"], means[f"{column}:high"] = mean_and_interval(finite)
        else:
            means[column] = _mean_of_means(finite)
        if metric == DISTANCES[0]:
            means[f"undefined/{segment}"] = sum(int(np.isinf(v).sum()) for v in values)
    return means


def _mean_of_means(strata: Iterable[np.ndarray]) -> float:
    means = [values.mean() for values in strata if len(values)]
    return float(np.mean(means)) if means else math.nan


def _metric_order(column: str) -> tuple[int, bool]:
    metric, _, segment = column.partition("/")
    return METRICS.index(metric), segment == "mean"


def _comparison(images: pd.DataFrame, reference: pd.DataFrame, protocol: Protocol, itself: bool) -> dict[str, float]:
    names = ("difference", "difference:low", "difference:high", "p")
    if itself or images.empty or reference.empty or "dice/mean" not in images:
        return dict.fromkeys(names, math.nan)
    # Paired within each source, so that an image that failed for one of them is left out on both sides.
    pairs = images[_IMAGE].assign(
        difference=images["dice/mean"].to_numpy(float)
        - reference.set_index(_PAIR)["dice/mean"].reindex(pd.MultiIndex.from_frame(images[_PAIR])).to_numpy(float)
    )
    strata = _strata(pairs[np.isfinite(pairs["difference"])], protocol)
    if not strata:
        return dict.fromkeys(names, math.nan)
    differences = [stratum["difference"].to_numpy() for stratum in strata]
    return dict(zip(names, (*mean_and_interval(differences), signed_rank(np.concatenate(differences))), strict=True))


def _cost(chosen: pd.DataFrame) -> dict[str, float]:
    names = ("seconds_adapt", "seconds_predict", "seconds", "peak_memory_mib")
    if chosen.empty or "seconds" not in chosen:
        return dict.fromkeys(names, math.nan)
    fine = chosen[(chosen["error"] == "") & chosen["seconds"].notna()]
    warm = fine[~fine["cold"].astype(bool)]
    # The first image after a start includes torch's one-time setup; it is used only if there is no other.
    timed = warm if len(warm) else fine
    adapt, predict = float(timed["seconds"].mean()), float(timed["seconds_predict"].mean())
    return dict(zip(names, (adapt, predict, adapt + predict, float(fine["peak_memory_mib"].max())), strict=True))


def _is_source(config: BenchmarkConfig, name: str) -> bool:
    return any(row.name == name and row.method == "source" for row in config.methods)


_EMPTY = {
    "nan": "A structure that neither map has is not scored; one that only one of them has counts as Dice 0, and its "
    "distances, being infinite, are left out of the means (`undefined` counts them).",
    "reference": "A structure that neither map has counts as Dice 1; one that either lacks has distances of 100, as in "
    "the reference implementations of GraTa and VPTTA.",
}


def _header(
    config: BenchmarkConfig, rows: Sequence[Mapping[str, Any]], threads: int, minutes: float, missing: int
) -> list[str]:
    computing = sum(row.get(key, 0) for row in rows for key in ("seconds", "seconds_predict", "seconds_judge")) / 60
    failed = sum(bool(row["error"]) for row in rows)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "monai", "numpy", "scipy"))
    space = "grid of the input" if config.metrics.space == "input" else "grid that the network sees"
    made = (
        f"{datetime.date.today().isoformat()}; grata {__version__}, {packages}; "
        f"seeds {', '.join(map(str, config.seeds))}; {config.workers} worker processes, {threads} torch threads each; "
        f"{minutes:.1f} minutes for this run, {computing:.1f} minutes of adaptation and prediction in all its rows."
    )
    statistics = (
        f"{len(rows)} rows, {failed} of them failed, {missing} images not done. Dice with 95 % bootstrap interval over "
        "images (10 000 resamples within what weighs equally; seeds and rounds are averaged first, and so are sources "
        "where they are put together; `images` are those that have a label). Differences of the mean Dice are paired "
        f"by image, against `{config.reference_method}`; p: two-sided Wilcoxon signed-rank test, "
        "by Holm's procedure for the methods of the table. A method without random numbers, on a stream that no seed "
        "orders, is run for one seed."
    )
    scores = (
        f"Scores on the {space}; distances in pixels for pictures, in mm for NIfTI and DICOM. "
        f"{_EMPTY[config.metrics.empty]} "
        "ASSD is symmetric; the ASD from prediction to label is the directed mean distance that reference "
        "implementations call ASSD. ECE: 15 bins, over all pixels of the image."
    )
    cost = (
        "Seconds are those of adaptation and prediction, without reading, scoring and the first image after each start "
        "of a job; an image that comes again and need not be computed again has none. Memory is "
        "the peak of the whole process (CPU, Linux) or of its tensors (CUDA)."
    )
    protocols = [f"- `{protocol.label}`: {protocol.summary}." for protocol in config.protocols]
    given = yaml.safe_dump(without_places(config.given), sort_keys=False, allow_unicode=True).rstrip()
    title = f"# Benchmark of {config.bundle.name}"
    parts = [title, made, statistics, scores, cost, "\n".join(protocols), f"```yaml\n{given}\n```"]
    return [line for part in parts for line in (part, "")]


def without_places(given: Any) -> Any:
    """Return a configuration or a part of it without the folders of absolute paths, which name machine or user."""
    if isinstance(given, Mapping):
        return {key: without_places(value) for key, value in given.items()}
    if isinstance(given, list):
        return [without_places(value) for value in given]
    is_place = isinstance(given, str) and Path(given).is_absolute()
    return Path(given).name if is_place else given


def command_line(config_file: str | Path, overrides: Mapping[str, Any]) -> str:
    """Return the command of a benchmark, as pages show it: without the folders of absolute paths."""
    words = ["grata", "benchmark", without_places(Path(config_file).as_posix())]
    for key, value in overrides.items():
        shown = without_places(str(value) if isinstance(value, Path) else value)
        words += [f"--{key}", shown if isinstance(shown, str) else json.dumps(shown)]
    return shlex.join(words)


def _body(config: BenchmarkConfig, table: pd.DataFrame, rows: Sequence[Mapping[str, Any]], form: str) -> Iterator[str]:
    for (protocol, source, target), block in table.groupby(["protocol", "source", "target"], sort=False):
        title = f"{protocol}: {source} to {target}"
        segments = [c[5:] for c in block if c.startswith("dice/") and ":" not in c and block[c].notna().any()]
        if len(segments) == 2:
            segments.remove("mean")
        yield from _heading(title, form)
        unlabelled = bool(block["unlabelled"].any())
        yield _table([_dice_line(row, segments, unlabelled) for _, row in block.iterrows()], form)
        yield ""
        yield _table([line for _, row in block.iterrows() for line in _other_lines(row, segments)], form)
        yield ""
        yield _table([_cost_line(row) for _, row in block.iterrows()], form)
        yield ""
    for protocol in config.protocols:
        if protocol.name == "recurring":
            yield from _heading(f"{protocol.label}: mean Dice by round", form)
            yield _table(list(_rounds(config, protocol.label, rows)), form)
            yield ""


def _rounds(config: BenchmarkConfig, protocol: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    frame = pd.DataFrame([row for row in rows if row["protocol"] == protocol and not row["error"]])
    if frame.empty or "dice/mean" not in frame:
        return
    means = frame.groupby(["source", "method", "round"])["dice/mean"].mean()
    for source in config.sources:
        for row in config.methods:
            if (source, row.name) in means.index:
                rounds = means.loc[(source, row.name)]
                yield {
                    "source": source,
                    "method": row.name,
                    **{f"round {r + 1}": number(v, ".4f") for r, v in rounds.items()},
                }


def _heading(title: str, form: str) -> list[str]:
    return [f"## {title}", ""] if form == "pipe" else [f"% {title}"]


def _table(lines: list[dict[str, Any]], form: str) -> str:
    return tabulate(lines, headers="keys", tablefmt=form, disable_numparse=True)


def _dice_line(row: pd.Series, segments: Sequence[str], unlabelled: bool) -> dict[str, Any]:
    line = {"method": row["method"], "images": int(row["images"]), "failed": int(row["failed"])}
    if unlabelled:
        line["unlabelled"] = int(row["unlabelled"])
    for segment in segments:
        line[f"Dice {segment}"] = _estimate(row, f"dice/{segment}", ".4f")
    return {
        **line,
        "difference": _estimate(row, "difference", "+.4f"),
        "p (Holm)": p_value(row["p_holm"]),
    }


def _other_lines(row: pd.Series, segments: Sequence[str]) -> Iterator[dict[str, Any]]:
    for segment in [s for s in segments if s != "mean"]:
        line = {"method": row["method"], "segment": segment}
        for metric, title, digits in zip(
            METRICS[1:], ("ASSD", "HD95", "ASD prediction to label", "ECE"), (2, 2, 2, 4), strict=True
        ):
            line[title] = number(row[f"{metric}/{segment}"], f".{digits}f")
        yield {**line, "undefined": int(row[f"undefined/{segment}"])}


def _cost_line(row: pd.Series) -> dict[str, Any]:
    return {
        "method": row["method"],
        "s adapt": number(row["seconds_adapt"], ".3f"),
        "s predict": number(row["seconds_predict"], ".3f"),
        "s image": number(row["seconds"], ".3f"),
        "ratio to source": number(row["ratio"], ".2f"),
        "peak MiB": number(row["peak_memory_mib"], ".0f"),
        "skipped steps": int(row["skipped"]),
        "agreement to Dice (Spearman)": number(row["agreement_spearman"], "+.2f"),
    }


def _estimate(row: pd.Series, column: str, form: str) -> str:
    return estimate(row[column], row[f"{column}:low"], row[f"{column}:high"], form)
