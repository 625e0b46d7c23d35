"""The published page of the suite: its tables against the published cases."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
PAGE = (RESULTS / "suite.md").read_text(encoding="utf-8")
TASKS = [path.name.removesuffix(".csv.gz") for path in sorted((RESULTS / "cases").iterdir())]


def lines_below(heading, page=PAGE):
    """Return the first table below a heading: for each line a cell by its column."""
    lines = re.search(r"^\|.*?\n\n", page[page.index(f"{heading}\n") :], re.M | re.S)[0].strip().splitlines()
    head, _, *rows = ([cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(head, row, strict=True)) for row in rows]


def table(heading):
    """Return the first table below a heading: lines by their method."""
    return {line["method"]: line for line in lines_below(heading)}


def published(task, protocol="per-target"):
    cases = pd.read_csv(RESULTS / "cases" / f"{task}.csv.gz")
    return cases[cases["protocol"] == protocol]


def first_number(cell):
    return float(cell.split()[0])


def test_the_lines_on_the_page_compute_its_first_table(monkeypatch):
    (lines,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(lines.splitlines()) <= 11
    monkeypatch.chdir(RESULTS)
    found: dict[str, pd.DataFrame] = {}
    exec(lines, found)
    means = found["dice"].groupby("target").mean()
    (task,) = re.findall(r"cases/(\w+)\.csv\.gz", lines)
    (source,) = re.findall(r'\["source"\] == "(\w+)"', lines)
    shown = table(f"### {task}: source network `{source}`")
    assert len(shown) > 10
    for method, cells in shown.items():
        for target, mean in means[method].items():
            cell = cells.get(target) or cells[f"{target} (home)"]
            assert first_number(cell) == pytest.approx(mean, abs=6e-4)


@pytest.mark.parametrize("task", TASKS)
def test_every_dice_by_target_is_the_mean_of_the_published_cases(task):
    cases = published(task)
    means = cases.groupby(["source", "method", "target"])["dice/mean"].mean()
    compared = 0
    for source in cases["source"].unique():
        for method, cells in table(f"### {task}: source network `{source}`").items():
            for target, mean in means[source, method].items():
                cell = cells.get(target) or cells[f"{target} (home)"]
                assert first_number(cell) == pytest.approx(mean, abs=6e-4), (source, method, target)
                compared += 1
    assert compared > 30


@pytest.mark.parametrize("method", ["ptbn", "bn_alpha", "grata"])
def test_on_how_many_targets_a_method_is_better_or_worse_beyond_chance(method):
    generator = np.random.default_rng(5)
    better, worse = [], []
    for task in TASKS:
        cases = published(task)
        cases = cases[(cases["source"] == "plain") & (cases["home"] == 0)]
        dice = cases.pivot_table(index=["target", "case", "group"], columns="method", values="dice/mean")
        if method not in dice:
            continue
        for _, gain in (dice[method] - dice["source"]).dropna().groupby("target"):
            groups = gain.groupby("group").agg(["sum", "size"]).to_numpy()
            sums = groups[generator.integers(len(groups), size=(20_000, len(groups)))].sum(1)
            low, high = np.quantile(sums[:, 0] / sums[:, 1], [0.025, 0.975])
            better.append(low > 0)
            worse.append(high < 0)
    shown = table("## Gain over the source network `plain`")[method]
    assert shown["better on"] == f"{sum(better)} of {len(better)}"
    assert shown["worse on"] == f"{sum(worse)} of {len(worse)}"


@pytest.mark.parametrize("task", ["discs", "polyps", "vessels"])
def test_images_weigh_equally_in_the_streams(task):
    plain = published(task)
    plain = plain[(plain["source"] == "plain") & (plain["method"] == "source")]
    source = plain.set_index(["target", "case"])["dice/mean"]
    for protocol in ("mixed", "continual"):
        cases = published(task, protocol)
        for method, cells in table(f"## {task}, stream `{protocol}`, source network `plain`").items():
            mine = cases[cases["method"] == method].set_index(["target", "case"])["dice/mean"]
            assert first_number(cells["to source"]) == pytest.approx((mine - source).mean(), abs=6e-4)


def gains(cases, method):
    """Return the mean gain of a method over the source network by target, on the images that both have."""
    dice = cases[cases["source"] == "plain"].pivot_table(
        index=["target", "case"], columns="method", values="dice/mean", sort=False
    )
    return (dice[method] - dice["source"]).groupby("target", sort=False).mean() if method in dice else {}


@pytest.mark.parametrize(
    ("page", "heading", "columns"),
    [
        (ROOT / "README.md", "## Results", {"grata": "grata", "ptbn` with the guard": "ptbn_guarded"}),
        (
            RESULTS / "findings.md",
            "## Where it helps, and where it harms",
            {name: name for name in ("ptbn", "grata", "bn_alpha")} | {"ptbn` with the guard": "ptbn_guarded"},
        ),
    ],
)
def test_every_gain_for_people_is_the_mean_of_the_published_cases(page, heading, columns):
    lines = lines_below(heading, page.read_text(encoding="utf-8"))
    shown = [[line["source network"], *(line[column] for column in columns)] for line in lines]
    expected = []
    for cases in map(published, TASKS):
        plain = cases[(cases["source"] == "plain") & (cases["method"] == "source")]
        found = [gains(cases, method) for method in columns.values()]
        for target, dice in plain.groupby("target")["dice/mean"].mean().items():
            expected.append([dice, *(gain.get(target) for gain in found)])
    assert len(shown) >= 10
    for row in shown:
        assert any(map(all, ([fits(*pair) for pair in zip(row, values, strict=True)] for values in expected))), row


def fits(cell, value):
    if value is None or cell in ("refused", "-"):
        return value is None and cell in ("refused", "-")
    return abs(first_number(cell) - value) < 6e-4


@pytest.mark.parametrize("bundle", sorted((ROOT / "bundles").iterdir()), ids=lambda bundle: bundle.name)
def test_the_results_of_a_bundle_are_the_means_of_the_published_cases(bundle):
    task = {"fundus": "discs", "retinal": "vessels", "polyp": "polyps"}.get(bundle.name.split("_")[0])
    cases = published(task or bundle.name.split("_")[0])
    means = cases.groupby(["source", "method", "target"])["dice/mean"].mean()
    page = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    lines = lines_below("## Results on other sites", page)
    assert len(lines) == cases.groupby(["source", "target"]).ngroups
    for line in lines:
        row = [line[method] for method in ("source", "ptbn", "grata")]
        expected = [
            [means.get((line["network"], method, target)) for method in ("source", "ptbn", "grata")]
            for target in cases["target"].unique()
        ]
        assert any(all(fits(*pair) for pair in zip(row, values, strict=True)) for values in expected), line
