"""Figure of a run on one page: the Dice of every case before and after adaptation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from ..errors import GrataError
from ..files import atomic_write
from .scores import summarise_scores

__all__ = ["overview_figure"]

_BETTER, _WORSE, _SAME, _MEAN = "#0072B2", "#D55E00", "#6B6B6B", "#000000"
_DPI = 150
_VARIANT_WIDTH, _PANEL_HEIGHT = 1.3, 3.4
_BESIDE = 0.16


def overview_figure(rows: Iterable[Mapping[str, Any]], path: str | Path) -> None:
    """Draw the Dice of every case by variant as PNG, with means and their 95 % bootstrap intervals.

    Each site is a row of panels, each class a column. A line joins the dots of one case; its colour shows whether the
    Dice rose or fell.

    Args:
        rows: score rows, as for :func:`~grata.report.write_scores`. Variants are drawn in the order of their first row;
            cases without a Dice are left out.
        path: file to write, in a folder that exists; an existing file is replaced.

    Raises:
        GrataError: there are no scores, or the file cannot be written.
    """
    rows = list(rows)
    if not rows:
        raise GrataError(f"{path}: there are no scores to draw. Give labels, or leave the figure out.")
    summary = {(row["site"], row["class"], row["variant"]): row for row in summarise_scores(rows)}
    sites, classes, variants = (list(dict.fromkeys(row[key] for row in rows)) for key in ("site", "class", "variant"))

    size = (max(len(classes) * (len(variants) + 0.5) * _VARIANT_WIDTH, 6.0), len(sites) * _PANEL_HEIGHT + 0.7)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(sites), len(classes), squeeze=False, sharey=True, sharex=True)
    for site, line in zip(sites, panels, strict=True):
        for name, axes in zip(classes, line, strict=True):
            _draw_cases(axes, [row for row in rows if (row["site"], row["class"]) == (site, name)], variants)
            _draw_means(axes, [summary.get((site, name, variant)) for variant in variants])
            axes.set_title(f"{site}: {name}" if site else name, fontsize=11, parse_math=False)
            axes.set_xticks(range(len(variants)), variants, parse_math=False)
            axes.set_xlim(-0.6, len(variants) - 0.4)
            axes.grid(axis="y", color="#E3E3E3", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        line[0].set_ylabel("Dice")
    handles = [Line2D([], [], color=_MEAN, marker="D", markersize=5, label="mean and 95 % interval over cases")]
    if len(variants) > 1:
        handles += [Line2D([], [], color=_BETTER, label="Dice rose"), Line2D([], [], color=_WORSE, label="Dice fell")]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI, metadata={"Software": None})


def _draw_cases(axes: Axes, rows: list[Mapping[str, Any]], variants: list[str]) -> None:
    dice: dict[str, dict[int, float]] = {}
    for row in rows:
        if math.isfinite(row["dice"]):
            dice.setdefault(row["case"], {})[variants.index(row["variant"])] = row["dice"]
    for values in dice.values():
        for start in sorted(values)[:-1]:
            if start + 1 in values:
                pair = [values[start], values[start + 1]]
                colour = _SAME if pair[0] == pair[1] else _BETTER if pair[0] < pair[1] else _WORSE
                axes.plot([start, start + 1], pair, color=colour, alpha=0.4, linewidth=0.9)
        axes.plot(list(values), list(values.values()), "o", color=_SAME, markersize=3, alpha=0.7)


def _draw_means(axes: Axes, summaries: list[Mapping[str, Any] | None]) -> None:
    for position, row in enumerate(summaries):
        if row is None or not math.isfinite(row["dice"]):
            continue
        # The first variant's mean is drawn left of its dots, because lines leave them to the right.
        side = 1 if position else -1
        place = position + side * _BESIDE
        axes.plot(place, row["dice"], "D", color=_MEAN, markersize=5)
        if math.isfinite(row["dice_low"]):
            axes.plot([place, place], [row["dice_low"], row["dice_high"]], color=_MEAN, linewidth=1.6)
        axes.annotate(
            f"{row['dice']:.3f}",
            (place, row["dice"]),
            xytext=(side * 6, 0),
            textcoords="offset points",
            fontsize=8,
            ha="left" if position else "right",
            va="center",
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )
