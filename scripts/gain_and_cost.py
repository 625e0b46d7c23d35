"""Draw what each method gains over the source network against what it costs, from the published cases of the suite.

    python scripts/gain_and_cost.py docs/results/cases --output docs/results/gain-and-cost.png

Gain is the mean difference of Dice over the target sites, which weigh equally, and cost the time of an image in plain
forwards, each as the page of the suite has it. Only methods that ran on all images of a site are shown.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tabulate import tabulate

from grata.benchmark.comparison import cost, gain
from grata.benchmark.statistics import mean_and_interval

SOURCE, OWN = "source", "consensus"


def rows(tables: dict[str, pd.DataFrame], source: str) -> Iterator[dict]:
    """Yield gain and cost of each method on all target sites of one kind of source network."""
    chosen = {
        name: t[(t.protocol == "per-target") & (t.source == source) & (t.home == 0)] for name, t in tables.items()
    }
    chosen = {name: table for name, table in chosen.items() if len(table)}
    methods = dict.fromkeys(method for table in chosen.values() for method in table.method)
    for method in methods:
        differences, groups, costs, sites = [], [], [], 0
        for table in chosen.values():
            for _, site in table.groupby("target", sort=False):
                base, mine = site[site.method == SOURCE], site[site.method == method]
                if len(mine) < len(base):
                    continue
                sites += 1
                found = gain(mine, base)
                differences.append(found.differences)
                groups.append(found.groups)
                costs.append(cost(mine, base))
        if sites:
            mean, low, high = mean_and_interval(differences, groups=groups)
            yield {"method": method, "sites": sites, "gain": mean, "low": low, "high": high,
                   "cost": float(pd.Series(costs).median())}  # fmt: skip


def draw(found: list[dict], output: Path) -> None:
    """Draw the figure."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.axhline(0, color="0.7", linewidth=1)
    for row in found:
        own = row["method"].startswith(OWN)
        colour = "tab:blue" if own else "tab:green" if row["method"].endswith("_views") else "0.4"
        axes.errorbar(
            row["cost"], row["gain"], yerr=[[row["gain"] - row["low"]], [row["high"] - row["gain"]]],
            fmt="o", markersize=5, color=colour, elinewidth=0.6, alpha=0.9,
        )  # fmt: skip
        place = {"xytext": (5, 3), "textcoords": "offset points", "fontsize": 7, "color": colour}
        axes.annotate(row["method"], (row["cost"], row["gain"]), **place)
    axes.set(xscale="log", xlabel="time of an image, in plain forwards", ylabel="gain of Dice over the source network")
    figure.savefig(output, dpi=150)


def in_words(row: dict) -> str:
    """Return a gain with its interval."""
    return f"{row['gain']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"


def main() -> None:
    """Parse the command line, print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path, help="folder of the published cases, a file for each task")
    parser.add_argument("--source", default="plain", help="kind of source network")
    parser.add_argument("--output", type=Path, help="figure to write")
    arguments = parser.parse_args()
    tables = {path.name.partition(".")[0]: pd.read_csv(path) for path in sorted(arguments.cases.glob("*.csv.gz"))}
    found = sorted(rows(tables, arguments.source), key=lambda row: -row["gain"])
    shown = [[r["method"], r["sites"], in_words(r), f"{r['cost']:.1f}"] for r in found]
    print(tabulate(shown, ["method", "sites", "gain over the source network", "cost"], "github", disable_numparse=True))
    if arguments.output:
        draw(found, arguments.output)


if __name__ == "__main__":
    main()
