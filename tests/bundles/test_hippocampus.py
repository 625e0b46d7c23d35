"""The hippocampus bundle through MONAI's own command line."""

import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from highdicom.seg import segread

from grata.methods import GraTa

COMMAND = [sys.executable, "-m", "monai.bundle"]


def hashes(folder):
    """Return the hashes of all files that must be equal, without those that hold seconds, bytes of memory or paths."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.name not in ("journal.jsonl", "summary.json", "state.pt", "paths.csv")
    }


def journal(folder):
    lines = [json.loads(line) for line in (Path(folder) / "journal.jsonl").read_text().splitlines()]
    measured = ("seconds", "seconds_predict", "seconds_judge", "peak_memory_mib")
    return [{k: v for k, v in line.items() if k not in measured} for line in lines]


def adapted_parameters(folder):
    return torch.load(Path(folder) / "state.pt", weights_only=True)["method"]


@pytest.fixture(scope="module")
def from_anywhere(adapt, bundle, tmp_path_factory):
    """The sample scans, adapted with another working directory than the bundle."""
    folder = tmp_path_factory.mktemp("anywhere")
    result = adapt(bundle, folder / "output", cwd=folder)
    return folder / "output", result


@pytest.fixture(scope="module")
def dataset(bundle, tmp_path_factory):
    """Labelled scans: one sample at three intensity scalings, with two boxes as the label."""
    folder = tmp_path_factory.mktemp("dataset")
    for name in ("images", "labels"):
        (folder / name).mkdir()
    source = nib.load(bundle / "sample_scans" / "nifti" / "icbm152_left.nii.gz")
    data = source.get_fdata()
    for i in range(3):
        image = nib.Nifti1Image((data ** (1 + 0.2 * i)).astype(np.float32), source.affine)
        nib.save(image, folder / "images" / f"scan_{i}.nii.gz")
        label = np.zeros(data.shape, np.uint8)
        label[10:25, 10:25, 10:25], label[10:25, 25:40, 10:25] = 1, 2
        nib.save(nib.Nifti1Image(label, source.affine), folder / "labels" / f"scan_{i}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def uninterrupted(adapt, bundle, dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    adapt(bundle, folder / "output", "--dataset_dir", dataset, cwd=folder)
    return folder / "output"


def test_both_kinds_of_sample_scans_end_as_segmentations_and_figures(from_anywhere, bundle):
    output, result = from_anywhere
    assert "3 of 3 cases finished" in result.stdout
    lines = journal(output)
    assert len(lines) == 3 and all(line["flags"] == [] and line["method"] == "grata" for line in lines)
    for line in lines:
        segmentation = nib.load(output / "segmentations" / f"{line['case']}.nii.gz")
        labels = np.asarray(segmentation.dataobj)
        volume = labels.astype(bool).sum() * abs(np.linalg.det(segmentation.affine[:3, :3]))
        assert set(np.unique(labels)) == {0, 1, 2}
        assert 1500 < volume < 8000  # mm³, a hippocampus
        assert (output / "figures" / f"{line['case']}.png").stat().st_size > 10_000
    rows = (output / "volumes.csv").read_text().splitlines()
    assert rows[0] == "case,site,variant,class,voxels,volume_ml"
    assert len(rows) == 1 + 3 * 2 * 2 and any(",grata,Anterior hippocampus," in row for row in rows)
    for name in ("icbm152_left", "icbm152_right"):
        image = nib.load(bundle / "sample_scans" / "nifti" / f"{name}.nii.gz")
        segmentation = nib.load(output / "segmentations" / f"{name}.nii.gz")
        np.testing.assert_array_equal(segmentation.affine, image.affine)
        assert segmentation.shape == image.shape


def test_the_same_hippocampus_is_found_in_nifti_and_in_dicom(from_anywhere):
    output, _ = from_anywhere
    (dicom,) = (output / "segmentations").glob("mr-*.nii.gz")
    a, b = (
        nib.as_closest_canonical(nib.load(path)) for path in (output / "segmentations" / "icbm152_right.nii.gz", dicom)
    )
    np.testing.assert_allclose(a.affine, b.affine, atol=1e-3)
    same = np.asarray(a.dataobj) == np.asarray(b.dataobj)
    assert same.mean() > 0.995


def test_the_dicom_seg_is_read_back_with_the_geometry_of_its_series(from_anywhere, bundle):
    output, _ = from_anywhere
    (path,) = (output / "segmentations").glob("*.seg.dcm")
    seg = segread(path)
    slices = [pydicom.dcmread(p) for p in (bundle / "sample_scans" / "dicom").rglob("*.dcm")]
    assert seg.number_of_segments == 2
    assert {d.segmented_property_type.meaning for d in (seg.get_segment_description(i) for i in (1, 2))} == {
        "Hippocampus"
    }
    assert {uids[2] for uids in seg.get_source_image_uids()} == {s.SOPInstanceUID for s in slices}
    volume = seg.get_volume(combine_segments=True)
    normal = np.cross(slices[0].ImageOrientationPatient[3:], slices[0].ImageOrientationPatient[:3])
    positions = sorted(float(np.dot(s.ImagePositionPatient, normal)) for s in slices)
    np.testing.assert_allclose(volume.pixel_spacing, slices[0].PixelSpacing, atol=1e-3)
    np.testing.assert_allclose(volume.spacing_between_slices, np.diff(positions).mean(), atol=1e-3)
    (nifti,) = (output / "segmentations").glob("mr-*.nii.gz")
    labels = nib.load(nifti)
    for value in (1, 2):
        index = np.argwhere(volume.array == value)
        lps = volume.map_indices_to_reference(index.astype(float)).mean(0)
        voxels = np.argwhere(np.asarray(labels.dataobj) == value)
        ras = nib.affines.apply_affine(labels.affine, voxels).mean(0)
        assert len(index) == len(voxels)
        np.testing.assert_allclose(lps * [-1, -1, 1], ras, atol=1e-3)


def test_two_runs_give_the_same_files_from_inside_the_bundle_as_from_anywhere(run, from_anywhere, bundle, tmp_path):
    output, _ = from_anywhere
    inside = tmp_path / "bundle"
    shutil.copytree(bundle, inside, ignore=shutil.ignore_patterns("output", "eval", "training"))
    run("run", "adapt", "--config_file", "configs/adapt.yaml", "--guard", "false", cwd=inside, afresh=True)
    assert hashes(inside / "output") == hashes(output) != {}
    assert journal(inside / "output") == journal(output)


def test_methods_and_settings_are_chosen_on_the_command_line(adapt, bundle, dataset, uninterrupted, tmp_path):
    one = tmp_path / "one"
    for name in ("images", "labels"):
        (one / name).mkdir(parents=True)
        shutil.copy(dataset / name / "scan_0.nii.gz", one / name)
    adapt(bundle, tmp_path / "ptbn", "--dataset_dir", one, "--method", "ptbn", "--site", "B", cwd=tmp_path)
    settings = ["--settings#lr", "0.01", "--settings#learning_rate_law", "constant", "--settings#views", "['identity']"]
    settings += ["--settings#optimizer", "SGD", "--settings#steps", "2", "--reset", "per-case", "--compare", "false"]
    adapt(bundle, tmp_path / "grata", "--dataset_dir", one, *settings, cwd=tmp_path)
    assert all(line["parameter_change"]["l2"] == 0 and line["site"] == "B" for line in journal(tmp_path / "ptbn"))
    lines = journal(tmp_path / "grata")
    assert all(len(line["steps"]) == 2 and line["learning_rate"] == 0.01 for line in lines)
    variants = {row.split(",")[2] for row in (tmp_path / "grata" / "scores.csv").read_text().splitlines()[1:]}
    assert variants == {"grata"}
    rows = (uninterrupted / "scores.csv").read_text().splitlines()
    assert rows[0] == "case,site,variant,class,dice,hd95,assd,unit"
    assert {row.split(",")[2] for row in rows[1:]} == {"source", "grata"}
    assert len(rows) == 1 + 3 * 2 * 2


@pytest.mark.parametrize(("after", "stop"), [(1, signal.SIGKILL), (2, signal.SIGINT)])
def test_a_stopped_run_that_is_resumed_ends_as_if_it_had_never_stopped(
    adapt, bundle, dataset, uninterrupted, tmp_path, after, stop
):
    output = tmp_path / "output"
    command = [*COMMAND, "run", "adapt", "--config_file", str(bundle / "configs" / "adapt.yaml")]
    command += ["--bundle_root", str(bundle), "--dataset_dir", str(dataset), "--output_dir", str(output)]
    command += ["--guard", "false"]
    # a shell starts what it runs in the background with Ctrl-C ignored, and the tests may run there
    heeding = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    # no thread is running here
    process = subprocess.Popen(command, cwd=tmp_path, preexec_fn=heeding, **pipes)  # noqa: PLW1509
    deadline = time.monotonic() + 240
    path = output / "journal.jsonl"
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_text().count("\n") >= after:
            break
        time.sleep(0.005)
    assert process.poll() is None, "the run ended before it could be stopped"
    os.kill(process.pid, stop)
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == -stop
    assert ("--resume true goes on with the rest" in shown) == (stop == signal.SIGINT)
    begun = len(journal(output))
    # Ctrl-C may come between a line and the state: the case is rolled back then, and its line with it
    assert after - (stop == signal.SIGINT) <= begun < 3
    result = adapt(bundle, output, "--dataset_dir", dataset, "--resume", "true", cwd=tmp_path)
    assert "3 of 3 cases finished" in result.stdout
    assert hashes(output) == hashes(uninterrupted)
    assert journal(output) == journal(uninterrupted)
    ours, theirs = adapted_parameters(output), adapted_parameters(uninterrupted)
    assert ours["parameters"].keys() == theirs["parameters"].keys()
    assert all(torch.equal(v, theirs["parameters"][k]) for k, v in ours["parameters"].items())
    assert torch.equal(ours["generator"], theirs["generator"])
    state = ours["optimizer"]["state"]
    assert all(torch.equal(v["exp_avg"], theirs["optimizer"]["state"][k]["exp_avg"]) for k, v in state.items())


def test_verify_metadata_accepts_the_bundle_and_refuses_a_broken_one(run, bundle, metadata_schema, tmp_path):
    (tmp_path / "schema.json").write_text(json.dumps(metadata_schema))
    arguments = ["verify_metadata", "--filepath", tmp_path / "schema.json", "--meta_file"]
    run(*arguments, bundle / "configs" / "metadata.json", cwd=tmp_path)
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]
    assert metadata["schema"].startswith("https://github.com/Project-MONAI/")
    del metadata["network_data_format"]["outputs"]
    (tmp_path / "broken.json").write_text(json.dumps(metadata))
    assert run(*arguments, tmp_path / "broken.json", cwd=tmp_path, check=False).returncode != 0


@pytest.mark.parametrize(("config", "run_id"), [("inference.json", "run"), ("adapt.yaml", "adapt")])
def test_the_workflows_have_the_properties_of_an_inference_bundle(bundle, config, run_id, check_workflow):
    check_workflow(bundle, config, run_id)


def test_the_network_takes_and_gives_what_the_metadata_say(run, bundle, tmp_path):
    run(
        *("verify_net_in_out", "--net_id", "network_def", "--device", "cpu"),
        *("--meta_file", bundle / "configs" / "metadata.json", "--config_file", bundle / "configs" / "inference.json"),
        cwd=tmp_path,
    )


def test_the_exported_network_can_be_adapted_as_well(run, adapt, bundle, from_anywhere, tmp_path):
    run(
        *("ckpt_export", "--net_id", "network_def", "--filepath", tmp_path / "model.ts"),
        *("--ckpt_file", bundle / "models" / "model.pt", "--meta_file", bundle / "configs" / "metadata.json"),
        *("--config_file", bundle / "configs" / "inference.json", "--input_shape", "[1,1,48,64,48]"),
        cwd=tmp_path,
    )
    adapt(bundle, tmp_path / "output", "--weights", tmp_path / "model.ts", cwd=tmp_path)
    ours, theirs = journal(tmp_path / "output"), journal(from_anywhere[0])
    for a, b in zip(ours, theirs):
        assert a["auxiliary_loss"] == pytest.approx(b["auxiliary_loss"], rel=1e-3)
        assert a["parameter_change"]["l2"] == pytest.approx(b["parameter_change"]["l2"], rel=0.05)
    for path in (tmp_path / "output" / "segmentations").glob("*.nii.gz"):
        twin = from_anywhere[0] / "segmentations" / path.name
        assert (np.asarray(nib.load(path).dataobj) == np.asarray(nib.load(twin).dataobj)).mean() > 0.999
    scripted = torch.jit.load(tmp_path / "model.ts")
    assert len(GraTa(scripted, activation="softmax").parameters) == len(
        adapted_parameters(from_anywhere[0])["parameters"]
    )


def test_the_overlay_on_plain_inference_predicts_as_adapt_does(with_overlay, from_anywhere, bundle, tmp_path):
    with_overlay(bundle, tmp_path / "output", "--dataset_dir", bundle / "sample_scans" / "nifti", cwd=tmp_path)
    own, _ = from_anywhere
    for case in ("icbm152_left", "icbm152_right"):
        expected = nib.load(own / "segmentations" / f"{case}.nii.gz")
        found = nib.load(tmp_path / "output" / f"{case}_seg.nii.gz")
        assert np.array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj)) and expected.get_fdata().any()
        assert np.allclose(found.affine, expected.affine)
    keys = ("case", "loss", "cosine", "learning_rate", "parameter_change")
    lines = [[line[key] for key in keys] for line in journal(tmp_path / "output" / "adaptation")]
    assert lines == [[line[key] for key in keys] for line in journal(own)[:2]]


def test_plain_inference_and_evaluation_need_nothing_but_monai(run, bundle, dataset, tmp_path):
    files = bundle / "configs" / "inference.json", bundle / "configs" / "evaluate.json"
    assert "grata" not in files[0].read_text() + files[1].read_text()
    common = ["--bundle_root", bundle, "--output_dir", tmp_path / "eval"]
    run("run", "--config_file", files[0], *common, cwd=tmp_path)
    assert len(list((tmp_path / "eval").glob("*_seg.nii.gz"))) == 2
    both = str([str(file) for file in files])
    run("run", "evaluating", "--config_file", both, *common, "--dataset_dir", dataset, cwd=tmp_path)
    assert "val_mean_dice" in (tmp_path / "eval" / "metrics.csv").read_text()


def test_training_runs_from_the_bundles_own_workflow(run, bundle, dataset, tmp_path):
    arguments = ["--max_epochs", 1, "--val_interval", 1, "--batch_size", 1, "--cache_rate", 0.0, "--val_stride", 2]
    run(
        *("run", "training", "--config_file", bundle / "configs" / "train.yaml", "--bundle_root", bundle),
        *("--dataset_dir", dataset, "--ckpt_dir", tmp_path, *arguments),
        cwd=tmp_path,
    )
    trained = torch.load(tmp_path / "model.pt", weights_only=True)
    shipped = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert {k: v.shape for k, v in trained.items()} == {k: v.shape for k, v in shipped.items()}
