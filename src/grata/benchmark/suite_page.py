"""The page of a suite: every method on every target, for people and as a figure."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from tabulate import tabulate

from .._version import __version__
from ..files import atomic_write
from .cells import NONE, estimate, number, p_value
from .comparison import HARM, Estimate, Gain, by_image, cost, dice, gain
from .config import BenchmarkConfig, MethodRow
from .protocols import Protocol
from .statistics import holm

__all__ = ["write_page"]

_BASES = ("source", "ptbn")
"""Methods that all others are compared with: the network as it is, and the statistics of the batch alone."""

_ADAPTED = ("ptbn", "grata")
"""Methods that stand beside another training of the source network."""

_DPI = 150
_LEAST = 10
"""Images of a target from which on its interval says whether a method is better or worse there."""

_SCALE = 0.1
"""Gain or loss of Dice at which the colours of the figure end."""


@dataclass(frozen=True)
class Task:
    """What the page says of a task.

    Attributes:
        name: name of the task.
        config: its configuration.
        table: its lines, see :func:`grata.benchmark.cases.case_table`.
    """

    name: str
    config: BenchmarkConfig
    table: pd.DataFrame

    def rows(self, guarded: bool) -> list[MethodRow]:
        """Return the rows of the tables with or without a guard of their own."""
        return [row for row in self.config.methods if (row.guard not in (None, False)) == guarded]

    def chosen(self, protocol: str, source: str, method: str = "", home: bool | None = False) -> pd.DataFrame:
        """Return the lines of a protocol, a source and a method; of the targets, of home or, for None, of both."""
        table = self.table
        kept = (table["protocol"] == protocol) & (table["source"] == source)
        if method:
            kept &= table["method"] == method
        if home is not None:
            kept &= table["home"].astype(bool) == home
        return table[kept]

    @property
    def compared(self) -> list[MethodRow]:
        """Rows that are compared with the source network."""
        return [row for row in self.rows(guarded=False) if row.method != "source"]

    @property
    def first(self) -> str:
        """Label of the protocol of the main tables."""
        return self.config.protocols[0].label

    def base(self, name: str) -> str:
        """Return the row of a method that others are compared with; empty where there is none."""
        return next((row.name for row in self.rows(guarded=False) if row.method == name), "")


def write_page(
    tasks: Sequence[Task], folder: Path, command: str, made: Mapping[str, Any], lacking: Mapping[str, str]
) -> None:
    """Write ``suite.md`` and ``suite-gain.png``, each whole or not at all.

    Args:
        tasks: tasks in order.
        folder: folder of the suite.
        command: command line that gives this page.
        made: what else stands at the top of it, by name.
        lacking: what the page does not show, and why, by task.
    """
    lines = [*_header(tasks, command, made), *_lacking(lacking), *_overview(tasks), *_trainings(tasks)]
    for task in tasks:
        lines += _of_task(task)
    lines += _streams(tasks)
    lines += _verdicts(tasks)
    lines += _by_hand(tasks[0])
    with atomic_write(folder / "suite.md") as temporary:
        temporary.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    figure = _figure(tasks)
    if figure is not None:
        with atomic_write(folder / "suite-gain.png") as temporary:
            figure.savefig(temporary, format="png", dpi=_DPI, metadata={"Software": None})


def _header(tasks: Sequence[Task], command: str, made: Mapping[str, Any]) -> Iterator[str]:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "monai", "numpy", "scipy"))
    computing = sum(float(task.table["seconds"].sum()) for task in tasks if "seconds" in task.table) / 60
    yield from ("# Every method on every target", "", "<!-- not run: needs data sets and hours -->")
    yield from ("```bash", command, "```", "")
    facts = {"grata": __version__, **made, "minutes of adaptation and prediction": f"{computing:.0f}"}
    yield f"{datetime.date.today().isoformat()}; {packages}; " + "; ".join(f"{k} {v}" for k, v in facts.items()) + "."
    yield ""
    yield (
        "Dice is the mean over the structures of a task. Sites weigh equally; in streams images do. Intervals are "
        "95 % bootstrap intervals (10 000 resamples) over images, or over patients and sequences as wholes where "
        "images are known to belong together; of a task with several targets the targets are resampled, too, as "
        "the intervals then say what to expect at a further one. Differences are paired by image; p: two-sided "
        "Wilcoxon signed-rank test, each patient or sequence counted once, by Holm's procedure for the methods "
        "of a table. *harmed*: share of the images, of all tasks together, whose Dice is lower than the source "
        f"network's by more than {HARM}. *worst*: the largest loss of an image. *cost*: seconds relative to a "
        "plain forward of the source network on the same image, the median over images. *every*: the method was "
        "run on every so-many-th image, and is compared on these. HD95 is in pixels for pictures and in mm for "
        "volumes (in pixels where their header has lost the size of these), over the images where it is finite. "
        f"*better on*, *worse on*: number of targets, of those with {_LEAST} images or more, on which the "
        "interval of the gain over the source network lies above or below zero; the intervals are not corrected "
        "for their number. A method that the network of a task cannot take has no figures there. Compare *mean* "
        "between methods of as many tasks and images alone."
    )
    yield ""


def _lacking(lacking: Mapping[str, str]) -> Iterator[str]:
    if lacking:
        yield from (f"**Not on this page:** {'; '.join(f'{name}: {why}' for name, why in lacking.items())}.", "")


def _overview(tasks: Sequence[Task]) -> Iterator[str]:
    """Yield the mean gain of each method on the targets of each task."""
    for source in _sources(tasks):
        lines = _overview_lines(_with_source(tasks, source), source)
        if lines:
            yield from (f"## Gain over the source network `{source}`", "", _table(lines), "")


def _overview_lines(tasks: Sequence[Task], source: str) -> list[dict[str, str]]:
    """Return the lines of all methods, also of those with a guard, the largest mean gain first."""
    rows = (row.name for task in tasks for row in (*task.compared, *task.rows(guarded=True)))
    gains = {name: {task.name: _gain(task, source, name, "source") for task in tasks} for name in dict.fromkeys(rows)}
    means = {name: _mean_gain(by_task.values()) for name, by_task in gains.items()}
    order = sorted((name for name, mean in means.items() if math.isfinite(mean)), key=lambda name: -means[name])
    return [_overview_line(name, gains[name]) | _beyond_chance(tasks, source, name) for name in order]


def _beyond_chance(tasks: Sequence[Task], source: str, name: str) -> dict[str, str]:
    """Return on how many targets the interval of a method's gain lies above zero, and on how many below."""
    gains = [
        gain(_on(task, source, name, target), _on(task, source, task.base("source"), target))
        for task in tasks
        for target in task.config.targets_of(source)
        if target != task.config.home
    ]
    found = [one.difference for one in gains if one.images >= _LEAST]
    return {
        "better on": f"{sum(one.low > 0 for one in found)} of {len(found)}",
        "worse on": f"{sum(one.high < 0 for one in found)} of {len(found)}",
    }


def _trainings(tasks: Sequence[Task]) -> Iterator[str]:
    """Yield what another training of the source network gives by itself, and what adaptation adds to each."""
    lines = [line for task in tasks for line in _trainings_of_task(task)]
    if lines:
        yield from ("## Adapt, or train otherwise?", "")
        yield (
            "Each source network as it is, what methods add to it (+), and how the source networks differ from the "
            "first one, all without adaptation, on the images that all of them were run on."
        )
        columns = dict.fromkeys(key for line in lines for key in line)
        yield from ("", _table([dict.fromkeys(columns, NONE) | line for line in lines]), "")


def _trainings_of_task(task: Task) -> Iterator[dict[str, str]]:
    """Yield a line for each target of a task with several source networks."""
    base = task.base("source")
    trained = [source for source in task.config.sources if base and len(task.chosen(task.first, source, base, None))]
    for target in task.config.targets_of(trained[0]) if len(trained) > 1 else ():
        plain = _on_common_images({source: _on(task, source, base, target) for source in trained})
        first = plain[trained[0]]
        line = {"task": task.name, "target": _named(task, target), "images": str(len(by_image(first)))}
        for source in trained:
            line |= _with_methods(task, source, target, plain[source])
        for source in trained[1:]:
            line[f"`{source}` to `{trained[0]}`"] = _shown(gain(plain[source], first).difference, "+.3f")
        yield line


def _on_common_images(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    common = set.intersection(*(set(table["case"]) for table in tables.values()))
    return {name: table[table["case"].isin(common)] for name, table in tables.items()}


def _with_methods(task: Task, source: str, target: str, plain: pd.DataFrame) -> dict[str, str]:
    """Return the Dice of a source network, and what methods add to it on the same images."""
    cells = {f"`{source}`": _shown(dice(plain))}
    for row in filter(None, map(task.base, _ADAPTED)):
        added = gain(_on(task, source, row, target), plain).difference
        cells[f"`{source}` + `{row}`"] = _shown(added, "+.3f")
    return cells


def _on(task: Task, source: str, row: str, target: str) -> pd.DataFrame:
    chosen = task.chosen(task.first, source, row, home=None)
    return chosen[chosen["target"] == target]


def _sources(tasks: Sequence[Task]) -> list[str]:
    return list(dict.fromkeys(source for task in tasks for source in task.config.sources))


def _with_source(tasks: Sequence[Task], source: str) -> list[Task]:
    return [task for task in tasks if source in task.config.sources and task.base("source")]


def _mean_gain(gains: Iterable[Gain]) -> float:
    means = [one.difference.mean for one in gains if one.images]
    return float(np.mean(means)) if means else math.nan


def _overview_line(name: str, gains: Mapping[str, Gain]) -> dict[str, str]:
    found = [one for one in gains.values() if one.images]
    images = sum(one.images for one in found)
    return {
        "method": f"`{name}`",
        "images": str(images),
        **{task: _shown(one.difference, "+.3f") for task, one in gains.items()},
        "mean": f"{_mean_gain(found):+.3f}",
        "harmed": f"{sum(one.harmed * one.images for one in found) / images:.1%}",
        "worst": f"{min(one.worst for one in found):+.2f}",
    }


def _gain(task: Task, source: str, method: str, base: str) -> Gain:
    mine = task.chosen(task.first, source, method)
    return gain(mine, task.chosen(task.first, source, task.base(base)), resample_sites=True)


def _of_task(task: Task) -> Iterator[str]:
    yield from (f"## {task.name}", "")
    for source in task.config.sources:
        if task.chosen(task.first, source, home=None).empty:
            continue
        yield from (f"### {task.name}: source network `{source}`", "", _sizes(task, source), "")
        yield from (_by_target(task, source), "")
        yield from (_compared(task, source), "")
        structures = [c for c in task.table if c.startswith("dice/") and c != "dice/mean"]
        if len(structures) > 1:
            yield from (_by_structure(task, source, structures), "")


def _sizes(task: Task, source: str) -> str:
    """Return how many images of each target are used, and of how many groups where some belong together."""
    sizes, lines = [], task.chosen(task.first, source, home=None)
    for target in task.config.targets_of(source):
        groups = lines[lines["target"] == target].groupby("case")["group"].first()
        of_groups = f" of {groups.nunique()} groups" if groups.nunique() < len(groups) else ""
        sizes.append(f"{_named(task, target)} {len(groups)}{of_groups}")
    return f"Images: {', '.join(sizes)}."


def _by_target(task: Task, source: str) -> str:
    found = ((row, task.chosen(task.first, source, row.name, home=None)) for row in task.rows(guarded=False))
    return _table([_targets_line(task, source, row, mine) for row, mine in found if len(mine)])


def _targets_line(task: Task, source: str, row: MethodRow, mine: pd.DataFrame) -> dict[str, Any]:
    """Return the Dice of a row by target."""
    line: dict[str, Any] = {"method": f"`{row.name}`", "every": row.stride}
    for target in task.config.targets_of(source):
        of_target = mine[mine["target"] == target]
        line[_named(task, target)] = _shown(dice(of_target)) if len(of_target) else NONE
    return line


def _named(task: Task, target: str) -> str:
    return f"{target} (home)" if target == task.config.home else target


def _compared(task: Task, source: str) -> str:
    """Return the table of the rows against the source network and batch statistics, on all targets together."""
    rows = [row for row in task.rows(guarded=False) if len(task.chosen(task.first, source, row.name))]
    columns = [[_dice_line(task, source, row) for row in rows]]
    columns += [_against(task, source, rows, base) for base in _BASES if task.base(base)]
    return _table([{key: cell for part in parts for key, cell in part.items()} for parts in zip(*columns, strict=True)])


def _against(task: Task, source: str, rows: Sequence[MethodRow], base: str) -> list[dict[str, str]]:
    """Return for each row how it differs from the method ``base``."""
    gains = [_gain(task, source, row.name, base) for row in rows]
    itself = [row.name == task.base(base) for row in rows]
    adjusted = holm([math.nan if own else one.p for own, one in zip(itself, gains, strict=True)])
    lines = []
    for own, one, p in zip(itself, gains, adjusted, strict=True):
        line = {f"to {base}": _shown(one.difference, "+.3f"), f"p ({base})": p_value(p)}
        line |= _harm(one) if base == _BASES[0] else {}
        lines.append(dict.fromkeys(line, NONE) if own else line)
    return lines


def _dice_line(task: Task, source: str, row: MethodRow) -> dict[str, Any]:
    mine = task.chosen(task.first, source, row.name)
    return {
        "method": f"`{row.name}`",
        "images": len(by_image(mine)),
        "Dice": _shown(dice(mine, resample_sites=True)),
        "HD95": number(_distance(mine), ".1f"),
        "cost": number(cost(mine, task.chosen(task.first, source, task.base("source"))), ".1f"),
    }


def _harm(one: Gain) -> dict[str, str]:
    return {"harmed": f"{one.harmed:.1%}", "worst": f"{one.worst:+.2f}"}


def _distance(table: pd.DataFrame) -> float:
    """Return the mean over sites of the mean finite HD95."""
    if "hd95/mean" not in table:
        return math.nan
    images = by_image(table, "hd95/mean")
    images = images[np.isfinite(images["value"])]
    return float(images.groupby("target")["value"].mean().mean()) if len(images) else math.nan


def _by_structure(task: Task, source: str, structures: Sequence[str]) -> str:
    lines = []
    for row in task.rows(guarded=False):
        line = {"method": f"`{row.name}`"}
        for target in task.config.targets_of(source):
            mine = _on(task, source, row.name, target)
            for column in structures:
                if mine[column].notna().any():
                    line[f"{column[5:]}, {_named(task, target)}"] = _shown(dice(mine, column))
        if len(line) > 1:
            lines.append(line)
    return _table(lines)


def _streams(tasks: Sequence[Task]) -> Iterator[str]:
    """Yield for each longer stream the Dice by site, and the difference from the source network on the same images."""
    for task in tasks:
        for protocol in task.config.protocols[1:]:
            for source in task.config.sources:
                lines = list(_of_stream(task, protocol, source))
                if lines:
                    yield from (f"## {task.name}, stream `{protocol.label}`, source network `{source}`", "")
                    yield from (f"{protocol.summary[0].upper()}{protocol.summary[1:]}.", "", _table(lines), "")


def _of_stream(task: Task, protocol: Protocol, source: str) -> Iterator[dict[str, Any]]:
    for row in task.config.methods:
        mine = task.chosen(protocol.label, source, row.name, home=None)
        if len(mine):
            yield _targets_line(task, source, row, mine) | _to_source(task, source, mine, protocol.weighting)


def _to_source(task: Task, source: str, mine: pd.DataFrame, weighting: str = "sites") -> dict[str, str]:
    """Return how lines differ from the source network's, which gives the same on any stream."""
    if not task.base("source"):
        return {}
    plain = task.chosen(task.first, source, task.base("source"), home=None)
    one = gain(mine, plain, weigh_images=weighting == "images")
    return {"to source": _shown(one.difference, "+.3f")} | _harm(one)


def _verdicts(tasks: Sequence[Task]) -> Iterator[str]:
    """Yield what the guard said of each target, and what became of the Dice."""
    lines = []
    for task in tasks:
        for source in task.config.sources:
            for row in task.rows(guarded=True):
                for target in task.config.targets_of(source):
                    mine = _on(task, source, row.name, target)
                    if len(mine):
                        lines.append(_judged(task, source, row, target, mine))
    if lines:
        yield from ("## What the guard says", "")
        yield (
            "With the guard, whose verdicts are *ok*, *review* and *reject* and which may put the source network's "
            "prediction in place of the method's (*source used*). *expected*: mean of the Dice that it expects without "
            "labels, beside the true one."
        )
        yield from ("", _table(lines), "")


def _by_hand(task: Task) -> Iterator[str]:
    """Yield ten lines of pandas that compute a table of this page from the published cases."""
    source = next(source for source in task.config.sources if len(task.chosen(task.first, source, home=None)))
    yield from ("## Check it yourself", "")
    yield f"These lines compute the Dice of {task.name}, and the gain over the source network, from the table of cases:"
    yield from ("", "<!-- not run: a test runs it on a table of its own -->", "```python", "import pandas as pd", "")
    yield f'cases = pd.read_csv("cases/{task.name}.csv.gz")'
    yield f'first = cases[(cases["protocol"] == "{task.first}") & (cases["source"] == "{source}")]'
    yield 'dice = first.pivot_table(index=["target", "case"], columns="method", values="dice/mean")'
    yield 'print(dice.groupby("target").mean().T.round(3))'
    base = task.base("source") or task.config.reference_method
    yield f'gain = dice.sub(dice["{base}"], axis=0)'
    yield 'print(gain.groupby("target").mean().T.round(3))'
    yield f'print((gain < -{HARM}).groupby("target").mean().T.round(3))'
    yield from ("```", "")


def _judged(task: Task, source: str, row: MethodRow, target: str, mine: pd.DataFrame) -> dict[str, Any]:
    counts = mine["verdict"].value_counts() if "verdict" in mine else {}
    line: dict[str, Any] = {
        "task": task.name,
        "source": f"`{source}`",
        "method": f"`{row.method}`",
        "target": _named(task, target),
        "images": len(by_image(mine)),
        **{name: int(counts.get(name, 0)) for name in ("ok", "review", "reject")},
        "source used": int((mine["used"] == "source").sum()) if "used" in mine else 0,
        "Dice": _shown(dice(mine)),
    }
    if "expected_dice" in mine:
        line["expected"] = number(float(mine["expected_dice"].mean()), ".3f")
    return line | _to_source(task, source, mine)


def _figure(tasks: Sequence[Task]) -> Figure | None:
    """Draw the gain over the source network: a panel for each kind of it, methods down and targets across."""
    panels = {source: _panel(tasks, source) for source in _sources(tasks)}
    panels = {source: frame for source, frame in panels.items() if frame.size}
    if not panels:
        return None
    rows, across = max(map(len, panels.values())), sum(len(frame.columns) for frame in panels.values())
    figure = Figure(figsize=(2.5 * len(panels) + 0.75 * across, 2 + 0.3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(1, len(panels), squeeze=False, width_ratios=[len(f.columns) for f in panels.values()])[0]
    for (source, frame), axes in zip(panels.items(), grid, strict=True):
        shown = _draw(axes, source, frame)
    figure.colorbar(shown, ax=list(grid), label="gain in Dice", shrink=0.6, extend="both")
    return figure


def _draw(axes: Axes, source: str, frame: pd.DataFrame) -> AxesImage:
    shown = axes.imshow(frame, cmap="RdBu", norm=TwoSlopeNorm(0, -_SCALE, _SCALE), aspect="auto", origin="lower")
    for (row, column), value in np.ndenumerate(frame.to_numpy(float)):
        if math.isfinite(value):
            colour = "white" if abs(value) > 0.6 * _SCALE else "black"
            axes.text(column, row, f"{value:+.3f}", ha="center", va="center", fontsize=6.5, color=colour)
    axes.set_xticks(range(len(frame.columns)), list(frame.columns), rotation=90, fontsize=7, parse_math=False)
    axes.set_yticks(range(len(frame)), list(frame.index), fontsize=8, parse_math=False)
    axes.set_title(f"over the source network: {source}", fontsize=10, parse_math=False)
    return shown


def _panel(tasks: Sequence[Task], source: str) -> pd.DataFrame:
    """Return the gain by method (lines, the best last) and target (columns)."""
    columns = {}
    for task in _with_source(tasks, source):
        plain = task.chosen(task.first, source, task.base("source"))
        for target in plain["target"].unique():
            columns[f"{task.name}\n{target}"] = {
                row.name: gain(mine[mine["target"] == target], plain[plain["target"] == target]).difference.mean
                for row in task.compared
                if len(mine := task.chosen(task.first, source, row.name))
            }
    frame = pd.DataFrame(columns)
    return frame.loc[frame.mean(axis=1).sort_values().index]


def _shown(found: Estimate, form: str = ".3f") -> str:
    return estimate(*found, form)


def _table(lines: Sequence[Mapping[str, Any]]) -> str:
    return tabulate(lines, headers="keys", tablefmt="pipe", disable_numparse=True, missingval=NONE)
