"""Runs over real folders: paths that messages do not show, tables that cannot be written, formats of segmentations."""

import csv
import json
import stat
from types import SimpleNamespace

import itk
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator

import grata.engines.durable as durable
from grata.data import Discovery, Fault, discover
from grata.engines import AdaptationHandler, AdaptationRun, OutputHandler
from grata.errors import GrataError
from grata.methods import create

SEGMENT = {"value": 1, "label": "Organ", "category": ["1", "SCT", "a"], "type": ["2", "SCT", "b"]}


class Outputs:
    """Outputs that fail for one case, as a figure or a table could."""

    def __init__(self, bad=()):
        self.scores, self.volumes, self.bad = {}, {}, bad

    def write(self, engine):
        for item in engine.state.batch:
            if item["case"] in self.bad:
                raise ZeroDivisionError("float division by zero")

    def paths(self, case):
        return []

    def remove(self, case):
        pass


@pytest.fixture
def make_run(tmp_path):
    def make(discovery, output="out", bad=(), **options):
        outputs, network = Outputs(bad), torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
        folder = tmp_path / output
        method = create("source", network, activation="softmax")
        adaptation = AdaptationHandler(method, journal=folder / "journal.jsonl", guard=False)
        items = [{**case, "image": torch.rand(1, 8, 8)} for case in discovery.cases]
        engine = SupervisedEvaluator("cpu", DataLoader(Dataset(items), batch_size=1), network)
        engine.add_event_handler(Events.ITERATION_COMPLETED, outputs.write)
        adaptation.attach(engine)
        return AdaptationRun(engine, discovery, adaptation, outputs, folder, **options)

    return make


def case(name):
    return {"case": name, "site": "unknown", "format": "nifti"}


def test_paths_that_messages_do_not_show_stand_in_a_file_of_the_users_own(make_run, tmp_path, capsys):
    places = {"a": "/data/Erika/a.nii.gz", "file-1": "/data/Erika/x.dcm", "file-2": "/data/caf\udce9/y.dcm"}
    faults = [
        Fault("file-1", "DICOM file '[removed: no. 3 of 7 by name]/x.dcm' cannot be used."),
        Fault("file-2", "File 'y.dcm' cannot be used."),
        Fault("file-3", "File '[removed]' cannot be used."),
    ]
    run = make_run(Discovery([case("a")], faults, notes=["2 files of kinds that are not read."], places=places))
    assert run.run() == 1
    path = tmp_path / "out" / "paths.csv"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert dict(list(csv.reader(file))[1:]) == places
    listed = {f["case"]: f["message"] for f in json.loads((tmp_path / "out" / "summary.json").read_text())["faults"]}
    assert listed["file-1"].endswith("paths.csv in the output folder names the file.")
    assert "paths.csv" not in listed["file-2"] + listed["file-3"]
    shown = capsys.readouterr()
    assert "Erika" not in shown.out + shown.err
    assert "note: 2 files of kinds that are not read." in shown.out
    assert make_run(Discovery([case("a")], places={}), overwrite=True).run() == 0
    assert path.read_text() == "case,path\n"


def test_what_is_raised_for_one_case_when_its_results_are_written_is_its_own_fault(make_run, tmp_path):
    run = make_run(Discovery([case("a"), case("b"), case("c")]), bad=["b"])
    assert run.run() == 1
    assert [fault.case for fault in run.faults] == ["b"]
    assert run.finished == ["a", "c"]


@pytest.mark.parametrize("name", ["write_volumes", "write_summary", "overview_figure"])
def test_a_table_of_all_cases_that_cannot_be_made_does_not_cost_the_run(make_run, monkeypatch, capsys, name):
    def fail(*_, **__):
        raise KeyError("volume_ml")

    monkeypatch.setattr(durable, name, fail)
    run = make_run(Discovery([case("a")]))
    run.outputs.scores = {
        "z": [{"case": "z", "site": "s", "variant": "v", "class": "c", "dice": 1.0, "hd95": 0.0, "assd": 0.0}]
    }
    assert run.run() == 1
    shown = capsys.readouterr().out
    assert "error: KeyError: 'volume_ml'" in shown
    assert "1 of 1 cases finished" in shown


@pytest.mark.parametrize(("output_format", "ending"), [("nifti", ".nii.gz"), ("mha", ".mha"), ("nrrd", ".nrrd")])
@pytest.mark.parametrize("shape", [(9, 8, 7), (9, 8, 1)])
def test_segmentations_are_written_in_the_format_that_was_asked_for(tmp_path, output_format, ending, shape):
    image = itk.image_from_array(np.random.default_rng(0).normal(size=shape[::-1]).astype(np.float32))
    image.SetSpacing([0.5, 1.25, 2.5])
    (tmp_path / "in").mkdir()
    itk.imwrite(image, str(tmp_path / "in" / "a.mha"))
    (found,) = discover(tmp_path / "in", spatial_dims=3 if shape[2] > 1 else 2).cases
    handler = OutputHandler([found], tmp_path / "out", [SEGMENT], "grata", output_format=output_format)
    sizes = shape if shape[2] > 1 else shape[:2]
    labels = np.random.default_rng(0).integers(0, 2, sizes)
    affine = np.diag([-0.5, -1.25, 2.5, 1.0])
    item = {"case": "a", "original": MetaTensor(torch.rand(1, *sizes), affine=affine)}
    prediction = {"pred": MetaTensor(torch.as_tensor(labels, dtype=torch.float32)[None])}
    handler.write(SimpleNamespace(state=SimpleNamespace(batch=[item], output=[prediction])))
    (path,) = (tmp_path / "out" / "segmentations").iterdir()
    assert path.name == f"a{ending}"
    written = itk.imread(str(path))
    np.testing.assert_array_equal(itk.array_from_image(written).T.reshape(sizes), labels)
    np.testing.assert_allclose(written.GetSpacing(), [0.5, 1.25, 2.5])
    np.testing.assert_allclose(itk.array_from_matrix(written.GetDirection()), np.eye(3))
    handler.remove("a")
    assert not list((tmp_path / "out" / "segmentations").iterdir())


def test_a_format_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(GrataError, match="output_format: must be one of nifti, mha, nrrd"):
        OutputHandler([], tmp_path, [SEGMENT], "grata", output_format="dicom")
