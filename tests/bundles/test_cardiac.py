"""The cardiac bundle through MONAI's own command line."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from highdicom.seg import segread

from grata.benchmark import run_benchmark
from grata.methods import GraTa

BUNDLE = Path(__file__).parents[2] / "bundles" / "cardiac_cine_mri_segmentation"
SAMPLES = BUNDLE / "sample_scans"
CASES = ("phantom_ED", "phantom_ES")
VENTRICLE, MYOCARDIUM, RIGHT = 1, 2, 3


def journal(folder):
    return [json.loads(line) for line in (Path(folder) / "journal.jsonl").read_text().splitlines()]


def label_map(path):
    return np.asarray(nibabel.load(path).dataobj)


@pytest.fixture(scope="module")
def adapted(adapt, tmp_path_factory):
    """The sample scans, adapted with another working directory than the bundle, by a method of few forwards."""
    folder = tmp_path_factory.mktemp("anywhere")
    return folder / "output", adapt(BUNDLE, folder / "output", "--method", "tent", cwd=folder)


@pytest.fixture(scope="module")
def dataset(adapted, tmp_path_factory):
    """Labelled stacks of two patients without the true size of their pixels: parts of the samples, as predicted."""
    folder = tmp_path_factory.mktemp("dataset")
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for patient in ("a", "b"):
        for case in CASES:
            image = nibabel.load(SAMPLES / "nifti" / f"{case}.nii.gz")
            part = (slice(32, 96), slice(32, 96), slice(0, 4))
            name = f"{patient}_{case.rpartition('_')[2]}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[part], np.eye(4)), folder / "images" / name)
            label = label_map(adapted[0] / "segmentations" / f"{case}.nii.gz")[part].astype(np.uint8)
            nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), folder / "labels" / name)
    return folder


def test_stacks_and_every_phase_of_a_cine_end_as_segmentations_and_figures(adapted):
    output, result = adapted
    lines = journal(output)
    assert f"{len(lines)} of {len(lines)} cases finished" in result.stdout
    phases = [line["case"] for line in lines if line["case"] not in CASES]
    assert len(phases) == 4 and [case[-2:] for case in phases] == ["01", "02", "03", "04"]
    for line in lines:
        assert line["flags"] == [] and line["parameter_change"]["l2"] > 0
        assert set(np.unique(label_map(output / "segmentations" / f"{line['case']}.nii.gz"))) == {0, 1, 2, 3}
        assert (output / "figures" / f"{line['case']}.png").stat().st_size > 10_000


def test_the_left_ventricle_lies_in_its_myocardium_and_contracts(adapted):
    output, _ = adapted
    volumes = {}
    for case in CASES:
        labels = label_map(output / "segmentations" / f"{case}.nii.gz")
        zooms = nibabel.load(output / "segmentations" / f"{case}.nii.gz").header.get_zooms()
        volumes[case] = (labels == VENTRICLE).sum() * np.prod(zooms) / 1000
        blood = labels == VENTRICLE
        around = np.zeros_like(blood)
        for axis in (0, 1):
            around |= np.roll(blood, 1, axis) | np.roll(blood, -1, axis)
        shell = labels[around & ~blood]
        assert (shell == MYOCARDIUM).mean() > 0.8
    assert 20 < volumes["phantom_ES"] < 0.8 * volumes["phantom_ED"] < 250  # mL


def test_a_dicom_seg_of_each_phase_has_the_codes_of_the_structures(adapted):
    output, _ = adapted
    paths = sorted((output / "segmentations").glob("*.seg.dcm"))
    assert len(paths) == 4
    slices = {ds.SOPInstanceUID: ds for ds in map(pydicom.dcmread, (SAMPLES / "dicom").rglob("*.dcm"))}
    seen = set()
    for path in paths:
        seg = segread(path)
        codes = [seg.get_segment_description(number).segmented_property_type.value for number in (1, 2, 3)]
        assert codes == ["87878005", "74281007", "53085002"]
        referred = {uids[2] for uids in seg.get_source_image_uids()}
        assert referred <= slices.keys() and not referred & seen
        seen |= referred
    assert seen == slices.keys()


def test_metadata_network_and_workflows_are_those_of_a_zoo_bundle(check_zoo_bundle):
    check_zoo_bundle(BUNDLE)
    assert json.loads((BUNDLE / "configs" / "metadata.json").read_text())["eval_metrics"]


def test_the_exported_network_can_be_adapted_as_well(run, adapt, dataset, tmp_path):
    run(
        *("ckpt_export", "--net_id", "network_def", "--filepath", tmp_path / "model.ts"),
        *("--ckpt_file", BUNDLE / "models" / "model.pt", "--meta_file", BUNDLE / "configs" / "metadata.json"),
        *("--config_file", BUNDLE / "configs" / "inference.json", "--input_shape", "[1,1,96,96,12]"),
        cwd=tmp_path,
    )
    (tmp_path / "scans").mkdir()
    shutil.copy(dataset / "images" / "a_ED.nii.gz", tmp_path / "scans")
    scans = ("--dataset_dir", tmp_path / "scans", "--pixdim", "null")
    adapt(BUNDLE, tmp_path / "exported", "--weights", tmp_path / "model.ts", *scans, cwd=tmp_path)
    adapt(BUNDLE, tmp_path / "plain", *scans, cwd=tmp_path)
    found, twin = (label_map(tmp_path / which / "segmentations" / "a_ED.nii.gz") for which in ("exported", "plain"))
    assert (found == twin).mean() > 0.999
    assert len(GraTa(torch.jit.load(tmp_path / "model.ts"), activation="softmax").parameters) > 0


def test_plain_inference_and_evaluation(run, dataset, tmp_path):
    files = BUNDLE / "configs" / "inference.json", BUNDLE / "configs" / "evaluate.json"
    common = ["--bundle_root", BUNDLE, "--output_dir", tmp_path / "eval"]
    run("run", "--config_file", files[0], *common, cwd=tmp_path)
    for case in CASES:
        found = label_map(tmp_path / "eval" / f"{case}_seg.nii.gz")
        assert set(np.unique(found)) == {0, 1, 2, 3}
    both = str([str(file) for file in files])
    scored = ["--dataset_dir", dataset, "--pixdim", "null"]
    run("run", "evaluating", "--config_file", both, *common, *scored, cwd=tmp_path)
    assert "val_mean_dice" in (tmp_path / "eval" / "metrics.csv").read_text()


@pytest.mark.parametrize("files", [["train.yaml"], ["train.yaml", "train_strong.yaml"]], ids=["plain", "strong"])
def test_training_holds_out_whole_patients(run, files, dataset, tmp_path):
    short = ["--max_epochs", 1, "--val_interval", 1, "--batch_size", 2, "--val_stride", 2, "--roi_size", "[32,32,4]"]
    run(
        *("run", "training", "--config_file", str([str(BUNDLE / "configs" / name) for name in files])),
        *("--bundle_root", BUNDLE, "--dataset_dir", dataset, "--ckpt_dir", tmp_path, *short),
        *("--inferer#roi_size", "[64,64,4]"),
        cwd=tmp_path,
    )
    trained = torch.load(tmp_path / f"model{files[-1][5:-5]}.pt", weights_only=True)
    shipped = torch.load(BUNDLE / "models" / "model.pt", weights_only=True)
    assert {k: v.shape for k, v in trained.items()} == {k: v.shape for k, v in shipped.items()}


def test_the_bundle_can_be_benchmarked_by_patient(dataset, tmp_path):
    config = {
        "bundle": str(BUNDLE),
        "output_dir": str(tmp_path / "results"),
        "sources": {"bundle": {"guard": False, "pixdim": None}},
        "targets": {"phantoms": {"dataset_dir": str(dataset), "groups": "(.*)_E[DS]", "stride": 2}},
        "methods": {"source": {}, "tent": {}},
        "reference_method": "tent",
        "workers": 0,
    }
    (tmp_path / "benchmark.yaml").write_text(json.dumps(config))
    assert run_benchmark(tmp_path / "benchmark.yaml") == 0
    # one of two patients, of whom each row is a phase
    assert len((tmp_path / "results" / "results.csv").read_text().splitlines()) == 1 + 2 * 2
