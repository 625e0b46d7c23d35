"""What a guard says of each scan, as a user of a bundle meets it: cases.csv, the outputs, the exit status."""

import csv
import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from monai.transforms import Compose, SaveImaged

from grata.bundles.withholding import withhold
from grata.engines.adaptation import WITHHELD
from grata.errors import GrataError
from grata.quality import REJECTED, Judgement, exit_status

GOOD, SERIES, WRONG = "a_good", "mr-series007-197e8026", "noise"
"""Cases in their order: a hippocampus, a DICOM series that shows none, and noise."""
PATIENT = ("Mustermann", "Erika", "19610824")
METHOD = ("--method", "tent", "--settings#lr", "0.001")


@pytest.fixture(scope="module")
def dataset(bundle, scans, tmp_path_factory):
    """A scan of the source's kind, and two that no segmentation is right of."""
    folder = tmp_path_factory.mktemp("judged") / "scans"
    source = nibabel.load(bundle / "sample_scans" / "nifti" / "icbm152_left.nii.gz")
    voxels = {
        f"north/{GOOD}": source.get_fdata(),
        f"south/{WRONG}": np.random.default_rng(0).normal(100, 20, source.shape),
    }
    for name, array in voxels.items():
        (folder / name).parent.mkdir(parents=True)
        image = nibabel.Nifti1Image(array.astype(np.float32), source.affine)
        nibabel.save(image, folder / f"{name}.nii.gz")
    scans.save(scans.series("axial", "good", 24, size=(40, 32)), folder / "_".join(PATIENT))
    return folder


@pytest.fixture(scope="module")
def runs(adapt, bundle, dataset, tmp_path_factory):
    """Function that runs the bundle over the scans, once for each choice of options, and returns folder and outcome."""
    folder, done = tmp_path_factory.mktemp("runs"), {}

    def run(*options, method=METHOD, guard=None):
        key = (*method, *options, guard)
        if key not in done:
            output = folder / f"run{len(done)}"
            arguments = ("--dataset_dir", dataset, *method, *options)
            done[key] = output, adapt(bundle, output, *arguments, cwd=folder, check=False, guard=guard)
        return done[key]

    return run


def table(output):
    with (output / "cases.csv").open(newline="", encoding="utf-8") as file:
        return {row["case"]: row for row in csv.DictReader(file)}


def journal(output):
    lines = map(json.loads, (output / "journal.jsonl").read_text().splitlines())
    measured = ("seconds", "seconds_predict", "seconds_judge", "peak_memory_mib")
    return [{key: value for key, value in line.items() if key not in measured} for line in lines]


def labels(output, case):
    return np.asarray(nibabel.load(output / "segmentations" / f"{case}.nii.gz").dataobj)


def files(output):
    """Return the hashes of all files that hold no time and no memory."""
    apart = ("journal.jsonl", "summary.json", "state.pt")
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(output.rglob("*"))
        if path.is_file() and path.name not in apart
    }


def test_each_scan_has_a_line_with_its_place_and_verdict(runs):
    output, outcome = runs()
    assert outcome.returncode == REJECTED, outcome.stderr[-2000:]
    rows = table(output)
    assert list(rows) == [GOOD, SERIES, WRONG]
    assert [row["verdict"] for row in rows.values()] == ["ok", "reject", "reject"]
    assert [row["written"] for row in rows.values()] == ["yes"] * 3
    assert (rows[GOOD]["path"], rows[WRONG]["path"]) == (f"north/{GOOD}.nii.gz", f"south/{WRONG}.nii.gz")
    assert rows[GOOD]["used"] == "adapted" and not rows[GOOD]["reasons"]
    assert rows[WRONG]["used"] == "source" and "is expected" in rows[WRONG]["reasons"]
    assert float(rows[GOOD]["expected_dice"]) > 0.5 > float(rows[WRONG]["expected_dice"])
    # a hippocampus, in mL
    assert 1 < float(rows[GOOD]["Anterior hippocampus, adapted"]) < 4
    lines = journal(output)
    assert [(line["case"], line["verdict"], line["used"]) for line in lines] == [
        (case, row["verdict"], row["used"]) for case, row in rows.items()
    ]
    assert "verdicts: 1 ok, 2 reject" in outcome.stdout and f"  {WRONG}: reject (source prediction). " in outcome.stdout
    assert f"  {GOOD}: " not in outcome.stdout


def test_nothing_of_the_table_names_the_patient(runs):
    output, outcome = runs()
    for text in ((output / "cases.csv").read_text(), outcome.stdout, (output / "journal.jsonl").read_text()):
        assert not any(part in text for part in PATIENT)
    # the folder of a series is given as far as it names nobody
    assert "removed" in table(output)[SERIES]["path"]


def test_the_dicom_seg_carries_the_verdict(runs):
    output, _ = runs()
    seg = pydicom.dcmread(output / "segmentations" / f"{SERIES}.seg.dcm")
    expected = float(table(output)[SERIES]["expected_dice"])
    # with the algorithm it would be longer than the attribute may be, and that stands in others
    assert seg.ContentDescription == f"verdict reject, source prediction, expected Dice {expected:.2f}"
    plain = pydicom.dcmread(runs(guard="false")[0] / "segmentations" / f"{SERIES}.seg.dcm")
    assert plain.ContentDescription == "Segmentation by grata tent"
    assert plain.SOPInstanceUID != seg.SOPInstanceUID


def test_of_a_rejected_scan_the_source_prediction_is_written(runs):
    """Bit for bit that of the method source; what a wrong input has taught is forgotten, so the others are the same."""
    output, _ = runs()
    source, _ = runs(method=("--method", "source"), guard="false")
    for case in (SERIES, WRONG):
        assert np.array_equal(labels(output, case), labels(source, case))
    assert not np.array_equal(labels(output, GOOD), labels(source, GOOD))


def test_the_method_that_adapts_nothing_is_judged_too(runs):
    output, outcome = runs(method=("--method", "source"))
    assert outcome.returncode == REJECTED and "error:" not in outcome.stdout
    for row in table(output).values():
        assert row["Anterior hippocampus, adapted"] == row["Anterior hippocampus, source"] != ""


def test_withhold_writes_no_segmentation(runs):
    output, outcome = runs("--on_reject", "withhold")
    assert outcome.returncode == REJECTED
    assert [path.name for path in (output / "segmentations").iterdir()] == [f"{GOOD}.nii.gz"]
    rows = table(output)
    assert [row["written"] for row in rows.values()] == ["yes", "no", "no"]
    assert [row["verdict"] for row in rows.values()] == [row["verdict"] for row in table(runs()[0]).values()]
    assert [line["withheld"] for line in journal(output)] == [False, True, True]
    assert f"  {WRONG}: reject (withheld). " in outcome.stdout
    # nor does a table have what is not written
    with (output / "volumes.csv").open(newline="", encoding="utf-8") as file:
        variants = {(row["case"], row["variant"]) for row in csv.DictReader(file)}
    assert variants == {(case, "source") for case in (GOOD, SERIES, WRONG)} | {(GOOD, "tent")}
    # a person can see what was rejected
    assert {path.stem for path in (output / "figures").iterdir()} == {GOOD, SERIES, WRONG}
    assert np.array_equal(labels(output, GOOD), labels(runs()[0], GOOD))


def test_keep_writes_the_prediction_as_it_is(runs):
    output, outcome = runs("--on_reject", "keep")
    assert outcome.returncode == REJECTED
    rows = table(output)
    assert [(row["verdict"], row["used"]) for row in rows.values()] == [
        ("ok", "adapted"),
        ("reject", "adapted"),
        ("reject", "adapted"),
    ]
    # both were adapted to the good scan and then to the series
    unguarded, _ = runs(guard="false")
    assert np.array_equal(labels(output, SERIES), labels(unguarded, SERIES))
    assert not np.array_equal(labels(output, SERIES), labels(runs()[0], SERIES))


def test_without_the_guard_nothing_is_judged(runs, adapt, bundle, dataset, tmp_path):
    output, outcome = runs(guard="false")
    assert outcome.returncode == 0 and "verdict" not in outcome.stdout
    assert not (output / "cases.csv").exists()
    assert not any({"verdict", "used", "quality", "seconds_judge"} & line.keys() for line in journal(output))
    # and the table of an earlier run does not stay behind
    again = tmp_path / "again"
    shutil.copytree(runs()[0], again)
    assert (again / "cases.csv").exists()
    adapt(bundle, again, "--dataset_dir", dataset, *METHOD, "--overwrite", "true", cwd=tmp_path)
    assert files(again) == files(output)


def test_a_run_that_was_killed_ends_with_the_same_verdicts(runs, adapt, bundle, dataset, tmp_path):
    whole, _ = runs()
    output = tmp_path / "output"
    command = [sys.executable, "-m", "monai.bundle", "run", "adapt", "--bundle_root", str(bundle)]
    command += ["--config_file", str(bundle / "configs" / "adapt.yaml"), "--dataset_dir", str(dataset)]
    command += ["--output_dir", str(output), *METHOD]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path, deadline = output / "journal.jsonl", time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_text().count("\n") >= 2:
            break
        time.sleep(0.005)
    assert process.poll() is None, "the run ended before it could be stopped"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (output / "cases.csv").exists()
    resume = functools.partial(adapt, bundle, output, "--dataset_dir", dataset, *METHOD, "--resume", "true")
    outcome = resume(cwd=tmp_path, check=False, guard=None)
    assert outcome.returncode == REJECTED and "3 of 3 cases finished" in outcome.stdout
    assert files(output) == files(whole) and journal(output) == journal(whole)
    states = [torch.load(folder / "state.pt", weights_only=True) for folder in (output, whole)]
    assert states[0]["judgements"] == states[1]["judgements"]
    assert states[0]["method"]["guard"] == states[1]["method"]["guard"]
    # also where nothing is left to do
    (output / "cases.csv").unlink()
    outcome = resume(cwd=tmp_path, check=False, guard=None)
    assert outcome.returncode == REJECTED and table(output) == table(whole)
    # the verdicts of another setting would not be those of this run
    for keys, options in (
        ("guard, on_reject", ("--on_reject", "keep", "--guard", "false")),
        ("quality", ("--quality", "null")),
    ):
        refused = resume(*options, cwd=tmp_path, check=False, guard=None)
        assert refused.returncode == 1 and f"had other settings ({keys})" in refused.stderr


def test_a_file_that_is_named_must_be_there_and_fit(runs, bundle, tmp_path):
    output, outcome = runs("--quality", "null")
    rows = table(output)
    assert "expected_dice" not in rows[GOOD] and rows[GOOD]["verdict"] in ("ok", "review")
    (tmp_path / "other.json").write_text("{}")
    for path, message in ((tmp_path / "none.json", "does not exist"), (tmp_path / "other.json", "is not a file of")):
        output, outcome = runs("--quality", str(path))
        assert outcome.returncode == 1 and f"quality: {path} {message}" in outcome.stderr
    output, outcome = runs("--on_reject", "hide")
    assert outcome.returncode == 1 and "on_reject: " in outcome.stderr and "source, withhold, keep" in outcome.stderr
    output, outcome = runs(guard="perhaps")
    assert outcome.returncode == 1 and "guard: must be true, false" in outcome.stderr
    output, outcome = runs("--guard#patiense", "5")
    assert outcome.returncode == 1 and "patiense" in outcome.stderr and "patience" in outcome.stderr


def test_a_scan_that_cannot_be_read_has_its_line_and_the_guard_its_settings(adapt, bundle, dataset, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    whole = (dataset / "north" / f"{GOOD}.nii.gz").read_bytes()
    (scans / f"{GOOD}.nii.gz").write_bytes(whole)
    (scans / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    # no agreement of views is as high as this, which the settings of the run say too
    options = ("--dataset_dir", scans, *METHOD, "--guard#least_agreement", "1", "--guard#patience", "5")
    outcome = adapt(bundle, tmp_path / "output", *options, cwd=tmp_path, check=False, guard=None)
    assert outcome.returncode == 1
    rows = table(tmp_path / "output")
    assert list(rows) == [GOOD, "cut"]
    assert rows[GOOD]["used"] == "source" and "sound networks have 1.00 and more" in rows[GOOD]["reasons"]
    assert (rows["cut"]["verdict"], rows["cut"]["written"], rows["cut"]["path"]) == ("failed", "no", "cut.nii.gz")
    # the folder of the scans is nothing that others need to know
    assert rows["cut"]["reasons"].startswith("NIfTI file 'cut.nii.gz': its voxels cannot be read")
    assert rows["cut"]["expected_dice"] == "" and str(scans) not in (tmp_path / "output" / "journal.jsonl").read_text()
    settings = json.loads((tmp_path / "output" / "summary.json").read_text())["settings"]
    assert settings["guard#patience"] == 5 and settings["guard#least_agreement"] == 1


def test_the_overlay_for_any_bundle_judges_too(with_overlay, bundle, dataset, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in dataset.rglob("*.nii.gz"):
        shutil.copy(path, flat)
    arguments = ("--dataset_dir", flat, *METHOD)
    for on_reject, written in (("source", [GOOD, WRONG]), ("withhold", [GOOD])):
        output = tmp_path / on_reject
        options = (*arguments, "--adaptation#on_reject", on_reject)
        outcome = with_overlay(bundle, output, *options, cwd=tmp_path, guard=None)
        assert outcome.returncode == REJECTED and "verdicts: 1 ok, 1 reject" in outcome.stdout, outcome.stderr[-2000:]
        rows = table(output / "adaptation")
        assert [(row["case"], row["verdict"]) for row in rows.values()] == [(GOOD, "ok"), (WRONG, "reject")]
        assert [row["written"] for row in rows.values()] == ["yes" if name in written else "no" for name in rows]
        assert sorted(path.name for path in output.glob("*.nii.gz")) == [f"{name}_seg.nii.gz" for name in written]


def test_what_writes_files_passes_by_what_is_withheld():
    """Items of a decollated batch, a whole batch, and items that another transform has left without their mark."""
    written = []

    class Saving(SaveImaged):
        def __call__(self, data):
            written.append(data["name"])
            return data

    inner = Compose([Saving("pred")])
    transforms = Compose([lambda data: {**data, "seen": True}, inner])
    answers = iter([False, True])
    withhold(transforms, lambda: next(answers))
    for name, mark in (("a", {WITHHELD: True}), ("b", {WITHHELD: False}), ("c", {}), ("d", {})):
        assert transforms({"name": name, **mark})["seen"]
    for name, marks in (("e", [False, True]), ("f", [False, False])):
        transforms({"name": name, WITHHELD: torch.tensor(marks)})
    assert written == ["b", "c", "f"]
    for nothing in (None, Compose([]), Saving("pred")):
        with pytest.raises(GrataError, match="on_reject: no SaveImaged .* Give source or keep"):
            withhold(nothing, lambda: False)


@pytest.mark.parametrize(
    ("failed", "verdicts", "status"),
    [(False, ["ok", "review"], 0), (False, [], 0), (False, ["ok", "reject"], 3), (True, ["reject"], 1), (True, [], 1)],
)
def test_a_fault_counts_for_more_than_a_rejection(failed, verdicts, status):
    assert exit_status(failed, map(Judgement, verdicts)) == status
