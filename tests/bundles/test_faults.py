"""Every fault that a user can meet, produced through the command itself."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from filelock import FileLock
from monai.networks.nets import UNet
from pydicom.uid import generate_uid

pytestmark = pytest.mark.skipif(os.name == "nt", reason="file permissions and limits of POSIX")

GOOD = ("a_first", "labelled", "z_last", "mr-series007-197e8026")

# Parts of the message on each faulty scan: the file, series or case, what is wrong, and the remedy.
SCAN_FAULTS = {
    "empty NIfTI": ("empty.nii.gz", "0 bytes", "export it again"),
    "NIfTI truncated in its voxels": ("truncated.nii.gz", "truncated", "export it again"),
    "NIfTI truncated in its header": ("no_header.nii", "truncated", "export it again"),
    "2D NIfTI": ("flat.nii.gz", "is 2D (32 × 40 × 1 voxels)", "3D image"),
    "NIfTI with NaN": ("'nan'", "1 NaN or infinite values", "export it again"),
    "constant NIfTI": ("'constant'", "the same value (7) everywhere", "Export it again"),
    "prediction that is not finite": ("overflow", "prediction holds NaN", "Export the scan again"),
    "NIfTI of two channels": ("'two_channels'", "2 channels, but this bundle needs 1", "Give it the sequence"),
    "label with another class": ("miscoded.nii.gz", "holds the values 4", "Correct the label"),
    "label of another shape": (
        "mislabelled.nii.gz",
        "shape 30 × 40 × 32 instead of 32 × 40 × 32",
        "Resample the label",
    ),
    "unreadable folder": ("'scan_17'", "cannot be read", "Check its permissions"),
    "unreadable NIfTI": ("locked.nii.gz", "Permission denied", "Check its permissions"),
    "empty DICOM file": ("/IM0000.dcm", "0 bytes", "Copy or export it again"),
    "empty DICOM slice": ("in 'dicom/empty_slice'", "0 bytes", "Copy or export it again"),
    "DICOM slice truncated in its header": ("in 'dicom/truncated_header'", "truncated", "export it again"),
    "DICOM slice truncated in its pixels": ("in 'dicom/truncated_pixels'", "truncated", "Export the series again"),
    "missing slice": ("in 'dicom/missing_slice'", "a slice is missing", "Export the series again, complete"),
    "mixed orientation": ("in 'dicom/mixed_orientation'", "mixed orientations", "select, as in Orientation=axial"),
    "slices at one position": ("in 'dicom/duplicate_position'", "duplicate slices", "Export the series again"),
    "one UID for two images": (
        "in 'dicom/one_uid'",
        "same SOP Instance UID, but differ in Pixel Data",
        "Remove the wrong",
    ),
    "2D DICOM": ("in 'dicom/single_slice'", "single slice", "Export the series again, complete"),
    "unreadable DICOM slice": ("in 'dicom/locked_slice'", "Permission denied", "export it again"),
}


def tree(folder: Path) -> dict[str, str]:
    """Return the hashes of all files below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def journal(output: Path) -> dict[str, dict]:
    return {line["case"]: line for line in map(json.loads, (output / "journal.jsonl").read_text().splitlines())}


def check_complete(output: Path, case: str, method: str = "grata") -> None:
    """Check that a finished case has a segmentation, a figure and a journal line."""
    labels = nibabel.load(output / "segmentations" / f"{case}.nii.gz")
    assert set(np.unique(np.asarray(labels.dataobj))) <= {0, 1, 2}
    assert (output / "figures" / f"{case}.png").read_bytes().startswith(b"\x89PNG")
    line = journal(output)[case]
    assert line["method"] == method and "fault" not in line


def edited_config(bundle: Path, folder: Path, old: str, new: str) -> Path:
    """Return the adapt.yaml of a copy of the bundle's configs with one line changed."""
    configs = folder / f"configs-{hashlib.sha256(new.encode()).hexdigest()[:8]}"
    shutil.copytree(bundle / "configs", configs)
    text = (configs / "adapt.yaml").read_text()
    assert text.count(old) == 1
    (configs / "adapt.yaml").write_text(text.replace(old, new))
    return configs / "adapt.yaml"


def foreign_weights(path: Path) -> Path:
    torch.save(UNet(3, 1, 3, channels=(4, 8), strides=(2,)).state_dict(), path)
    return path


def corrupt_weights(path: Path, bundle: Path) -> Path:
    whole = (bundle / "models" / "model.pt").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


class Payload:
    """Object that makes a folder when it is unpickled, as a foreign pickle may do."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def pickled_weights(path: Path) -> Path:
    torch.save({"weight": Payload(path.with_suffix(".executed"))}, path)
    return path


def read_only(folder: Path) -> Path:
    folder.mkdir(mode=0o555)
    return folder


def below_a_file(path: Path) -> Path:
    path.write_text("")
    return path / "results"


# Arguments of the command, and parts of its message: the key or the file, what is wrong, and the remedy.
REFUSALS: dict[str, tuple[Callable[[Path, Path], tuple], tuple[str, ...]]] = {
    "missing weights": (
        lambda folder, bundle: ("--weights", folder / "none.pt"),
        ("weights: ", "none.pt does not exist", "--weights <file>"),
    ),
    "foreign weights": (
        lambda folder, bundle: ("--weights", foreign_weights(folder / "foreign.pt")),
        (
            "weights: ",
            "foreign.pt does not belong to this UNet",
            "missing, e.g. model.",
            "Give the weights of this network",
        ),
    ),
    "corrupt weights": (
        lambda folder, bundle: ("--weights", corrupt_weights(folder / "corrupt.pt", bundle)),
        ("weights: ", "corrupt.pt cannot be read", "copy it again"),
    ),
    "weights that run code": (
        lambda folder, bundle: ("--weights", pickled_weights(folder / "pickled.pt")),
        ("weights: ", "pickled.pt cannot be read as a state dict", "torch.save(network.state_dict(), ...)"),
    ),
    "mistyped override": (lambda folder, bundle: ("--metod", "ptbn"), ("metod", "no such key", "Did you mean method?")),
    "mistyped nested override": (
        lambda folder, bundle: ("--settings#lrr", "1e-3"),
        ("settings#lrr", "no such setting", "did you mean settings#lr?"),
    ),
    "mistyped window override": (lambda folder, bundle: ("--windows#rand", 3), ("windows#rand", "random")),
    "mistyped key in the file": (
        lambda folder, bundle: (
            *("--config_file", edited_config(bundle, folder, "\nmodality: null", "\nmodalty: MR\nmodality: null")),
        ),
        ("modalty", "no such key", "Did you mean modality?"),
    ),
    "mistyped key in a component": (
        lambda folder, bundle: ("--config_file", edited_config(bundle, folder, "  overlap: 0.5", "  overlaps: 0.5")),
        ("inferer#overlaps", "unexpected keyword argument", "Did you mean inferer#overlap?"),
    ),
    "mistyped key in a transform": (
        lambda folder, bundle: ("--config_file", edited_config(bundle, folder, "axcodes: RAS", "axcode: RAS")),
        ("preprocessing#transforms#5#axcode", "unexpected keyword argument", "preprocessing#transforms#5#axcodes?"),
    ),
    "mistyped reference in the file": (
        lambda folder, bundle: (
            *("--config_file", edited_config(bundle, folder, "inferer: '@inferer'", "inferer: '@infererr'")),
        ),
        ("evaluator#inferer", "@infererr", "no such key", "Did you mean @inferer?"),
    ),
    "mistyped setting of another method": (
        lambda folder, bundle: ("--method", "ptbn", "--settings#lrr", 1),
        ("settings#lrr", "ptbn has no such setting"),
    ),
    "settings that are none": (lambda folder, bundle: ("--settings", 3), ("settings", "--settings#<setting>")),
    "word for a switch": (lambda folder, bundle: ("--overwrite", "no"), ("overwrite", "true or false", "'no'")),
    "word for a policy": (lambda folder, bundle: ("--reset", "often"), ("reset", "'often'", "per-case")),
    "word for a number": (lambda folder, bundle: ("--settings#lr", "fast"), ("settings#lr", "finite number", "'fast'")),
    "word for the seed": (lambda folder, bundle: ("--seed", "abc"), ("seed", "whole number", "'abc'")),
    "nothing for the scans": (lambda folder, bundle: ("--dataset_dir", ""), ("dataset_dir", "needs a value, got ''")),
    "nothing for the output": (lambda folder, bundle: ("--output_dir", ""), ("output_dir", "needs a value, got ''")),
    "number for a folder": (lambda folder, bundle: ("--dataset_dir", 20240611), ("dataset_dir", "Write ./ before")),
    "file for a folder": (
        lambda folder, bundle: ("--dataset_dir", bundle / "sample_scans" / "nifti" / "icbm152_left.nii.gz"),
        ("dataset_dir", "is a file", "Name the folder"),
    ),
    "folder for the weights": (
        lambda folder, bundle: ("--weights", folder),
        ("weights", "is a folder", "Name the file"),
    ),
    "several cases at once": (
        lambda folder, bundle: ("--dataloader#batch_size", 2),
        ("dataloader#batch_size", "got 2"),
    ),
    "shuffled cases": (lambda folder, bundle: ("--dataloader#shuffle", "true"), ("dataloader#shuffle", "in order")),
    "two ways with an earlier run": (
        lambda folder, bundle: ("--resume", "true", "--overwrite", "true"),
        ("resume, overwrite", "Give one of them"),
    ),
    "no handlers": (lambda folder, bundle: ("--handlers", "[]"), ("handlers", "@outputs and @adaptation")),
    "incomplete segment": (lambda folder, bundle: ("--segments#0#valu", 3), ("segments#0#valu", "The keys are")),
    "device of another kind": (lambda folder, bundle: ("--device", "meta"), ("device: meta", "Use --device cpu")),
    "unknown learning rate law": (
        lambda folder, bundle: ("--settings#learning_rate_law", "cubic"),
        ("learning_rate_law", "'cubic'", "quadratic, linear, softplus, constant"),
    ),
    "unknown method": (lambda folder, bundle: ("--method", "gratta"), ("method", "'gratta'", "Did you mean grata?")),
    "empty data folder": (
        lambda folder, bundle: ("--dataset_dir", folder),
        ("dataset_dir", "holds no NIfTI file and no DICOM image", "Name the folder of the scans"),
    ),
    "missing data folder": (
        lambda folder, bundle: ("--dataset_dir", folder / "nowhere"),
        ("dataset_dir", "nowhere' ", "does not exist", "Name an existing folder"),
    ),
    "device that is not there": (
        lambda folder, bundle: ("--device", "cuda"),
        ("device: cuda", "sees 0 CUDA devices", "Use --device cpu"),
    ),
    "read-only output folder": (
        lambda folder, bundle: ("--output_dir", read_only(folder / "read_only")),
        ("read_only", "Permission denied", "name a folder that you may write to"),
    ),
    "output folder below a file": (
        lambda folder, bundle: ("--output_dir", below_a_file(folder / "file")),
        ("file/results", "Not a directory", "name a folder that you may write to"),
    ),
}


def write_scans(root: Path, scans: type) -> None:
    volume = scans.volume()
    for seed, name in enumerate(GOOD[:3]):
        scans.save_volume(scans.volume(seed=seed), root / f"{name}.nii.gz")
    scans.save_volume((volume > 150).astype(np.uint8), root / "labelled_seg.nii.gz")
    # The normalization divides by the range of values, which here exceeds float32.
    scans.save_volume(np.where(volume > 150, 3e38, -3e38).astype(np.float32), root / "overflow.nii.gz")

    (root / "empty.nii.gz").write_bytes(b"")
    whole = (root / "a_first.nii.gz").read_bytes()
    (root / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    (root / "no_header.nii").write_bytes(b"\x5c\x01\x00\x00" + bytes(96))
    scans.save_volume(volume[..., :1], root / "flat.nii.gz")
    with_nan = volume.copy()
    with_nan[3, 4, 5] = np.nan
    scans.save_volume(with_nan, root / "nan.nii.gz")
    scans.save_volume(np.full_like(volume, 7), root / "constant.nii.gz")
    scans.save_volume(np.stack([volume, volume], axis=-1), root / "two_channels.nii.gz")
    scans.save_volume(volume, root / "images" / "mislabelled.nii.gz")
    scans.save_volume(np.zeros((30, 40, 32), np.uint8), root / "labels" / "mislabelled.nii.gz")
    scans.save_volume(volume, root / "images" / "miscoded.nii.gz")
    scans.save_volume(np.full(volume.shape, 4, np.uint8), root / "labels" / "miscoded.nii.gz")
    scans.save_volume(volume, root / "scan_17" / "scan.nii.gz").parent.chmod(0)
    scans.save_volume(volume, root / "locked.nii.gz").chmod(0)

    def series(name: str, orientation: str = "axial", slices: int = 24) -> list:
        return scans.series(orientation, name, slices, size=(40, 32))

    # A folder named after the patient, as many exports are.
    scans.save(series("good"), root / "Mustermann_Erika_19610824")
    dicom = root / "dicom"
    (dicom / "empty_file").mkdir(parents=True)
    (dicom / "empty_file" / "IM0000.dcm").write_bytes(b"")
    scans.save(series("empty_slice"), dicom / "empty_slice")[9].write_bytes(b"")
    for name, size in (("truncated_header", 140), ("truncated_pixels", -100)):
        path = scans.save(series(name), dicom / name)[9]
        path.write_bytes(path.read_bytes()[:size])
    missing = series("missing_slice")
    scans.save(missing[:9] + missing[10:], dicom / "missing_slice")
    mixed = series("mixed_orientation")
    mixed[9].ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    scans.save(mixed, dicom / "mixed_orientation")
    duplicate = series("duplicate_position")
    duplicate[9].ImagePositionPatient = duplicate[8].ImagePositionPatient
    scans.save(duplicate, dicom / "duplicate_position")
    one_uid = series("one_uid")
    one_uid[9].SOPInstanceUID = one_uid[8].SOPInstanceUID
    for name in ("ImagePositionPatient", "InstanceNumber"):
        setattr(one_uid[9], name, getattr(one_uid[8], name))
    scans.save(one_uid, dicom / "one_uid")
    scans.save(series("single_slice", slices=1), dicom / "single_slice")
    scans.save(series("locked_slice"), dicom / "locked_slice")[9].chmod(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def refusals(request, folder, bundle, run_adapt, in_background):
    """Futures by name of the commands that are refused at once, for the selected tests only."""
    selected = [
        i.callspec.params["refusal"] for i in request.session.items if "refusal" in getattr(i, "fixturenames", ())
    ]
    futures = {}
    for number, name in enumerate(selected):
        own = folder / f"refusal-{number}"
        own.mkdir()
        arguments = ("--output_dir", own / "results", *REFUSALS[name][0](own, bundle))
        futures[name] = own, in_background(run_adapt, own, *arguments)
    return futures


@pytest.fixture(scope="module")
def faulty_run(folder, scans, run_adapt):
    """Outcome and output folder of a run over good and faulty scans."""
    write_scans(folder / "scans", scans)
    arguments = ("--dataset_dir", folder / "scans", "--output_dir", folder / "results", "--seed", 1)
    return run_adapt(folder, *arguments), folder / "results"


def test_a_run_with_faults_ends_with_a_summary_and_a_non_zero_status(faulty_run):
    run, output = faulty_run
    assert run.status == 1
    assert "Traceback" not in run.text
    found = len(GOOD) + len(SCAN_FAULTS)
    assert f"{len(GOOD)} of {found} cases finished" in run.text and f"{len(SCAN_FAULTS)} faults" in run.text
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["cases_finished"], summary["cases_found"]) == (len(GOOD), found)


@pytest.mark.parametrize("fault", SCAN_FAULTS)
def test_the_summary_names_the_scan_what_is_wrong_and_the_remedy(faulty_run, fault):
    run, output = faulty_run
    faults = json.loads((output / "summary.json").read_text())["faults"]
    listed = [f"{f['case']}: {f['message']}" for f in faults]
    (message,) = [line for line in listed if all(word in line for word in SCAN_FAULTS[fault])]
    assert message in run.text[run.text.index("cases finished in") :]


@pytest.mark.parametrize("case", GOOD)
def test_the_other_cases_are_finished_and_kept(faulty_run, case):
    check_complete(faulty_run[1], case)


def test_nothing_is_left_of_faulty_cases_but_their_message(faulty_run):
    output = faulty_run[1]
    names = {path.name for path in (output / "segmentations").iterdir()}
    assert names == {*(f"{case}.nii.gz" for case in GOOD), f"{GOOD[-1]}.seg.dcm"}
    assert {path.stem for path in (output / "figures").iterdir()} == set(GOOD)
    assert {case for case, line in journal(output).items() if "fault" not in line} == set(GOOD)
    rows = (output / "scores.csv").read_text().splitlines()[1:]
    assert rows and all(row.startswith("labelled,") for row in rows)


def test_cases_after_one_that_is_not_finite_go_on_from_the_parameters_before_it(faulty_run):
    lines = journal(faulty_run[1])
    cases = list(lines)
    assert cases.index("overflow") < cases.index("z_last")
    for case in ("labelled", "z_last"):
        assert lines[case]["flags"] == [] and 0 < lines[case]["parameter_change"]["l2"] < 1


def test_nothing_that_is_shown_or_named_identifies_the_patient(faulty_run, scans):
    run, output = faulty_run
    shown = run.text + "".join(tree(output))
    shown += "".join(
        path.read_text()
        for path in output.rglob("*")
        # The one file that holds paths as they are, for the user alone.
        if path.suffix in (".json", ".jsonl", ".csv") and path.name != "paths.csv"
    )
    for identifier in scans.patient:
        assert identifier not in shown.lower()
    for uid in (generate_uid(entropy_srcs=["good"]), generate_uid(entropy_srcs=["study"])):
        assert uid not in shown


@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_cannot_run_is_refused_with_one_message(refusals, refusal):
    if refusal == "device that is not there" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    own, future = refusals[refusal]
    run = future.result()
    assert run.status != 0
    assert "Traceback" not in run.text
    (message,) = [line for line in run.text.splitlines() if line.startswith("error: ")]
    for word in REFUSALS[refusal][1]:
        assert word in message
    assert not list(own.rglob("*.nii.gz"))


def test_weights_that_run_code_were_not_executed(refusals):
    own, future = refusals["weights that run code"]
    future.result()
    assert (own / "pickled.pt").is_file() and not (own / "pickled.executed").exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((), ("holds the results of an earlier run", "--resume true", "--overwrite true")),
        (("--overwrite", "false"), ("holds the results of an earlier run",)),
        (("--resume", "true", "--seed", 2), ("other settings (seed)", "another output_dir")),
        (("--resume", "true", "--inferer#overlap", 0.25), ("other settings (inferer#overlap)", "another output_dir")),
    ],
    ids=["without a word on it", "overwrite false", "resumed with another seed", "resumed with another overlap"],
)
def test_an_earlier_run_is_not_lost(faulty_run, folder, run_adapt, arguments, words):
    before = tree(folder / "results")
    dataset = ("--dataset_dir", folder / "scans", "--output_dir", folder / "results")
    run = run_adapt(folder, *dataset, *(arguments if "--seed" in arguments else (*arguments, "--seed", 1)))
    assert run.status == 1 and "Traceback" not in run.text
    (message,) = [line for line in run.text.splitlines() if line.startswith("error: ")]
    assert str(folder / "results") in message and all(word in message for word in words)
    assert tree(folder / "results") == before


def test_a_full_disk_stops_the_run_and_keeps_what_is_finished(faulty_run, folder, scans, run_adapt):
    figure = (faulty_run[1] / "figures" / "a_first.png").stat().st_size
    dataset, output = folder / "for_full_disk", folder / "full_disk"
    scans.save_volume(scans.volume(), dataset / "a_first.nii.gz")
    noise = np.random.default_rng(0).random((96, 96, 40)).astype(np.float32)
    for name in ("b_too_large", "c_third"):
        scans.save_volume(noise, dataset / f"{name}.nii.gz")
    arguments = ("--dataset_dir", dataset, "--output_dir", output, "--method", "ptbn")

    run = run_adapt(folder, *arguments, largest_file=int(1.2 * figure))
    assert run.status == 1 and "Traceback" not in run.text
    assert "1 of 3 cases finished" in run.text
    assert f"b_too_large: Cannot write to the output folder '{output}" in run.text
    assert "File too large" in run.text and "Free some space" in run.text
    assert "2 cases are left" in run.text and "--resume true" in run.text
    check_complete(output, "a_first", "ptbn")
    assert [path.name for path in output.rglob(".*")] == [".lock"]

    finished = tree(output / "figures")
    run = run_adapt(folder, *arguments, "--resume", "true")
    assert run.status == 0 and "3 of 3 cases finished" in run.text
    for case in ("a_first", "b_too_large", "c_third"):
        check_complete(output, case, "ptbn")
    assert finished.items() <= tree(output / "figures").items()


def test_tracebacks_are_shown_when_they_are_asked_for(folder, scans, run_adapt):
    path = scans.save_volume(scans.volume(), folder / "only_bad" / "scan.nii.gz")
    path.write_bytes(path.read_bytes()[:-2000])
    run = run_adapt(folder, "--dataset_dir", path.parent, "--output_dir", folder / "traceback", "--traceback", "true")
    assert run.status == 1
    assert "Traceback (most recent call last)" in run.text and "GrataError: NIfTI file" in run.text
    assert "0 of 1 cases finished" in run.text


def test_a_step_that_is_not_finite_is_skipped_and_journalled(folder, scans, run_adapt):
    for seed in (0, 1):
        scans.save_volume(scans.volume(seed=seed), folder / "good_scans" / f"scan{seed}.nii.gz")
    output = folder / "not_finite"
    # Noise beyond float32: the strong view, and with it the pseudo loss, is NaN whatever the network does.
    noise = ("--settings#strong_view", "{'noise': [3e38, 3e38], 'probabilities': [0, 0, 0, 1, 0]}")
    run = run_adapt(folder, "--dataset_dir", folder / "good_scans", "--output_dir", output, *noise)
    assert run.status == 0 and "2 of 2 cases finished" in run.text
    for case in ("scan0", "scan1"):
        check_complete(output, case)
        line = journal(output)[case]
        assert line["flags"] == ["non_finite_loss", "step_skipped"]
        assert line["loss"] is None and line["parameter_change"]["l2"] == 0
        assert f"{case}: adaptation skipped (non_finite_loss" in run.text


def test_an_earlier_run_is_replaced_whole_and_nothing_else_is_touched(folder, scans, run_adapt):
    output = folder / "replaced"
    for name in ("first", "second"):
        scans.save_volume(scans.volume(), folder / name / f"{name}.nii.gz")
    (folder / "first" / "labels").mkdir()
    scans.save_volume((scans.volume() > 150).astype(np.uint8), folder / "first" / "first_seg.nii.gz")
    assert run_adapt(folder, "--dataset_dir", folder / "first", "--output_dir", output).status == 0
    assert (output / "scores.csv").exists() and (output / "overview.png").exists()
    (output / "segmentations" / "mine.txt").write_text("notes")
    arguments = (
        "--dataset_dir",
        folder / "second",
        "--output_dir",
        output,
        "--overwrite",
        "true",
        "--method",
        "source",
    )
    assert run_adapt(folder, *arguments).status == 0
    assert set(tree(output)) == {
        "segmentations/mine.txt", "segmentations/second.nii.gz", "figures/second.png", "journal.jsonl", "paths.csv",
        "state.pt", "summary.json", "volumes.csv", ".lock",
    }  # fmt: skip


def test_results_among_the_scans_are_not_taken_for_scans(folder, scans, run_adapt):
    dataset = folder / "with_results"
    scans.save_volume(scans.volume(), dataset / "scan.nii.gz")
    for output in (dataset / "results", dataset, dataset / "again"):
        run = run_adapt(folder, "--dataset_dir", dataset, "--output_dir", output, "--method", "source")
        assert run.status == 0 and "1 of 1 cases finished" in run.text


def test_a_run_goes_on_when_finished_scans_have_been_taken_away(folder, scans, run_adapt):
    dataset, output = folder / "shrinking", folder / "shrunk"
    for name in ("a", "b"):
        scans.save_volume(scans.volume(), dataset / f"{name}.nii.gz")
        scans.save_volume((scans.volume() > 150).astype(np.uint8), dataset / f"{name}_seg.nii.gz")
    arguments = ("--dataset_dir", dataset, "--output_dir", output)
    assert run_adapt(folder, *arguments).status == 0
    for path in dataset.glob("a*"):
        path.unlink()
    run = run_adapt(folder, *arguments, "--resume", "true")
    assert run.status == 0 and "2 of 2 cases finished" in run.text
    (output / "state.pt").write_bytes(b"damaged")
    run = run_adapt(folder, *arguments, "--resume", "true")
    assert run.status == 1 and "state.pt is damaged" in run.text and "weights_only" not in run.text
    (output / "state.pt").unlink()
    run = run_adapt(folder, *arguments, "--resume", "true")
    assert run.status == 1 and "has lost its state.pt" in run.text
    check_complete(output, "a")


def test_faults_in_worker_processes_read_like_any_other(folder, scans, run_adapt):
    dataset = folder / "for_workers"
    for name in ("a", "b", "c", "d"):
        scans.save_volume(scans.volume(), dataset / f"{name}.nii.gz")
    for name in ("a", "c"):
        path = dataset / f"{name}.nii.gz"
        path.write_bytes(path.read_bytes()[:-2000])
    arguments = ("--dataset_dir", dataset, "--output_dir", folder / "workers", "--num_workers", 2)
    run = run_adapt(folder, *arguments)
    assert run.status == 1 and "2 of 4 cases finished" in run.text
    assert "Traceback" not in run.text and "Caught" not in run.text
    for fault in json.loads((folder / "workers" / "summary.json").read_text())["faults"]:
        assert fault["message"].startswith("NIfTI file") and "truncated" in fault["message"]
    for case in ("b", "d"):
        check_complete(folder / "workers", case)


def test_outputs_of_a_case_that_a_killed_run_had_begun_do_not_stay_behind(folder, scans, run_adapt):
    dataset, output = folder / "for_orphans", folder / "orphans"
    scans.save_volume(scans.volume(), dataset / "scan.nii.gz")
    # The state that a run leaves when it is killed between the first file of a case and its journal line.
    (output / "segmentations").mkdir(parents=True)
    (output / "segmentations" / "gone.nii.gz").touch()
    (output / ".begun").write_text("gone")
    assert run_adapt(folder, "--dataset_dir", dataset, "--output_dir", output, "--method", "source").status == 0
    assert [path.name for path in (output / "segmentations").iterdir()] == ["scan.nii.gz"]
    assert not (output / ".begun").exists()


def test_two_runs_do_not_share_an_output_folder(folder, scans, run_adapt):
    scans.save_volume(scans.volume(), folder / "for_lock" / "scan.nii.gz")
    output = folder / "locked_output"
    output.mkdir()
    with FileLock(output / ".lock"):
        run = run_adapt(folder, "--dataset_dir", folder / "for_lock", "--output_dir", output)
    assert run.status == 1 and "another run is writing" in run.text and str(output) in run.text
