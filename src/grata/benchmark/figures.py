"""Figures of a benchmark: Dice by site, Dice along the stream, and the best, median and worst image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from skimage.measure import find_contours

from ..files import atomic_write
from .bundle import BenchmarkBundle
from .config import BenchmarkConfig
from .jobs import Job
from .part import Part
from .statistics import mean_and_interval
from .summary import per_image

__all__ = ["draw_figures"]

# Okabe and Ito's colours can be told apart under common colour blindness; markers separate rows of the same colour.
_COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#999999")
_MARKERS = "oDs^vP*X"
# The broad line is drawn first and the broken one last, so that all show where outlines coincide.
_OUTLINES: dict[str, tuple[str, float, Literal["-", "--"]]] = {
    "label": ("#009E73", 2.8, "-"),
    "reference": ("#56B4E9", 1.5, "-"),
    "source": ("#E69F00", 1.2, "--"),
}
_DPI = 150
_WINDOW = 0.1
_MANY = len(_COLOURS)
"""Number of rows above which colours repeat, so that each row gets a line or a panel with its name."""


def draw_figures(config: BenchmarkConfig, jobs: Sequence[Job], rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write ``figures/*.png``; figures without any value are left out.

    Args:
        config: configuration of the benchmark.
        jobs: all jobs of the benchmark.
        rows: all finished rows.
        folder: folder of the benchmark.
    """
    frame, images = pd.DataFrame([row for row in rows if not row["error"]]), per_image(rows)
    if frame.empty or "dice/mean" not in frame:
        return
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    for protocol in config.protocols:
        chosen = frame[frame["protocol"] == protocol.label]
        if chosen.empty:
            continue
        by_site = images[images["protocol"] == protocol.label]
        many = len(config.methods) > _MANY
        by_site_figure = _dice_by_row if many else _dice_by_site
        stream_figure = _stream_by_row if many else _along_stream
        _save(by_site_figure(config, by_site), figures / f"{protocol.label}-dice-by-site.png")
        _save(stream_figure(config, chosen, ["dice/mean"]), figures / f"{protocol.label}-dice-along-stream.png")
        steps = [c for c in ("cosine", "learning_rate") if c in chosen and chosen[c].notna().any()]
        if steps:
            _save(stream_figure(config, chosen, steps), figures / f"{protocol.label}-steps-along-stream.png")
    for name, figure in _overlays(config, jobs, images, folder):
        _save(figure, figures / name)


def _dice_by_site(config: BenchmarkConfig, images: pd.DataFrame) -> Figure:
    sources = [s for s in config.sources if (images["source"] == s).any()]
    columns = [c for c in images if c.startswith("dice/") and images[c].notna().any()]
    figure = _figure(
        max(6.0, 1.1 + len(columns) * (0.5 + len(config.targets) * 0.28 * len(config.methods))), len(sources)
    )
    panels = figure.subplots(len(sources), len(columns), squeeze=False, sharey=True)
    for source, line in zip(sources, panels, strict=True):
        targets = config.targets_of(source)
        for column, axes in zip(columns, line, strict=True):
            for place, target in enumerate(targets):
                for index, row in enumerate(config.methods):
                    values = _values(images, source, target, row.name, column)
                    if len(values):
                        _point(axes, place + (index - (len(config.methods) - 1) / 2) * 0.11, values, index)
            axes.set_title(f"{source}: {column[5:]}", fontsize=10, parse_math=False)
            axes.set_xticks(range(len(targets)), targets, fontsize=8, parse_math=False)
            axes.set_xlim(-0.6, len(targets) - 0.4)
            _plain(axes)
        line[0].set_ylabel("Dice")
    _legend(config, figure, images, markers=True)
    return figure


def _values(images: pd.DataFrame, source: str, target: str, method: str, column: str) -> np.ndarray:
    chosen = images[(images["source"] == source) & (images["target"] == target) & (images["method"] == method)]
    values = chosen[column].to_numpy(float)
    return values[np.isfinite(values)]


def _point(axes: Axes, place: float, values: np.ndarray, index: int) -> None:
    mean, low, high = mean_and_interval([values])
    colour = _COLOURS[index % len(_COLOURS)]
    if math.isfinite(low):
        axes.plot([place, place], [low, high], color=colour, linewidth=1.4)
    axes.plot(place, mean, _MARKERS[index % len(_MARKERS)], color=colour, markersize=5)


def _along_stream(config: BenchmarkConfig, frame: pd.DataFrame, columns: list[str]) -> Figure:
    """Draw one panel per stream and value: pale points per image, and the moving mean over a tenth of the stream."""
    streams = list(dict.fromkeys(zip(frame["source"], frame["stream"], strict=True)))
    figure = _figure(9.0, len(streams) * len(columns))
    panels = figure.subplots(len(streams) * len(columns), 1, squeeze=False)[:, 0]
    pairs = [(stream, column) for stream in streams for column in columns]
    for ((source, stream), column), axes in zip(pairs, panels, strict=True):
        chosen = frame[(frame["source"] == source) & (frame["stream"] == stream)]
        window = max(1, round(_WINDOW * (chosen["position"].max() + 1)))
        for index, row in enumerate(config.methods):
            values = chosen[chosen["method"] == row.name].groupby("position")[column].mean().dropna()
            if len(values):
                colour = _COLOURS[index % len(_COLOURS)]
                axes.plot(values.index, values, ".", color=colour, alpha=0.25, markersize=3)
                axes.plot(values.index, values.rolling(window, min_periods=1).mean(), color=colour, linewidth=1.4)
        _mark_sites(axes, chosen)
        axes.set_title(f"{source} to {stream}", fontsize=10, parse_math=False)
        axes.set_ylabel("Dice" if column == "dice/mean" else column.replace("_", " "))
        axes.set_xlabel(f"image (line: mean over the last {window})")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _plain(axes)
    _legend(config, figure, frame.dropna(subset=columns, how="all"), markers=False)
    return figure


def _dice_by_row(config: BenchmarkConfig, images: pd.DataFrame) -> Figure:
    """Draw one panel per source and target, with one line per method in order of mean Dice: mean and interval."""
    pairs = [
        (source, target)
        for source in config.sources
        for target in config.targets_of(source)
        if ((images["source"] == source) & (images["target"] == target)).any()
    ]
    figure = Figure(figsize=(1.5 + 4.2 * len(pairs), 1.2 + 0.26 * len(config.methods)), layout="constrained")
    FigureCanvasAgg(figure)
    for (source, target), axes in zip(pairs, figure.subplots(1, len(pairs), squeeze=False)[0], strict=True):
        rows = {
            row.name: values
            for row in config.methods
            if len(values := _values(images, source, target, row.name, "dice/mean"))
        }
        names = sorted(rows, key=lambda name: rows[name].mean())
        for place, name in enumerate(names):
            mean, low, high = mean_and_interval([rows[name]])
            colour = _row_colour(config, name)
            if math.isfinite(low):
                axes.plot([low, high], [place, place], color=colour, linewidth=1.6)
            axes.plot(mean, place, "o", color=colour, markersize=5)
        for row in config.methods:
            if row.method == "source" and row.name in rows:
                axes.axvline(rows[row.name].mean(), color=_COLOURS[0], linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
        axes.set_title(f"{source} to {target}", fontsize=10, parse_math=False)
        axes.set_xlabel("Dice")
        axes.grid(axis="x", color="#E3E3E3", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _stream_by_row(config: BenchmarkConfig, frame: pd.DataFrame, columns: list[str]) -> Figure:
    """Draw one panel per method and stream: its moving mean over a tenth, with all other methods in grey."""
    streams = list(dict.fromkeys(zip(frame["source"], frame["stream"], strict=True)))
    panels = []
    for source, stream in streams:
        chosen = frame[(frame["source"] == source) & (frame["stream"] == stream)]
        window = max(1, round(_WINDOW * (chosen["position"].max() + 1)))
        for column in columns:
            lines = {}
            for row in config.methods:
                values = chosen[chosen["method"] == row.name].groupby("position")[column].mean().dropna()
                if len(values):
                    lines[row.name] = values.rolling(window, min_periods=1).mean()
            panels += [(f"{name}: {source} to {stream}", name, column, lines, chosen) for name in lines]
    across = 4
    down = math.ceil(len(panels) / across)
    figure = Figure(figsize=(3.1 * across, 0.5 + 1.9 * down), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(down, across, squeeze=False).flat
    for (title, name, column, lines, chosen), axes in zip(panels, grid):
        for other, line in lines.items():
            if other != name:
                axes.plot(line.index, line, color="#D0D0D0", linewidth=0.7)
        axes.plot(lines[name].index, lines[name], color=_row_colour(config, name), linewidth=1.8)
        _mark_sites(axes, chosen)
        axes.set_title(title, fontsize=8, parse_math=False)
        axes.set_ylabel("Dice" if column == "dice/mean" else column.replace("_", " "), fontsize=8)
        axes.tick_params(labelsize=7)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _plain(axes)
    for axes in grid:
        axes.set_axis_off()
    return figure


def _row_colour(config: BenchmarkConfig, name: str) -> str:
    """Return the colour of the source, of the reference method, or of all other methods."""
    row = next(row for row in config.methods if row.name == name)
    return _COLOURS[0] if row.method == "source" else _COLOURS[4] if name == config.reference_method else _COLOURS[5]


def _mark_sites(axes: Axes, frame: pd.DataFrame) -> None:
    """Draw lines where the site changes, unless it changes often."""
    sites = frame.drop_duplicates("position").sort_values("position")[["position", "target"]]
    changes = sites[sites["target"] != sites["target"].shift()]["position"].iloc[1:]
    if len(changes) <= len(sites) / 4:
        for position in changes:
            axes.axvline(position - 0.5, color="#BBBBBB", linewidth=0.8)


def _overlays(
    config: BenchmarkConfig, jobs: Sequence[Job], images: pd.DataFrame, folder: Path
) -> Iterator[tuple[str, Figure]]:
    first = config.protocols[0].label
    chosen = images[(images["protocol"] == first) & (images["method"] == config.reference_method)]
    for source in config.sources:
        for target in config.targets_of(source):
            cases = chosen[(chosen["source"] == source) & (chosen["target"] == target)].dropna(subset="dice/mean")
            if cases.empty:
                continue
            cases = cases.sort_values("dice/mean", kind="stable")
            picked = {"worst": cases.iloc[0], "median": cases.iloc[len(cases) // 2], "best": cases.iloc[-1]}
            site = BenchmarkBundle(
                config.bundle, {**config.sources[source], **config.targets[target]}, f"targets#{target}"
            )
            panels = []
            for title, case in picked.items():
                maps = _label_maps(config, jobs, folder, (first, source, target, case["case"]))
                if (panel := _panel(config, jobs, site, target, case["case"], maps)) is not None:
                    panels.append((f"{title}: {case['case']}, Dice {case['dice/mean']:.3f}", *panel))
            if panels:
                yield f"{first}-{source}-{target}-overlays.png", _overlay(config, panels)


def _label_maps(
    config: BenchmarkConfig, jobs: Sequence[Job], folder: Path, key: tuple[str, str, str, str]
) -> dict[str, np.ndarray]:
    protocol, source, target, case = key
    maps: dict[str, np.ndarray] = {}
    for job in jobs:
        if (job.protocol, job.source) != (protocol, source) or not job.keep_label_maps or target not in job.cases:
            continue
        kind = "reference" if job.row.name == config.reference_method else "source"
        position = next((i for i, item in enumerate(job.items) if (item.site, item.case) == (target, case)), None)
        if position is not None and kind not in maps:
            found = Part(folder / "parts", job.name, job.fingerprint).read_label_map(position)
            if found is not None:
                maps[kind] = found
    return maps


def _panel(
    config: BenchmarkConfig,
    jobs: Sequence[Job],
    site: BenchmarkBundle,
    target: str,
    case: str,
    maps: dict[str, np.ndarray],
) -> tuple[np.ndarray, dict[str, np.ndarray], list[tuple[int, ...]]] | None:
    """Return picture, label maps and regions; for a volume the slice across its last axis with most of the label."""
    found = next(job.cases[target][case] for job in jobs if target in job.cases)
    image = site.read_image(found)
    picture = site.picture(image, config.metrics.space)
    if picture is None or "reference" not in maps:
        return None
    label = site.read_label(found, image, config.metrics.space)
    maps = {"label": label, **maps}
    picture = picture[:3] if len(picture) >= 3 else picture[:1]
    if label.ndim == 3:
        index = int((label > 0).sum(axis=(0, 1)).argmax())
        picture = picture[..., index]
        maps = {name: values[..., index] for name, values in maps.items()}
        # The first axis to the right and the second one up, as in NIfTI.
        picture, maps = picture.swapaxes(1, 2)[:, ::-1], {name: v.T[::-1] for name, v in maps.items()}
    return picture, maps, [region.values for region in site.regions]


def _overlay(config: BenchmarkConfig, panels: Sequence[tuple[str, np.ndarray, Any, Any]]) -> Figure:
    figure = Figure(figsize=(4.2 * len(panels), 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    for (title, picture, maps, regions), axes in zip(
        panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True
    ):
        low, high = np.percentile(picture, (0.5, 99.5))
        shown = ((picture - low) / max(high - low, 1e-12)).clip(0, 1)
        axes.imshow(np.moveaxis(shown, 0, -1) if len(shown) == 3 else shown[0], cmap="gray", vmin=0, vmax=1)
        for name, (colour, width, style) in _OUTLINES.items():
            for region in regions if name in maps else ():
                for line in find_contours(np.pad(np.isin(maps[name], region), 1).astype(float), 0.5):
                    axes.plot(line[:, 1] - 1, line[:, 0] - 1, color=colour, linewidth=width, linestyle=style)
        axes.set_title(title, fontsize=9, parse_math=False)
        axes.set_axis_off()
    names = {"label": "label", "source": "source", "reference": config.reference_method}
    handles = [
        Line2D([], [], color=colour, linewidth=width, linestyle=style, label=names[name])
        for name, (colour, width, style) in _OUTLINES.items()
        if any(name in maps for _, _, maps, _ in panels)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _figure(width: float, rows: int) -> Figure:
    figure = Figure(figsize=(width, 0.7 + 2.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plain(axes: Axes) -> None:
    axes.grid(axis="y", color="#E3E3E3", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(config: BenchmarkConfig, figure: Figure, frame: pd.DataFrame, markers: bool) -> None:
    handles = [
        Line2D(
            [],
            [],
            color=_COLOURS[index % len(_COLOURS)],
            marker=_MARKERS[index % len(_MARKERS)] if markers else None,
            linestyle="none" if markers else "-",
            label=row.name,
        )
        for index, row in enumerate(config.methods)
        if (frame["method"] == row.name).any()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), frameon=False, fontsize=9)


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI, metadata={"Software": None})
