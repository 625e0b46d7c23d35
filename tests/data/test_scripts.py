import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from monai.transforms import LoadImage, Orientation

from grata.data import ScanReader, discover

ROOT = Path(__file__).resolve().parents[2]


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
    module.main()


def test_fetch_hippocampus_lays_out_by_stored_type(tmp_path, monkeypatch, capsys):
    task = tmp_path / "download" / "Task04_Hippocampus"
    properties = ("name", "description", "reference", "licence", "tensorImageSize")
    settings = dict.fromkeys(properties, "x") | {"modality": {"0": "MRI"}, "labels": {"0": "background"}}
    training = []
    for folder in ("imagesTr", "labelsTr"):
        (task / folder).mkdir(parents=True)
    for number, dtype in enumerate((np.float32, np.uint8, np.float32, np.uint8, np.float32, np.int16)):
        name = f"hippocampus_{number:03d}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(np.full((3, 3, 3), number, dtype), np.eye(4)), task / "imagesTr" / name)
        nibabel.save(nibabel.Nifti1Image(np.zeros((3, 3, 3), np.uint8), np.eye(4)), task / "labelsTr" / name)
        training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    settings |= {"training": training, "test": [], "numTraining": 6, "numTest": 0}
    (task / "dataset.json").write_text(json.dumps(settings))
    run(script("fetch_hippocampus"), monkeypatch, "--output_dir", tmp_path / "out", "--download_dir", task.parent)
    assert "source: 3 cases, target: 2 cases, left out: 1 cases" in capsys.readouterr().out
    for site, numbers in (("source", (0, 2, 4)), ("target", (1, 3))):
        cases = discover(tmp_path / "out" / site).cases
        assert [case["case"] for case in cases] == [f"hippocampus_{number:03d}" for number in numbers]
        assert all("label" in case for case in cases)


def test_sample_scans_of_the_bundle_can_be_used():
    found = discover(ROOT / "bundles" / "hippocampus_mri_segmentation" / "sample_scans")
    assert not found.faults
    assert sorted(case["format"] for case in found.cases) == ["dicom", "nifti", "nifti"]
    load, turn = LoadImage(reader=ScanReader, ensure_channel_first=True), Orientation("RAS", labels=None)
    images = {case["case"]: turn(load(case["image"])) for case in found.cases}
    (series,) = (image for name, image in images.items() if name.startswith("mr-"))
    np.testing.assert_array_equal(series, images["icbm152_right"])
    np.testing.assert_allclose(series.affine, images["icbm152_right"].affine)


def test_make_sample_scans_gives_the_same_bytes_again(tmp_path, monkeypatch):
    values = np.random.default_rng(0).integers(0, 255, (100, 60, 45)).astype(np.uint8)
    affine = np.diag([1.0, 1, 1, 1])
    affine[:3, 3] = -50, -50, -35
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "template.nii.gz")
    module = script("make_sample_scans")
    hashes = []
    for name in ("a", "b"):
        run(module, monkeypatch, "--template", tmp_path / "template.nii.gz", "--output_dir", tmp_path / name)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        hashes.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in files])
    assert hashes[0] == hashes[1] and len(hashes[0]) == 2 + 51 + 1
    cases = discover(tmp_path / "a").cases
    image = LoadImage(reader=ScanReader)(cases[0]["image"])
    world = np.array([-20.0, -30, 0])
    index = tuple(np.rint(nibabel.affines.apply_affine(np.linalg.inv(image.affine), world)).astype(int))
    assert image[index] == values[tuple((world - affine[:3, 3]).astype(int))]


def test_template_must_be_found(monkeypatch):
    module = script("make_sample_scans")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="--template"):
        module.find_template()
