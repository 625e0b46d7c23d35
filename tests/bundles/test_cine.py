"""A bundle whose files hold the phases of the heart along a fourth axis, from its command line to its outputs."""

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

PHASES = 3


@pytest.fixture(scope="module")
def config(bundle, tmp_path_factory) -> Path:
    """The configuration of a bundle with the two lines that a cine bundle has more."""
    lines = (bundle / "configs" / "adapt.yaml").read_text().splitlines(keepends=True)
    (select,) = (number for number, line in enumerate(lines) if line == "  select: '@select'\n")
    lines.insert(select, "  fourth_axis: phases\n")
    (check,) = (number for number, line in enumerate(lines) if "grata.data.CheckScand" in line)
    take = "    - {_target_: grata.data.TakePhased, keys: [image, label], allow_missing_keys: true}\n"
    lines.insert(check, take)
    path = tmp_path_factory.mktemp("config") / "adapt.yaml"
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def dataset(scans, tmp_path_factory) -> Path:
    """A file of three phases with labels, and the first of these phases as a file of its own without labels."""
    folder = tmp_path_factory.mktemp("cine") / "Mustermann"
    volumes = [scans.volume((24, 28, 20), seed) for seed in range(PHASES)]
    save(np.stack(volumes, -1), folder / "images" / "patient001_4d.nii.gz")
    save(labels(), folder / "labels" / "patient001_4d.nii.gz")
    save(volumes[0], folder / "images" / "patient002.nii.gz")
    return folder


def labels() -> np.ndarray:
    """Label maps that have no phase in common, and as much with any prediction."""
    return np.random.default_rng(0).integers(0, 2, (24, 28, 20, PHASES)).astype(np.uint8)


def save(array, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, np.diag([-1.0, -1.0, 1.2, 1.0]))
    image.set_sform(image.affine, code=1)
    nibabel.save(image, path)


@pytest.fixture(scope="module")
def adapted(run_adapt, config, dataset, tmp_path_factory):
    """Function that adapts to the data set, and returns the folder of the outputs and what was shown."""

    def adapted(output, *options):
        arguments = ("--config_file", config, "--dataset_dir", dataset, "--output_dir", output, "--method", "ptbn")
        outcome = run_adapt(output.parent, *arguments, *options)
        assert outcome.status == 0, outcome.text
        return outcome.text

    return adapted


@pytest.fixture(scope="module")
def finished(adapted, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "output"
    return output, adapted(output)


IDS = [*(f"patient001_4d-CardiacPhase0{number}" for number in range(1, PHASES + 1)), "patient002"]


def test_each_phase_ends_as_a_stack_of_its_own(finished):
    output, shown = finished
    assert "4 of 4 cases finished" in shown and "1 file holds several phases of the heart" in shown
    lines = [json.loads(line) for line in (output / "journal.jsonl").read_text().splitlines()]
    assert [line["case"] for line in lines] == IDS
    for case in IDS:
        image = nibabel.load(output / "segmentations" / f"{case}.nii.gz")
        assert image.shape == (24, 28, 20)
        np.testing.assert_allclose(image.affine, np.diag([-1.0, -1.0, 1.2, 1.0]))
        assert (output / "figures" / f"{case}.png").is_file()
    first, second, _, alone = ((output / "segmentations" / f"{case}.nii.gz").read_bytes() for case in IDS)
    assert first == alone != second


def test_labels_are_those_of_the_phase_and_paths_those_of_the_file(finished):
    output, _ = finished
    with open(output / "scores.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["variant"] == "ptbn" and row["class"].startswith("Ant")]
    assert [row["case"] for row in rows] == IDS[:3]
    every_label = np.moveaxis(labels(), -1, 0)
    for phase, row in enumerate(rows):
        predicted = nibabel.load(output / "segmentations" / f"{IDS[phase]}.nii.gz").get_fdata() == 1
        overlap = [2 * (predicted & (label == 1)).sum() / (predicted.sum() + label.sum()) for label in every_label]
        assert float(row["dice"]) == pytest.approx(overlap[phase], abs=1e-6)
        assert len(set(overlap)) == PHASES
    with open(output / "paths.csv", newline="") as file:
        places = {row["case"]: Path(row["path"]).name for row in csv.DictReader(file)}
    assert places == {case: "patient002.nii.gz" if case == IDS[3] else "patient001_4d.nii.gz" for case in IDS}


def test_a_run_goes_on_with_the_phases_that_are_left(adapted, finished, tmp_path):
    output = tmp_path / "output"
    assert "2 of 2 cases finished" in adapted(output, "--select", "CardiacPhase=2")
    before = (output / "segmentations" / f"{IDS[1]}.nii.gz").stat().st_mtime_ns
    assert "4 of 4 cases finished" in adapted(output, "--resume", "true")
    assert (output / "segmentations" / f"{IDS[1]}.nii.gz").stat().st_mtime_ns == before
    lines = [json.loads(line)["case"] for line in (output / "journal.jsonl").read_text().splitlines()]
    assert lines == [IDS[1], IDS[3], IDS[0], IDS[2]]
    for case in IDS:
        name = Path("segmentations", f"{case}.nii.gz")
        assert (output / name).read_bytes() == (finished[0] / name).read_bytes()


def test_a_phase_that_nobody_has_outlined_has_no_score(adapted, dataset, tmp_path):
    partly = labels()
    partly[..., 1] = 0
    save(partly, tmp_path / "partly" / "patient001_4d.nii.gz")
    output = tmp_path / "output"
    select = "CardiacPhase=1,CardiacPhase=2"
    assert "3 of 3 cases finished" in adapted(output, "--labels_dir", tmp_path / "partly", "--select", select)
    with open(output / "scores.csv", newline="") as file:
        assert {row["case"] for row in csv.DictReader(file)} == {IDS[0]}
    assert (output / "segmentations" / f"{IDS[1]}.nii.gz").is_file()
