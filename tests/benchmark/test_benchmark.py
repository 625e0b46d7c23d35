import csv
import math
import random
import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml
from monai.utils import get_seed
from PIL import Image

from grata.bank import Adaptation
from grata.benchmark import load_config, run, run_benchmark, stream
from grata.benchmark.jobs import plan
from grata.benchmark.part import Part
from grata.benchmark.stream import MEASURED
from grata.benchmark.summary import summarise
from grata.data import discover
from grata.errors import GrataError
from grata.methods import METHODS, GraTa, Source


def results(folder):
    """Return the rows of ``results.csv`` without measurements."""
    with open(folder / "results.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key not in MEASURED} for row in csv.DictReader(file)]


@pytest.fixture
def no_figures(monkeypatch):
    """Leave out the figures, which take half of the time of a small benchmark."""
    monkeypatch.setattr(run, "draw_figures", lambda *_: None)


def parts(config):
    return [(job, Part(config.output_dir / "parts", job.name, job.fingerprint)) for job in plan(config)]


def label_maps(config):
    """Return all predictions that a benchmark kept, by job and position."""
    return {(job.name, i): part.read_label_map(i) for job, part in parts(config) for i in range(len(job.items))}


def test_a_whole_benchmark(settings, write, tmp_path):
    settings["seeds"] = [0, 1]
    settings["methods"]["slow"] = {"method": "grata", "lr": 0.0}
    path = write(settings)
    assert run_benchmark(path) == 0
    folder = tmp_path / "results"
    rows = results(folder)
    # 7 images: one seed for methods without a random generator, two for the others.
    assert len(rows) == 7 * (2 * 1 + 2 * 2)
    assert [row["target"] for row in rows[:5]] == ["north"] * 5
    assert {row["error"] for row in rows} == {""}
    for row in rows:
        assert 0 <= float(row["dice/Disc"]) <= 1 and 0 <= float(row["ece/Disc"]) <= 1
        assert bool(row["cosine"]) == (row["method"] in ("grata", "slow"))
    config = load_config(path)
    with open(folder / "results.csv", newline="") as file:
        full = list(csv.DictReader(file))
    assert all(float(row["seconds_predict"]) > 0 for row in full)
    table = summarise(config, [row for job, part in parts(config) for row in part.rows()])
    by_name = table.set_index(["target", "method"])
    assert by_name.loc[("all", "grata"), "images"] == 7
    # Sites weigh equally.
    sites = [by_name.loc[(site, "ptbn"), "dice/mean"] for site in ("north", "south")]
    assert by_name.loc[("all", "ptbn"), "dice/mean"] == pytest.approx(np.mean(sites))
    # A method that changes no parameter predicts like batch statistics alone.
    assert by_name.loc[("all", "slow"), "dice/mean"] == pytest.approx(by_name.loc[("all", "ptbn"), "dice/mean"])
    assert by_name.loc[("all", "source"), "ratio"] == 1.0
    assert math.isnan(by_name.loc[("all", "grata"), "p"])
    others = by_name.loc["all"].drop("grata")
    assert (others["p_holm"] >= others["p"]).all() and others["p_holm"].max() <= 1
    summary = (folder / "summary.md").read_text()
    assert "per-target: bundle to all" in summary and "lr: 0.0" in summary
    # Tables name no folder of this machine.
    for place in (tmp_path, tmp_path.parent, settings["bundle"], settings["targets"]["north"]["dataset_dir"]):
        assert not any(str(place) in file.read_text() for file in folder.glob("summary.*"))
    assert r"\toprule" in (folder / "summary.tex").read_text()
    assert len((folder / "summary.csv").read_text().splitlines()) == 1 + 3 * 4
    figures = {path.name for path in (folder / "figures").iterdir()}
    assert {"per-target-dice-by-site.png", "per-target-steps-along-stream.png"} <= figures
    assert {"per-target-bundle-north-overlays.png", "per-target-bundle-south-overlays.png"} <= figures

    # A second run with one more method runs that method only.
    before = {path: path.stat().st_mtime_ns for path in (folder / "parts").rglob("*.jsonl")}
    settings["methods"]["faster"] = {"method": "grata", "lr": 0.05}
    assert run_benchmark(write(settings)) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [row for row in results(folder) if row["method"] != "faster"] == rows


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("protocol", ["episodic", "continual", "mixed", {"name": "recurring", "repeats": 2}])
def test_every_protocol_equals_the_method_run_by_hand(settings, write, tmp_path, protocol):
    settings |= {"protocol": protocol, "methods": {"grata": {"lr": 0.02}}, "limit": 2}
    path = write(settings)
    assert run_benchmark(path) == 0
    rows = results(tmp_path / "results")
    assert len(rows) == (8 if isinstance(protocol, dict) else 4)
    config = load_config(path)
    cosines = []
    for job in plan(config):
        runner = stream._Runner(job)
        method = GraTa(runner.bundle.make_network().requires_grad_(True), activation="sigmoid", lr=0.02, seed=0)
        for item in job.items:
            if protocol == "episodic":
                method.restore()
            image = runner.sites[item.site].read_image(job.cases[item.site][item.case])["image"].as_tensor()
            cosines.append(method.adapt(image[None]).cosine)
    assert [float(row["cosine"]) for row in rows] == pytest.approx(cosines, rel=1e-4)


@pytest.mark.usefixtures("no_figures")
def test_the_beginning_of_a_longer_stream_is_computed_once(settings, write, tmp_path, monkeypatch):
    protocols = ["per-target", "continual", {"name": "recurring", "repeats": 2}]
    settings |= {"protocol": protocols, "methods": {"source": {}, "grata": {"lr": 0.02}}, "limit": 2}
    computed = []
    step = stream._Runner.step
    monkeypatch.setattr(
        stream._Runner, "step", lambda self, *given: computed.append(self.job.name) or step(self, *given)
    )
    assert run_benchmark(write(settings)) == 0
    together = results(tmp_path / "results")
    # Not reused: the second site of per-target, which starts from the source, and the recurring stream, whose second
    # round differs for a method that learns.
    assert len(computed) == 2 * 2 + 4 + 8
    apart = []
    for index, protocol in enumerate(protocols):
        one = {**settings, "protocol": protocol, "output_dir": str(tmp_path / f"apart{index}")}
        assert run_benchmark(write(one)) == 0
        apart += results(tmp_path / f"apart{index}")
    measured = {*stream.MEASURED}
    plain = [{key: value for key, value in row.items() if key not in measured} for row in together]
    assert plain == [{key: value for key, value in row.items() if key not in measured} for row in apart]


@pytest.mark.usefixtures("no_figures")
def test_a_stride_takes_every_nth_image_of_a_site(settings, write, tmp_path):
    settings["targets"]["north"]["stride"] = 3
    settings |= {"methods": {"source": {}}, "reference_method": "source", "limit": 2}
    assert run_benchmark(write(settings)) == 0
    rows = [(row["target"], row["case"]) for row in results(tmp_path / "results")]
    assert rows == [("north", "case0"), ("north", "case3"), ("south", "case0"), ("south", "case1")]


def test_more_methods_than_colours_are_drawn_by_name(settings, write, tmp_path):
    rows = {f"rate{k}": {"method": "tent", "lr": k * 1e-3} for k in range(9)}
    settings |= {"methods": {"source": {}, **rows}, "reference_method": "rate1", "limit": 2}
    assert run_benchmark(write(settings)) == 0
    figures = {path.name: path.read_bytes() for path in (tmp_path / "results" / "figures").iterdir()}
    for name in ("dice-by-site", "dice-along-stream", "steps-along-stream"):
        assert figures[f"per-target-{name}.png"].startswith(b"\x89PNG")


@pytest.mark.usefixtures("no_figures")
def test_a_repeated_image_is_computed_once_if_no_other_image_influences_it(settings, write, tmp_path, monkeypatch):
    rows = {"source": {}, "online": {"method": "tent"}, "episodic": {"method": "tent", "reset": "per-case"}}
    settings |= {"protocol": {"name": "recurring", "repeats": 3}, "methods": rows, "limit": 2}
    settings["reference_method"] = "online"
    computed = []
    step = stream._Runner.step
    monkeypatch.setattr(
        stream._Runner, "step", lambda self, *given: computed.append(self.job.row.name) or step(self, *given)
    )
    assert run_benchmark(write(settings)) == 0
    assert {name: computed.count(name) for name in rows} == {"source": 4, "online": 12, "episodic": 4}
    found = results(tmp_path / "results")
    assert len(found) == 3 * 12
    # A reused result has no cost.
    with open(tmp_path / "results" / "results.csv", newline="") as file:
        for row in csv.DictReader(file):
            costs = row["method"] == "online" or row["round"] == "0"
            measured = [column for column in MEASURED if column != "seconds_judge"]
            assert [bool(row[column]) for column in measured] == [costs] * len(measured)
    monkeypatch.setattr(stream._Runner, "each_for_itself", False)
    settings["output_dir"] = str(tmp_path / "all")
    assert run_benchmark(write(settings)) == 0
    measured = {*stream.MEASURED}
    for a, b in zip(found, results(tmp_path / "all"), strict=True):
        assert {k: v for k, v in a.items() if k not in measured} == {k: v for k, v in b.items() if k not in measured}


@pytest.mark.usefixtures("no_figures")
def test_labels_never_reach_a_method(settings, write, site, tmp_path, monkeypatch):
    """A method gets a plain tensor, and predicts the same with random, wrong or missing labels."""
    seen = []

    class Recorder(Source):
        name = "recorder"
        learns = True

        def adapt(self, images, same_case=False, **options):
            seen.append((type(images), tuple(images.shape), options, images.clone()))
            return super().adapt(images)

    monkeypatch.setattr(METHODS, "_others", {"recorder": Recorder})
    folder = site()
    settings |= {
        "targets": {"spoilt": {"dataset_dir": str(folder / "images")}},
        "methods": {"grata": {"lr": 0.02}, "recorder": {}},
        "protocol": "continual",
    }
    assert run_benchmark(write(settings)) == 0
    assert [kind for kind, _, _, _ in seen] == [torch.Tensor] * 3
    assert {shape for _, shape, _, _ in seen} == {(1, 1, 24, 24)} and not any(options for _, _, options, _ in seen)
    true = label_maps(load_config(write(settings)))
    images = [image for *_, image in seen]

    generator = np.random.default_rng(0)
    for path in (folder / "labels").iterdir():
        noise = generator.integers(0, 3, (32, 28)).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(noise, np.eye(4)), path)
    settings["output_dir"] = str(tmp_path / "noise")
    assert run_benchmark(write(settings)) == 0
    assert_same_maps(label_maps(load_config(write(settings))), true)
    dice = [[float(row["dice/mean"]) for row in results(tmp_path / name)] for name in ("results", "noise")]
    assert dice[0] != dice[1]

    settings["output_dir"] = str(tmp_path / "wrong")
    (folder / "labels" / "case0.nii.gz").unlink()
    nibabel.save(nibabel.Nifti1Image(noise + 7, np.eye(4)), folder / "labels" / "case1.nii.gz")
    assert run_benchmark(write(settings)) == 1
    assert_same_maps(label_maps(load_config(write(settings))), true)
    for image, other in zip(images, seen[6:], strict=True):
        assert torch.equal(image, other[-1])
    rows, whole = results(tmp_path / "wrong"), results(tmp_path / "results")
    assert [row["cosine"] for row in rows] == [row["cosine"] for row in whole]
    assert [bool(row["error"]) for row in rows] == [False, True, False] * 2
    assert [bool(row["dice/mean"]) for row in rows] == [False, False, True] * 2


def assert_same_maps(maps, expected):
    assert maps.keys() == expected.keys() and any(value is not None for value in maps.values())
    for key, value in expected.items():
        np.testing.assert_array_equal(maps[key], value)


@pytest.mark.usefixtures("no_figures")
def test_a_failed_image_has_a_row_and_does_not_change_the_stream(settings, write, site, tmp_path, monkeypatch):
    class Brittle(GraTa):
        name = "brittle"

        def _adapt(self, images):
            record = super()._adapt(images)
            if images.sum().item() == brittle_at:
                raise RuntimeError("out of luck")
            return record

    monkeypatch.setattr(METHODS, "_others", {"brittle": Brittle})
    folder = site(cases=4)
    settings["targets"] = {"spoilt": {"dataset_dir": str(folder / "images")}}
    settings |= {"methods": {"brittle": {"activation": "sigmoid", "lr": 0.02}}, "reference_method": "brittle"}
    config = load_config(write(settings))
    (job,) = plan(config)
    image = stream._Runner(job).sites["spoilt"].read_image(job.cases["spoilt"]["case1"])["image"]
    brittle_at = image.as_tensor().sum().item()
    (folder / "images" / "case2.nii.gz").write_bytes(b"no image")
    assert run_benchmark(write(settings)) == 1
    rows = results(tmp_path / "results")
    assert [bool(row["error"]) for row in rows] == [False, True, True, False]
    assert "out of luck" in rows[1]["error"] and "case2" in rows[2]["error"]
    assert str(tmp_path) not in (tmp_path / "results" / "results.csv").read_text()
    assert "2 of them failed" in (tmp_path / "results" / "summary.md").read_text()

    for name in ("case1", "case2"):
        (folder / "images" / f"{name}.nii.gz").unlink()
    settings["output_dir"] = str(tmp_path / "without")
    assert run_benchmark(write(settings)) == 0
    without = results(tmp_path / "without")
    drop = {"position"}
    assert [{k: v for k, v in r.items() if k not in drop} for r in without] == [
        {k: v for k, v in r.items() if k not in drop} for r in (rows[0], rows[3])
    ]


@pytest.mark.usefixtures("no_figures")
def test_a_stopped_run_is_resumed(settings, write, tmp_path, monkeypatch):
    settings |= {"protocol": [{"name": "recurring", "repeats": 2}], "seeds": [1]}
    path = write(settings)
    assert run_benchmark(path, output_dir=str(tmp_path / "whole")) == 0

    real, calls = Part.append, []

    def interrupted(self, row):
        calls.append(row)
        if len(calls) % 13 == 0:
            raise KeyboardInterrupt
        real(self, row)

    monkeypatch.setattr(Part, "append", interrupted)
    interruptions = 0
    while True:
        try:
            assert run_benchmark(path) == 0
            break
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions >= 2 and len(calls) == 3 * 14 + interruptions
    assert results(tmp_path / "results") == results(tmp_path / "whole")


@pytest.mark.usefixtures("no_figures")
def test_killed_before_any_of_its_writes_it_leaves_the_same_bank(
    settings, write, tmp_path, monkeypatch, killed_before_each_write, same_state
):
    """Also after the last image, whose row is finished before its entry of the bank is written."""
    settings |= {"methods": {"tent": {"lr": 0.02}}, "reference_method": "tent", "limit": 2}
    settings["targets"].pop("south")
    monkeypatch.setattr(run, "write_summary", lambda *_, **__: None)

    def go(folder):
        settings["sources"] = {"bundle": {"bank": str(tmp_path / folder / "bank")}}
        return run_benchmark(write(settings), output_dir=str(tmp_path / folder / "output"))

    def entries(folder):
        files = sorted((tmp_path / folder / "bank").rglob("*.safetensors"))
        return [(file.name, saved.cases, saved.state) for file in files for saved in [Adaptation.read(file)]]

    assert go("whole") == 0
    (whole,) = entries("whole")
    assert whole[1] == 2
    for moment in killed_before_each_write(lambda n: go(f"killed{n}")):
        assert go(f"killed{moment}") == 0
        (found,) = entries(f"killed{moment}")
        assert found[:2] == whole[:2] and same_state(found[2], whole[2]), moment
        assert results(tmp_path / f"killed{moment}" / "output") == results(tmp_path / "whole" / "output")
    # state, progress, the entry and its card of each image
    assert moment >= 2 * 4


@pytest.mark.usefixtures("no_figures")
def test_a_changed_benchmark_is_refused(settings, write, site, tmp_path):
    settings |= {"methods": {"grata": {"lr": 0.02}}, "limit": 1}
    run_benchmark(write(settings))
    changes = {
        "methods": {"methods": {"grata": {"lr": 0.5}}},
        "metrics": {"metrics": {"empty": "reference"}},
        "images|stream": {"limit": 2},
        "threads": {"threads": 2},
        "targets": {"targets": {"north": {**settings["targets"]["north"], "trap": "$lambda image: 1 - image"}}},
        "scored|metrics": {"targets": {"north": {**settings["targets"]["north"], "scored": ["Disc"]}}},
    }
    for what, change in changes.items():
        with pytest.raises(GrataError, match=f"with other .*({what})") as error:
            run_benchmark(write({**settings, **change}))
    # What is advised helps, and leaves the rest.
    advised = Path(re.search("remove '(.*)' to run", str(error.value))[1])
    assert advised.relative_to(tmp_path / "results" / "parts").parts == ("per-target", "bundle", "north")
    shutil.rmtree(advised)
    assert run_benchmark(write(settings | changes["scored|metrics"])) == 0
    shutil.rmtree(advised)
    # The same data in another folder is not a change.
    shutil.copytree(settings["bundle"], tmp_path / "copy")
    assert run_benchmark(write({**settings, "bundle": str(tmp_path / "copy"), "seeds": [0, 3]})) == 0
    assert {row["seed"] for row in results(tmp_path / "results")} == {"0", "3"}


def test_a_method_that_always_fails_does_not_spoil_the_tables(settings, write, tmp_path, monkeypatch):
    class Hopeless(Source):
        name = "hopeless"

        def adapt(self, images, same_case=False, **options):
            raise RuntimeError("never")

    monkeypatch.setattr(METHODS, "_others", {"hopeless": Hopeless})
    settings |= {"methods": {"source": {}, "hopeless": {}}, "limit": 2, "reference_method": "source"}
    assert run_benchmark(write(settings)) == 1
    table = (tmp_path / "results" / "summary.md").read_text()
    assert "| hopeless | 0        | 4        | -" in table
    settings |= {"methods": {"hopeless": {}}, "reference_method": "hopeless", "output_dir": str(tmp_path / "alone")}
    assert run_benchmark(write(settings)) == 1
    assert len(results(tmp_path / "alone")) == 4


def test_segments_that_are_not_scored_are_left_out(settings, write, tmp_path):
    settings |= {"methods": {"source": {}, "grata": {"lr": 0.02}}, "limit": 2}
    settings["targets"]["south"]["scored"] = ["Disc"]
    assert run_benchmark(write(settings)) == 0
    for row in results(tmp_path / "results"):
        assert bool(row["dice/Cup"]) == (row["target"] == "north")
        if row["target"] == "south":
            assert row["dice/mean"] == row["dice/Disc"]


def test_segments_to_score_come_from_the_target_else_the_source_else_the_bundle(settings, write, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(settings["bundle"], bundle)
    adapt = yaml.safe_load((bundle / "configs" / "adapt.yaml").read_text())
    (bundle / "configs" / "adapt.yaml").write_text(yaml.safe_dump({**adapt, "scored": ["Cup"]}, sort_keys=False))
    settings |= {"bundle": str(bundle), "sources": {"a": {"scored": ["Disc"]}, "b": {}}}
    settings["targets"]["north"]["scored"] = ["Disc", "Cup"]
    jobs = plan(load_config(write(settings)))
    scored = {(job.source, site): labels for job in jobs for site, labels in job.scored.items()}
    both = ["Disc", "Cup"]
    assert scored == {("a", "north"): both, ("a", "south"): ["Disc"], ("b", "north"): both, ("b", "south"): ["Cup"]}
    for where, change in (("bundle#scored", {}), ("sources#b#scored", {"sources": {"b": {"scored": ["Vessel"]}}})):
        (bundle / "configs" / "adapt.yaml").write_text(yaml.safe_dump({**adapt, "scored": ["Rim"]}, sort_keys=False))
        with pytest.raises(GrataError, match=f"{where}: there is no segment .*Disc, Cup"):
            plan(load_config(write({**settings, **change})))


def test_overrides_that_would_change_nothing_are_refused(settings, write):
    def refused(message, **changes):
        with pytest.raises(GrataError, match=message):
            plan(load_config(write({**settings, **changes})))

    north = settings["targets"]["north"]
    refused("targets#north#ptbn_like: .*no such key", targets={"north": {**north, "ptbn_like": 1}})
    refused("sources#a#postprocessing: a benchmark does not read it", sources={"a": {"postprocessing": {}}})
    refused("targets#north#evaluator: a benchmark does not read it", targets={"north": {**north, "evaluator": {}}})
    # Keys that preprocessing refers to, and keys of the network, are accepted.
    plan(load_config(write({**settings, "targets": {"north": {**north, "trap": "$lambda image: 1 - image"}}})))
    plan(load_config(write({**settings, "sources": {"a": {"network_def#norm": "batch", "activation": "softmax"}}})))


def test_predictions_are_kept_for_the_protocol_that_is_drawn(settings, write):
    settings |= {"protocol": ["continual", "per-target"], "seeds": [0, 1]}
    kept = {(job.protocol, job.row.name, job.seed) for job in plan(load_config(write(settings))) if job.keep_label_maps}
    assert kept == {("continual", "source", 0), ("continual", "grata", 0)}


def test_a_run_in_this_process_leaves_it_as_it_was(settings, write, tmp_path, monkeypatch):
    def pages():
        raise AssertionError("this cannot be taken back")

    def drawn():
        return random.random(), np.random.random(), torch.rand(1).item()

    monkeypatch.setattr(stream, "keep_pages", pages)
    settings |= {"limit": 1, "sources": {"a": {"keep_pages": True}}, "threads": torch.get_num_threads() + 1}
    before = torch.get_num_threads(), torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, get_seed()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    expected = drawn()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    assert run_benchmark(write(settings)) == 0
    assert drawn() == expected
    after = torch.get_num_threads(), torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, get_seed()
    assert after == before


def stopped_after(monkeypatch, images):
    """Stop the next run after a number of images."""
    real, calls = Part.append, []

    def interrupted(self, row):
        calls.append(row)
        if len(calls) > images:
            raise KeyboardInterrupt
        real(self, row)

    monkeypatch.setattr(Part, "append", interrupted)


@pytest.mark.usefixtures("no_figures")
def test_a_damaged_state_is_named_with_its_cause(settings, write, tmp_path, monkeypatch):
    settings |= {"methods": {"grata": {"lr": 0.02}}, "limit": 2, "protocol": "continual"}
    path = write(settings)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stopped_after(patched, 2)
        run_benchmark(path)
    state = next((tmp_path / "results" / "parts").rglob("*.pt"))
    torch.save({"finished": 1}, state)
    with pytest.raises(GrataError, match="seed-0.pt is damaged .*lacks finished or method.*Remove it"):
        run_benchmark(path)
    state.write_bytes(b"nothing")
    with pytest.raises(GrataError, match=r"seed-0.pt is damaged .*\(\w+Error: .+\). Remove it") as caught:
        run_benchmark(path)
    assert caught.value.__cause__ is not None and "\n" not in str(caught.value)
    state.unlink()
    assert run_benchmark(path) == 0 and len(results(tmp_path / "results")) == 4


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("method", "guard", "protocol", "states"),
    [
        ({"lr": 0.02}, False, "continual", [True, True, True, False]),
        ({"lr": 0.02}, False, "episodic", [False] * 4),
        ({"lr": 0.02, "reset": "per-case"}, False, "continual", [False] * 4),
        # a guard goes by what it saw of the stream, also where the method starts anew
        ({"lr": 0.02}, True, "continual", [True, True, True, False]),
        ({"lr": 0.02}, True, "episodic", [False] * 4),
        ({"lr": 0.02, "reset": "per-case"}, {"probe": 1}, "continual", [True, True, True, False]),
    ],
)
def test_a_state_is_kept_if_a_later_image_depends_on_it(
    settings, write, tmp_path, monkeypatch, method, guard, protocol, states
):
    settings |= {
        "methods": {"grata": method},
        "limit": 2,
        "protocol": protocol,
        "sources": {"bundle": {"guard": guard}},
    }
    path, kept = write(settings), []
    commit = Part.commit

    def noting(self, *given):
        commit(self, *given)
        kept.append(self.lock.with_suffix(".pt").exists())

    monkeypatch.setattr(Part, "commit", noting)
    assert run_benchmark(path, output_dir=str(tmp_path / "whole")) == 0
    # `episodic` has one stream per site.
    assert kept == states
    # A stopped run ends like an uninterrupted one, with a state or without.
    for images in (1, 2, 3):
        folder = str(tmp_path / f"stopped{images}")
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            stopped_after(patched, images)
            run_benchmark(path, output_dir=folder)
        assert run_benchmark(path, output_dir=folder) == 0
        assert results(tmp_path / f"stopped{images}") == results(tmp_path / "whole")


def test_distances_are_in_mm_where_pixels_have_a_size(settings, write, tmp_path):
    """Compare a 2D NIfTI image of 0.5 by 2 mm with a picture of the same pixels."""
    generator = np.random.default_rng(4)
    pixels = generator.integers(0, 255, (32, 28)).astype(np.uint8)
    label = np.zeros((32, 28), np.uint8)
    label[8:20, 8:20] = 1
    for name, values in (("images", pixels), ("labels", label)):
        for site in ("scans", "pictures"):
            (tmp_path / site / name).mkdir(parents=True)
        image = nibabel.Nifti1Image(values, np.diag([0.5, 2.0, 3.0, 1.0]))
        nibabel.save(image, tmp_path / "scans" / name / "a.nii.gz")
        Image.fromarray(values).save(tmp_path / "pictures" / name / "a.png")
    settings["targets"] = {site: {"dataset_dir": str(tmp_path / site / "images")} for site in ("scans", "pictures")}
    settings |= {"methods": {"source": {}}, "reference_method": "source"}
    for space, scan, picture in (
        ("input", [0.5, 2.0], [1.0, 1.0]),
        # Resized to 24 by 24 pixels.
        ("network", [0.5 * 32 / 24, 2.0 * 28 / 24], [1.0, 1.0]),
    ):
        for job in plan(load_config(write({**settings, "metrics": {"space": space}}))):
            (item,) = job.items
            site, case = stream._Runner(job).sites[item.site], job.cases[item.site][item.case]
            expected = scan if item.site == "scans" else picture
            assert site.spacing(case, site.read_image(case), space) == pytest.approx(expected, rel=1e-5)


def test_messages_in_results_name_no_folder_of_this_machine(settings, write, tmp_path):
    (tmp_path / "site" / "deep").mkdir(parents=True)
    shutil.copytree(settings["targets"]["north"]["dataset_dir"], tmp_path / "site" / "images")
    labels = tmp_path / "other labels"
    shutil.copytree(settings["targets"]["north"]["dataset_dir"].replace("images", "labels"), labels)
    settings["targets"] = {"site": {"dataset_dir": str(tmp_path / "site"), "labels_dir": str(labels)}}
    site = stream._Runner(plan(load_config(write(settings)))[0]).sites["site"]
    case = next(case for case in site.cases(None) if case["case"] == "case0")
    told = {
        f"{case['image']}: broken": "images/case0.nii.gz: broken",
        f"File '{case['label']}' is cut short": "File 'case0.nii.gz' is cut short",
        f"No such folder: {tmp_path / 'site'}": "No such folder: site",
        f"{tmp_path}/site2/x stays": f"{tmp_path}/site2/x stays",
    }
    for text, expected in told.items():
        assert site.without_folders(text, case) == expected


@pytest.mark.usefixtures("no_figures")
def test_scores_on_the_grid_that_the_network_sees(settings, write, tmp_path):
    settings |= {"methods": {"source": {}}, "reference_method": "source", "metrics": {"space": "network"}}
    settings["seeds"] = [0]
    path = write(settings)
    assert run_benchmark(path) == 0
    config = load_config(path)
    runner = stream._Runner(plan(config)[0])
    site = runner.sites["north"]
    case = discover(settings["targets"]["north"]["dataset_dir"], spatial_dims=2).cases[0]
    image = site.read_image(case)
    label = site.read_label(case, image, "network")
    assert label.shape == (24, 24) and set(np.unique(label)) == {0, 1, 2}
    original = site.read_label(case, image, "input")
    assert (label > 0).mean() == pytest.approx((original > 0).mean(), rel=0.15)
    assert all(value.shape == (24, 24) for value in label_maps(config).values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bundle": "nowhere"}, "bundle: .* does not exist"),
        ({"sources": {"a": {"wieghts": "x.pt"}}}, "sources#a#wieghts: .*weights"),
        ({"sources": {"a": {"weights": "x.pt"}}}, "x.pt does not exist"),
        ({"targets": {"b": {"dataset_dir": "nowhere"}}}, "targets#b: .*nowhere"),
        ({"targets": {"b": {"datset_dir": "x"}}}, "targets#b#datset_dir: .*dataset_dir"),
        ({"methods": {"grata": {"rho": -1}}}, "methods#grata#rho: must be a finite number of at least 0"),
    ],
)
def test_refused_before_anything_runs(settings, write, tmp_path, change, message):
    with pytest.raises(GrataError, match=message):
        run_benchmark(write({**settings, **change}))
    assert not (tmp_path / "results" / "results.csv").exists()


def test_scored_must_be_a_segment_and_a_site_have_labels(settings, write, site):
    settings["targets"]["north"]["scored"] = ["Vessel"]
    with pytest.raises(GrataError, match="targets#north#scored: .*Disc, Cup"):
        run_benchmark(write(settings))
    folder = site()
    shutil.rmtree(folder / "labels")
    with pytest.raises(GrataError, match="no image has a label"):
        run_benchmark(write({**settings, "targets": {"spoilt": {"dataset_dir": str(folder / "images")}}}))
