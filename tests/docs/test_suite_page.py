"""The published page of the suite: its tables against the published cases."""

import re
from pathlib import Path

import pandas as pd
import pytest

RESULTS = Path(__file__).parents[2] / "docs" / "results"
PAGE = (RESULTS / "suite.md").read_text(encoding="utf-8")
TASKS = [path.name.removesuffix(".csv.gz") for path in sorted((RESULTS / "cases").iterdir())]


def table(heading):
    """Return the first table below a heading: lines by their first cell, each a cell by its column."""
    lines = re.search(r"^\|.*?\n\n", PAGE[PAGE.index(f"{heading}\n") :], re.M | re.S)[0].strip().splitlines()
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {row[0].strip("`"): dict(zip(head, row, strict=True)) for row in rows}


def first_number(cell):
    return float(cell.split()[0])


def test_the_lines_on_the_page_compute_its_first_table(monkeypatch):
    (lines,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(lines.splitlines()) <= 11
    monkeypatch.chdir(RESULTS)
    found: dict[str, pd.DataFrame] = {}
    exec(lines, found)
    means = found["dice"].groupby("target").mean()
    (task,) = re.findall(r'cases/(\w+)\.csv\.gz', lines)
    (source,) = re.findall(r'\["source"\] == "(\w+)"', lines)
    shown = table(f"### {task}: source network `{source}`")
    assert len(shown) > 10
    for method, cells in shown.items():
        for target, mean in means[method].items():
            cell = cells.get(target) or cells[f"{target} (home)"]
            assert first_number(cell) == pytest.approx(mean, abs=6e-4)


@pytest.mark.parametrize("task", TASKS)
def test_every_dice_by_target_is_the_mean_of_the_published_cases(task):
    cases = pd.read_csv(RESULTS / "cases" / f"{task}.csv.gz")
    cases = cases[cases["protocol"] == "per-target"]
    means = cases.groupby(["source", "method", "target"])["dice/mean"].mean()
    compared = 0
    for source in cases["source"].unique():
        for method, cells in table(f"### {task}: source network `{source}`").items():
            for target, mean in means[source, method].items():
                cell = cells.get(target) or cells[f"{target} (home)"]
                assert first_number(cell) == pytest.approx(mean, abs=6e-4), (source, method, target)
                compared += 1
    assert compared > 30
