"""Compare all methods over several benchmarks: a table of Dice and cost, one of gains, one of streams, and a figure.

    python scripts/method_tables.py --results hippocampus=results/methods_hippocampus fundus=results/methods_fundus \
        --streams hippocampus=results/methods_hippocampus_streams fundus=results/methods_fundus_streams \
        --output docs/results/methods_tables.md --figure docs/figures/methods.png

Each folder holds the `results.csv` of `python -m grata benchmark`. The site `home` holds held-out images of the source;
all other sites are targets. Methods are sorted by their mean gain over the source network on the targets, in which each
task has the same weight.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tabulate import tabulate

from grata.benchmark.statistics import mean_and_interval, signed_rank

HOME = "home"
COLLAPSE = 0.02
"""Dice lost between the first and the last round that counts as a collapse."""


def read(named: list[str]) -> dict[str, pd.DataFrame]:
    """Return the rows by task, from arguments such as ``fundus=results/methods_fundus``."""
    frames = {}
    for argument in named:
        task, _, folder = argument.partition("=")
        frames[task] = pd.read_csv(Path(folder) / "results.csv", dtype={"case": str})
    return frames


def interval(values: np.ndarray, form: str = ".3f") -> str:
    """Return a mean with its 95 % bootstrap interval as text."""
    mean, low, high = mean_and_interval([values])
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]"


def by_case(frame: pd.DataFrame, method: str, home: bool) -> pd.Series:
    """Return the Dice of each image, averaged over segments, on the targets or at home."""
    chosen = frame[(frame["method"] == method) & ((frame["target"] == HOME) == home)]
    return chosen.groupby(["target", "case"])["dice/mean"].mean().dropna()


def gains(frames: dict[str, pd.DataFrame], against: str) -> dict[str, dict[str, np.ndarray]]:
    """Return differences in Dice to the method ``against``, paired by image of the targets, by method and task."""
    methods = list(dict.fromkeys(method for frame in frames.values() for method in frame["method"]))
    return {
        method: {
            task: (by_case(frame, method, False) - by_case(frame, against, False)).dropna().to_numpy()
            for task, frame in frames.items()
        }
        for method in methods
    }


def seconds(frame: pd.DataFrame, method: str) -> float:
    """Return the mean seconds to adapt to and predict one image, without the first image after each start."""
    chosen = frame[(frame["method"] == method) & ~frame["cold"].astype(str).eq("True")]
    return float((chosen["seconds"] + chosen["seconds_predict"]).mean())


def main_table(frames: dict[str, pd.DataFrame], order: list[str]) -> str:
    """Return the table of Dice with interval, seconds and their ratio to the source's, by task."""
    lines = []
    for method in order:
        line = {"method": f"`{method}`"}
        for task, frame in frames.items():
            values = by_case(frame, method, False).to_numpy()
            if not len(values):
                line |= {f"{task}, Dice": "-", f"{task}, s": "-"}
                continue
            cost = seconds(frame, method)
            line[f"{task}, Dice"] = interval(values)
            line[f"{task}, s (ratio)"] = f"{cost:.2f} ({cost / seconds(frame, 'source'):.1f})"
            if (home := by_case(frame, method, True)).size:
                line[f"{task} at home"] = interval(home.to_numpy())
        lines.append(line)
    return tabulate(lines, "keys", "github", disable_numparse=True)


def gain_table(frames: dict[str, pd.DataFrame], order: list[str]) -> str:
    """Return the table of paired gains over the source and over batch statistics, with the mean over tasks."""
    to_source, to_ptbn = gains(frames, "source"), gains(frames, "ptbn")
    lines = []
    for method in order:
        line = {"method": f"`{method}`", "mean gain": f"{mean_gain(to_source[method]):+.4f}"}
        for task in frames:
            line[f"{task}, to source"] = interval(to_source[method][task], "+.3f")
            line[f"{task}, to ptbn"] = interval(to_ptbn[method][task], "+.4f")
            p = signed_rank(to_ptbn[method][task])
            line[f"{task}, p"] = "< 0.001" if p < 0.001 else f"{p:.3f}"
        lines.append(line)
    return tabulate(lines, "keys", "github", disable_numparse=True)


def mean_gain(by_task: dict[str, np.ndarray]) -> float:
    """Return the mean over tasks of the mean over images."""
    return float(np.mean([values.mean() for values in by_task.values() if len(values)]))


def stream_table(frames: dict[str, pd.DataFrame], order: list[str]) -> str:
    """Return the table of the first and the last round of the recurring stream, on the targets and at home."""
    lines = []
    for method in order:
        line = {"method": f"`{method}`"}
        fell = []
        for task, frame in frames.items():
            chosen = frame[(frame["method"] == method) & (frame["protocol"] == "recurring")]
            rounds = sorted(chosen["round"].unique())
            for place, home in (("away", False), ("home", True)):
                means = [
                    chosen[(chosen["round"] == k) & ((chosen["target"] == HOME) == home)]["dice/mean"].mean()
                    for k in (rounds[0], rounds[-1])
                ]
                line[f"{task} {place}, round 1 → {rounds[-1] + 1}"] = f"{means[0]:.3f} → {means[1]:.3f}"
                if means[1] < means[0] - COLLAPSE:
                    fell.append(f"{task} {place}")
        line["collapse"] = ", ".join(fell) or "-"
        lines.append(line)
    return tabulate(lines, "keys", "github", disable_numparse=True)


def draw(frames: dict[str, pd.DataFrame], order: list[str], path: Path) -> None:
    """Draw the gain over the source, one line per method and one panel per task, with the relative time per image."""
    to_source = gains(frames, "source")
    figure = Figure(figsize=(2.0 + 4.2 * len(frames), 1.2 + 0.27 * len(order)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(frames), squeeze=False, sharey=True)[0]
    for (task, frame), axes in zip(frames.items(), panels, strict=True):
        base = seconds(frame, "source")
        for place, method in enumerate(reversed(order)):
            values = to_source[method][task]
            if not len(values):
                continue
            mean, low, high = mean_and_interval([values])
            colour = {"source": "#000000", "ptbn": "#56B4E9", "grata": "#D55E00"}.get(method, "#777777")
            axes.plot([low, high], [place, place], color=colour, linewidth=1.6)
            axes.plot(mean, place, "o", color=colour, markersize=5)
            cost = f"×{seconds(frame, method) / base:.1f}"
            axes.annotate(
                cost,
                (1.0, place),
                xytext=(4, -3),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                fontsize=7,
            )
        axes.axvline(0, color="#000000", linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(order)), list(reversed(order)), fontsize=8)
        axes.set_xlabel("gain in Dice over the source network")
        axes.set_title(f"{task}; at the right: time of an image", fontsize=10)
        axes.grid(axis="x", color="#E3E3E3", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def main() -> None:
    """Parse the command line, and write the tables and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", nargs="+", required=True, help="task=folder of a per-target benchmark")
    parser.add_argument("--streams", nargs="*", default=[], help="task=folder of a benchmark with a recurring stream")
    parser.add_argument("--output", type=Path, required=True, help="Markdown file")
    parser.add_argument("--figure", type=Path, help="PNG file")
    arguments = parser.parse_args()
    frames = read(arguments.results)
    to_source = gains(frames, "source")
    order = sorted(to_source, key=lambda method: -mean_gain(to_source[method]))
    parts = [
        "### Dice and cost\n",
        main_table(frames, order),
        "\n### Gains, paired by image\n",
        gain_table(frames, order),
    ]
    if arguments.streams:
        parts += ["\n### Five times over\n", stream_table(read(arguments.streams), order)]
    arguments.output.write_text("\n".join(parts) + "\n", encoding="utf-8")
    if arguments.figure:
        draw(frames, order, arguments.figure)


if __name__ == "__main__":
    main()
