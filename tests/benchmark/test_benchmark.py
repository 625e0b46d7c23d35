import csv
import math
import shutil

import nibabel
import numpy as np
import pytest
import torch

from grata.benchmark import load_config, run, run_benchmark, stream
from grata.benchmark.jobs import plan
from grata.benchmark.part import Part
from grata.benchmark.stream import MEASURED
from grata.benchmark.summary import summarise
from grata.data import discover
from grata.errors import GrataError
from grata.methods import METHODS, GraTa, Source


def results(folder):
    """Rows of ``results.csv`` without what is measured."""
    with open(folder / "results.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key not in MEASURED} for row in csv.DictReader(file)]


def parts(config):
    return [(job, Part(config.output_dir / "parts", job.name, job.fingerprint)) for job in plan(config)]


def label_maps(config):
    """All predictions that a benchmark kept, by job."""
    return {(job.name, i): part.read_label_map(i) for job, part in parts(config) for i in range(len(job.items))}


def test_a_whole_benchmark(settings, write, tmp_path):
    settings["seeds"] = [0, 1]
    settings["methods"]["slow"] = {"method": "grata", "lr": 0.0}
    path = write(settings)
    assert run_benchmark(path) == 0
    folder = tmp_path / "results"
    rows = results(folder)
    # 7 images: for one seed by methods without random numbers, for two by the others
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
    # sites weigh equally
    sites = [by_name.loc[(site, "ptbn"), "dice/mean"] for site in ("north", "south")]
    assert by_name.loc[("all", "ptbn"), "dice/mean"] == pytest.approx(np.mean(sites))
    # a method that does not move predicts like batch statistics alone
    assert by_name.loc[("all", "slow"), "dice/mean"] == pytest.approx(by_name.loc[("all", "ptbn"), "dice/mean"])
    assert by_name.loc[("all", "source"), "ratio"] == 1.0
    assert math.isnan(by_name.loc[("all", "grata"), "p"]) and by_name.loc[("all", "source"), "p_holm"] <= 1
    summary = (folder / "summary.md").read_text()
    assert "per-target: bundle to all" in summary and "lr: 0.0" in summary and str(tmp_path.parent.name) in summary
    assert r"\toprule" in (folder / "summary.tex").read_text()
    assert len((folder / "summary.csv").read_text().splitlines()) == 1 + 3 * 4
    figures = {path.name for path in (folder / "figures").iterdir()}
    assert {"per-target-dice-by-site.png", "per-target-steps-along-stream.png"} <= figures
    assert {"per-target-bundle-north-overlays.png", "per-target-bundle-south-overlays.png"} <= figures

    # again: nothing is left to do; more methods: those alone are done
    before = {path: path.stat().st_mtime_ns for path in (folder / "parts").rglob("*.jsonl")}
    settings["methods"]["faster"] = {"method": "grata", "lr": 0.05}
    assert run_benchmark(write(settings)) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [row for row in results(folder) if row["method"] != "faster"] == rows


@pytest.mark.parametrize("protocol", ["episodic", "continual", "mixed", {"name": "recurring", "repeats": 2}])
def test_every_protocol_is_the_method_run_by_hand(settings, write, tmp_path, protocol):
    settings |= {"protocol": protocol, "methods": {"grata": {}}, "limit": 2}
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


def test_labels_never_reach_a_method(settings, write, site, tmp_path, monkeypatch):
    """A method gets a plain tensor, and predicts the same with labels of noise, with wrong ones and without."""
    seen = []

    class Recorder(Source):
        name = "recorder"
        learns = True

        def adapt(self, images, same_case=False, **options):
            seen.append((type(images), tuple(images.shape), options, images.clone()))
            return super().adapt(images)

    monkeypatch.setitem(METHODS, "recorder", Recorder)
    folder = site()
    settings |= {
        "targets": {"spoilt": {"dataset_dir": str(folder / "images")}},
        "methods": {"grata": {}, "recorder": {}},
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


def test_what_fails_is_a_row_and_the_stream_goes_on_as_without_it(settings, write, site, tmp_path, monkeypatch):
    class Brittle(GraTa):
        name = "brittle"

        def _adapt(self, images):
            record = super()._adapt(images)
            if images.sum().item() == brittle_at:
                raise RuntimeError("out of luck")
            return record

    monkeypatch.setitem(METHODS, "brittle", Brittle)
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


def test_a_stopped_run_goes_on(settings, write, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "draw_figures", lambda *_: None)
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


def test_a_changed_benchmark_is_refused(settings, write, site, tmp_path):
    settings |= {"methods": {"grata": {}}, "limit": 1}
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
        with pytest.raises(GrataError, match=f"with other .*({what})"):
            run_benchmark(write({**settings, **change}))
    # another place of the same data is no change
    shutil.copytree(settings["bundle"], tmp_path / "copy")
    assert run_benchmark(write({**settings, "bundle": str(tmp_path / "copy"), "seeds": [0, 3]})) == 0
    assert {row["seed"] for row in results(tmp_path / "results")} == {"0", "3"}


def test_a_method_that_always_fails_does_not_spoil_the_tables(settings, write, tmp_path, monkeypatch):
    class Hopeless(Source):
        name = "hopeless"

        def adapt(self, images, same_case=False, **options):
            raise RuntimeError("never")

    monkeypatch.setitem(METHODS, "hopeless", Hopeless)
    settings |= {"methods": {"source": {}, "hopeless": {}}, "limit": 2, "reference_method": "source"}
    assert run_benchmark(write(settings)) == 1
    table = (tmp_path / "results" / "summary.md").read_text()
    assert "| hopeless | 0        | 4        | -" in table
    settings |= {"methods": {"hopeless": {}}, "reference_method": "hopeless", "output_dir": str(tmp_path / "alone")}
    assert run_benchmark(write(settings)) == 1
    assert len(results(tmp_path / "alone")) == 4


def test_segments_that_are_not_scored_have_no_part(settings, write, tmp_path):
    settings |= {"methods": {"source": {}, "grata": {}}, "limit": 2}
    settings["targets"]["south"]["scored"] = ["Disc"]
    assert run_benchmark(write(settings)) == 0
    for row in results(tmp_path / "results"):
        assert bool(row["dice/Cup"]) == (row["target"] == "north")
        if row["target"] == "south":
            assert row["dice/mean"] == row["dice/Disc"]


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
        ({"methods": {"grata": {"rho": -1}}}, "methods#grata: .*rho"),
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
