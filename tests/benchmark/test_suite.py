"""Several tasks in one file: what each gets, the page, the tables of cases, and a run that is stopped."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.stats import wilcoxon

from grata import GrataError
from grata.benchmark import run, run_benchmark, stream
from grata.benchmark.cases import case_table, write_cases
from grata.benchmark.comparison import cost, gain
from grata.benchmark.config import make_config
from grata.benchmark.suite import load_suite
from grata.bundles.groups import every_group, make_groups


def make_suite(ground, folder):
    """Return a file of two tasks, of which one has a site of its own."""
    north, south = ({"dataset_dir": str(ground / name / "images")} for name in ("north", "south"))
    return {
        "output_dir": str(folder),
        "workers": 0,
        "threads": 1,
        "methods": {
            "source": {},
            "ptbn": {},
            "grata": {"lr": 0.02},
            "judged": {"method": "ptbn", "guard": True},
            "slow": {"method": "tent", "stride": 2},
        },
        "protocol": ["per-target", {"name": "mixed", "rows": ["source", "grata"], "sources": ["plain"]}],
        "tasks": {
            "discs": {
                "bundle": str(ground / "bundle"),
                "sources": {"plain": {}, "strong": {"network_def#norm": "batch", "stride": 2}},
                "home": "north",
                "targets": {"north": north, "south": south},
            },
            "cups": {
                "bundle": str(ground / "bundle"),
                "sources": {"plain": {}},
                "targets": {"south": {**south, "scored": ["Cup"]}},
                "methods": {"slow": False, "grata": {"lr": 0.1}},
            },
        },
    }


@pytest.fixture
def suite(_ground, tmp_path):
    return make_suite(_ground, tmp_path / "results")


@pytest.fixture(scope="module")
def finished(_ground, tmp_path_factory):
    """Run the suite once."""
    folder = tmp_path_factory.mktemp("suite")
    file = folder / "suite.yaml"
    file.write_text(yaml.safe_dump(make_suite(_ground, folder / "results"), sort_keys=False))
    assert run_benchmark(file) == 0
    return folder / "results"


def test_a_task_has_what_stands_beside_the_tasks_unless_it_has_its_own(suite):
    loaded = load_suite(suite)
    discs, cups = loaded.tasks.values()
    assert [row.name for row in discs.methods] == ["source", "ptbn", "grata", "judged", "slow"]
    assert [row.name for row in cups.methods] == ["source", "ptbn", "grata", "judged"]
    assert [row.settings for row in cups.methods if row.name == "grata"] == [{"lr": 0.1}]
    assert discs.output_dir.name == "discs" and discs.output_dir.parent == loaded.output_dir


def test_folders_of_the_targets_lie_in_that_of_the_data(suite):
    suite["tasks"]["discs"]["targets"] = {"north": {"dataset_dir": "discs/north"}, "south": {"dataset_dir": "/other"}}
    suite["data"] = "somewhere"
    targets = load_suite(suite).tasks["discs"].targets
    assert targets["north"]["dataset_dir"].endswith("somewhere/discs/north")
    assert targets["south"]["dataset_dir"] == "/other"
    assert load_suite(suite, {"data": "/mnt"}).tasks["discs"].targets["north"]["dataset_dir"] == "/mnt/discs/north"


def test_overrides_for_all_tasks_and_for_one(suite):
    loaded = load_suite(suite, {"limit": 2, "tasks#discs#limit": 1, "methods#grata#lr": 0.5, "workers": 1})
    assert [task.limit for task in loaded.tasks.values()] == [1, 2]
    assert {row.settings["lr"] for task in loaded.tasks.values() for row in task.methods if row.name == "grata"} == {
        0.5
    }


def test_a_task_can_be_left_out(suite):
    loaded = load_suite(suite, {"tasks#discs": False, "limit": 2})
    assert [(name, task.limit) for name, task in loaded.tasks.items()] == [("cups", 2)]


@pytest.mark.parametrize(
    ("changes", "overrides", "message"),
    [
        ({"tasks": {}}, {}, "tasks: must hold names of tasks"),
        ({"tasks": {"a": 3}}, {}, "tasks#a: must hold keys of a benchmark, got 3."),
        ({"bundle": "b"}, {}, "bundle: differs from task to task."),
        ({}, {"targets#north#stride": 2}, "targets#north#stride: differs from task to task."),
        ({}, {"tasks#disks#limit": 2}, "tasks: there is no task 'disks'. Did you mean discs?"),
        ({}, {"tasks#discs#targets#soth#stride": 2}, "--tasks#discs#targets#soth#stride: soth is not among"),
        ({}, {"tasks#discs": {}}, "--tasks#discs: names a whole task."),
        ({}, {"tasks#discs": False, "tasks#cups": False}, "tasks: all of them are left out."),
        ({"output_dir": None}, {}, "output_dir: is missing from the configuration."),
        ({"data": 3}, {}, "data: must name a folder, got 3."),
        ({"limits": 3}, {}, "tasks#discs#limits: there is no such key. Did you mean limit?"),
    ],
)
def test_refused(suite, changes, overrides, message):
    with pytest.raises(GrataError) as caught:
        load_suite({**suite, **changes}, overrides)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"home": "west"}, "home: 'west' is not among the targets"),
        (
            {"methods": {"ptbnn": False}},
            "methods#ptbnn: there is no 'ptbnn' beside the tasks to leave out. Did you mean ptbn?",
        ),
        ({"output_dir": "x"}, "output_dir: is the suite's"),
        (
            {"protocol": {"name": "mixed", "rows": ["gratta"]}},
            "protocol#rows: there is no 'gratta'. Did you mean grata?",
        ),
        ({"protocol": {"name": "mixed", "sources": ["weak"]}}, "protocol#sources: there is no 'weak'."),
    ],
)
def test_refused_in_a_task(suite, change, message):
    suite["tasks"]["discs"] |= change
    with pytest.raises(GrataError) as caught:
        load_suite(suite)
    assert str(caught.value).startswith(f"tasks#discs#{message}")


def test_a_missing_folder_of_the_data_is_named_once(suite, write, tmp_path):
    suite["data"] = str(tmp_path / "nowhere")
    for task in suite["tasks"].values():
        for name, target in task["targets"].items():
            task["targets"][name] = {**target, "dataset_dir": name}
    with pytest.raises(GrataError, match="^data: '.*nowhere' is no folder"):
        run_benchmark(write(suite))
    assert not Path(suite["output_dir"]).exists()


def test_what_a_suite_writes(finished):
    page = (finished / "suite.md").read_text()
    assert (
        "## discs, stream `mixed`, source network `plain`" in page
        and "stream `mixed`, source network `strong`" not in page
    )
    assert "| north (home)" in page and "## What the guard says" in page
    # the tables of a task have no rows with a guard
    assert "| `judged`" not in page[page.index("## discs") : page.index("## What the guard says")]
    assert re.search(r"\| `slow` +\| 2 ", page)
    assert "Images: north (home) 4, south 3.\n" in page and "Images: north (home) 2, south 2.\n" in page
    assert str(finished) not in page
    assert (finished / "suite-gain.png").stat().st_size > 5000
    cases = pd.read_csv(finished / "cases" / "discs.csv.gz")
    per_target = cases[(cases["protocol"] == "per-target") & (cases["source"] == "plain")]
    assert per_target.groupby("method").size().to_dict() == {"source": 7, "ptbn": 7, "grata": 7, "judged": 7, "slow": 4}
    assert set(per_target[per_target["method"] == "judged"]["verdict"]) <= {"ok", "review", "reject"}
    assert set(cases[cases["home"] == 1]["target"]) == {"north"}
    assert set(pd.read_csv(finished / "cases" / "cups.csv.gz").filter(like="dice/")) == {"dice/Cup", "dice/mean"}


def test_the_lines_on_the_page_compute_its_table(finished, monkeypatch):
    page = (finished / "suite.md").read_text()
    (lines,) = re.findall(r"```python\n(.*?)```", page, re.S)
    monkeypatch.chdir(finished)
    found: dict[str, pd.DataFrame] = {}
    exec(lines, found)
    assert len(lines.split("\n")) <= 11
    shown = page[page.index("### discs: source network `plain`") :]
    for method, row in found["dice"].groupby("target").mean().T.drop("judged").iterrows():
        line = re.search(rf"^\| `{method}` .*$", shown, re.M)[0]
        assert [float(cell.split()[0]) for cell in line.split("|")[3:5]] == pytest.approx(list(row), abs=6e-4)
    grata = re.search(r"^\| `grata` .*$", shown[shown.index("to source") :], re.M)[0]
    gain = found["gain"]["grata"].xs("south").mean()
    assert re.search(r" ([+-]0\.\d{3}) \[", grata)[1] == f"{gain:+.3f}"


def test_the_page_says_what_another_training_gives_and_what_adaptation_adds_to_it(finished):
    page = (finished / "suite.md").read_text()
    table = page[page.index("## Adapt, or train otherwise?") :].split("\n\n")[2].splitlines()
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
    # of a task with one source network there is nothing to say
    assert [row[:2] for row in rows] == [["discs", "north (home)"], ["discs", "south"]]
    south = dict(zip(head, rows[1], strict=True))
    cases = pd.read_csv(finished / "cases" / "discs.csv.gz")
    here = cases[(cases["protocol"] == "per-target") & (cases["target"] == "south")]
    both = set(here[here["source"] == "strong"]["case"])
    mean = here[here["case"].isin(both)].groupby(["source", "method"])["dice/mean"].mean()
    assert (south["images"], len(both), here["case"].nunique()) == ("2", 2, 3)
    expected = {
        "`plain`": mean["plain", "source"],
        "`plain` + `grata`": mean["plain", "grata"] - mean["plain", "source"],
        "`strong` + `ptbn`": mean["strong", "ptbn"] - mean["strong", "source"],
        "`strong` to `plain`": mean["strong", "source"] - mean["plain", "source"],
    }
    for column, value in expected.items():
        assert float(south[column].split()[0]) == pytest.approx(value, abs=6e-4)


def test_the_overview_counts_no_targets_of_a_few_images(finished):
    page = (finished / "suite.md").read_text()
    table = page[page.index("## Gain over the source network `plain`") :].split("\n\n")[1].splitlines()
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
    shown = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert set(shown) == {"`ptbn`", "`grata`", "`judged`", "`slow`"}
    assert shown["`grata`"]["images"] == "6"
    assert (shown["`grata`"]["better on"], shown["`grata`"]["worse on"]) == ("0 of 0", "0 of 0")


def test_cost_is_that_of_most_images():
    """Also where one of them took long because the machine stood still."""
    seconds = {"seconds": [3.0, 700.0, 12.0]}
    table = pd.DataFrame({"target": "a", "case": list("uvw"), "group": list("uvw"), **seconds})
    assert cost(table, table.assign(seconds=[1.0, 2.0, 4.0])) == 3


def test_stopped_and_started_again_it_gives_the_same_cases(suite, write, tmp_path, finished, monkeypatch):
    # two of the methods, one of which goes on from where it stood
    suite["methods"] = {name: suite["methods"][name] for name in ("source", "grata")}
    del suite["tasks"]["cups"]["methods"]["slow"]
    whole = {path.name: _without_seconds(path, suite["methods"]) for path in (finished / "cases").iterdir()}
    step, done = stream._Runner.step, []

    def dying(self, part, position):
        done.append(position)
        if len(done) == 9:
            raise KeyboardInterrupt
        return step(self, part, position)

    suite["output_dir"] = str(tmp_path / "again")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(stream._Runner, "step", dying)
        run_benchmark(write(suite))
    assert run_benchmark(write(suite)) == 0
    again = (tmp_path / "again" / "cases").iterdir()
    assert {path.name: _without_seconds(path, suite["methods"]) for path in again} == whole


def _without_seconds(path, methods):
    rows = pd.read_csv(path).drop(columns="seconds")
    # without the columns of a guard, which neither of them has
    return rows[rows["method"].isin(methods)].dropna(axis=1, how="all").to_csv(index=False)


def test_a_task_that_is_refused_does_not_stop_the_others(suite, write, tmp_path, capsys, monkeypatch):
    suite["tasks"]["cups"], suite["tasks"]["discs"] = suite["tasks"].pop("cups"), suite["tasks"].pop("discs")
    suite["tasks"]["discs"]["targets"]["south"] = {"dataset_dir": str(tmp_path / "absent")}
    run_task, known = run._run_task, []
    # what is wrong with the last task is said before the first one is run
    monkeypatch.setattr(run, "_run_task", lambda *task: known.append(capsys.readouterr().err) or run_task(*task))
    assert run_benchmark(write(suite), limit=2) == 1
    assert "discs: tasks#discs#targets#south: dataset_dir: " in known[0]
    assert [path.name for path in (tmp_path / "results" / "cases").iterdir()] == ["cups.csv.gz"]
    page = (tmp_path / "results" / "suite.md").read_text()
    assert "grata benchmark benchmark.yaml --limit 2\n" in page and "**Not on this page:** discs: refused.\n" in page


def test_the_page_says_which_images_are_missing_and_how_it_was_made(suite, write, tmp_path):
    of_cups, task = suite["tasks"]["cups"], suite["tasks"]["discs"]
    of_cups |= {"methods": {"ptbn": False, "grata": False, "judged": False, "slow": False}}
    of_cups["targets"]["south"]["trap"] = "$lambda image: 1 / 0"
    task |= {"methods": of_cups["methods"], "sources": {"plain": {}}}
    task["targets"]["south"] = dict(task["targets"]["north"])
    options = {"tasks#discs#limit": 1, "protocol": ["per-target"], "reference_method": "source"}
    assert run_benchmark(write(suite), **options) == 1
    page = (tmp_path / "results" / "suite.md").read_text()
    assert re.search(r"\*\*Not on this page:\*\* cups: \d images\.", page)
    assert """--protocol '["per-target"]' --reference_method source""" in page
    assert run_benchmark(write(suite), **options, **{"tasks#cups": False}) == 0
    assert "**Not on this page:** cups: left out." in (tmp_path / "results" / "suite.md").read_text()


def test_the_same_table_gives_the_same_bytes(finished, tmp_path):
    published = finished / "cases" / "cups.csv.gz"
    write_cases(pd.read_csv(published), tmp_path / "again.csv.gz")
    assert (tmp_path / "again.csv.gz").read_bytes() == published.read_bytes()


def test_groups_by_pattern_and_by_file(tmp_path):
    by_patient = make_groups(r"(.*)_E[DS]$")
    assert [by_patient(case) for case in ("A1_ED", "A1_ES", "other")] == ["A1", "A1", "other"]
    (tmp_path / "groups.csv").write_text("case,group\n1,first\n2,first\n")
    by_sequence = make_groups(str(tmp_path / "groups.csv"))
    assert [by_sequence(case) for case in ("1", "2", "3")] == ["first", "first", "3"]
    for wrong, message in (
        (3, "must be a regular"),
        ("(", "is not a regular"),
        (str(tmp_path / "no.csv"), "cannot be read"),
    ):
        with pytest.raises(GrataError, match=message):
            make_groups(wrong)


def test_every_group_from_the_first_on():
    cases = [{"case": f"{patient}_{phase}"} for patient in "ABCDE" for phase in ("ED", "ES")]
    assert every_group(cases, 3) == [cases[0], cases[3], cases[6], cases[9]]
    assert every_group(cases, 2, make_groups("(.)_")) == [*cases[:2], *cases[4:6], *cases[8:]]


def test_gains_by_patient_against_an_independent_computation(settings):
    generator = np.random.default_rng(3)
    cases = [f"P{patient}_{phase}" for patient in range(12) for phase in ("ED", "ES")]
    scores = {"source": generator.uniform(0.5, 0.9, 24)}
    scores["grata"] = scores["source"] + np.repeat(generator.normal(0.02, 0.06, 12), 2) + generator.normal(0, 0.01, 24)
    rows = [
        {"protocol": "per-target", "source": "s", "target": "south", "method": method, "seed": 0, "round": 0}
        | {"position": n, "case": case, "error": "", "dice/mean": values[n]}
        for method, values in scores.items()
        for n, case in enumerate(cases)
    ]
    settings["targets"]["south"]["groups"] = r"(.*)_E[DS]$"
    table = case_table(make_config(settings), rows)
    found = gain(table[table["method"] == "grata"], table[table["method"] == "source"])
    differences = np.round(scores["grata"], 4) - np.round(scores["source"], 4)
    by_patient = differences.reshape(12, 2).mean(1)
    assert found.difference.mean == pytest.approx(differences.mean())
    assert found.p == pytest.approx(wilcoxon(by_patient).pvalue)
    assert found.harmed == (differences < -0.05).mean() and found.worst == differences.min()
    # An interval over patients, by draws of our own.
    draws = by_patient[generator.integers(12, size=(20000, 12))].mean(1)
    assert found.difference[1:] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=2e-3)
    single = gain(table[table["method"] == "grata"].assign(group=cases), table[table["method"] == "source"])
    assert single.difference.high - single.difference.low < found.difference.high - found.difference.low


def test_images_weigh_equally_in_streams_and_sites_elsewhere():
    gains = [("south", [0.4, 0.2, 0.0, 0.2, 0.2, 0.2]), ("north", [-0.2, 0.0])]
    lines = [
        {"method": method, "target": target, "case": f"c{n}", "group": f"c{n}", "dice/mean": 0.5 + added}
        for target, values in gains
        for n, value in enumerate(values)
        for method, added in (("source", 0.0), ("tent", value))
    ]
    table = pd.DataFrame(lines)
    tent, source = (table[table["method"] == method] for method in ("tent", "source"))
    assert gain(tent, source).difference.mean == pytest.approx((0.2 - 0.1) / 2)
    assert gain(tent, source, weigh_images=True).difference.mean == pytest.approx((1.2 - 0.2) / 8)
