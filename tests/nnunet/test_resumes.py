"""nnU-Net's runs that are killed, or do not fit the memory, without a trained network."""

import contextlib
import json
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest

from grata.errors import GrataError
from grata.nnunet.run import _Run
from grata.session import Journal


class Preprocessor:
    """nnU-Net's order: read, then resample."""

    shape, spacing = (10, 20, 30), (2.0, 1.0, 1.0)

    def __init__(self, verbose):
        pass

    def run_case(self, files, seg, plans, configuration, dataset):
        properties = {"spacing": self.spacing, "shape_after_cropping_and_before_resampling": self.shape}
        return self.run_case_npy(np.zeros((1, *self.shape), np.float32), seg, properties, plans, configuration, dataset)

    def run_case_npy(self, data, seg, properties, *plans):
        return data, seg, properties


@pytest.fixture
def make_run(tmp_path):
    """Function that makes a run whose prediction of a case is its name; ``trouble`` is called with that before."""

    def make(trouble=lambda case: None, spacing=(1.0, 1.0, 1.0), max_voxels=None, order=(0, 1, 2)):
        journal = Journal(tmp_path / "journal.jsonl")
        session = SimpleNamespace(
            method=SimpleNamespace(name="tent"), fail=lambda case, fault: journal.append({"case": case, "fault": fault})
        )

        @contextlib.contextmanager
        def predict(data, case, site, unlike):
            trouble(case)
            yield case
            journal.append({"case": case})

        model = SimpleNamespace(
            folder=tmp_path,
            channels=1,
            dataset={"file_ending": ".nii.gz"},
            plans=SimpleNamespace(plans={}, transpose_forward=order),
            configuration=SimpleNamespace(
                preprocessor_class=Preprocessor, spacing=list(spacing), patch_size=[8] * len(spacing)
            ),
        )
        predictor = SimpleNamespace(model=model, sessions={"0": session}, case=predict, judgement=None)
        run = _Run(predictor, dict.fromkeys("abc"), journal, tmp_path, False, False, max_voxels)
        run._export = lambda case, logits, properties, temporary: temporary.write_text(case)
        return run

    return make


@pytest.fixture
def files(tmp_path):
    found = {case: [tmp_path / "images" / f"{case}_0000.nii.gz"] for case in "abc"}
    (tmp_path / "images").mkdir()
    for (file,) in found.values():
        nibabel.save(nibabel.Nifti1Image(np.zeros((2, 3, 4), np.int16), np.eye(4)), file)
    return found


class Killed(BaseException):
    pass


@pytest.mark.parametrize("case", "abc")
def test_a_case_that_ends_the_process_twice_is_passed_over(make_run, files, tmp_path, case):
    def start(overwrite, trouble=lambda case: None):
        run = make_run(trouble)
        done = run.tidy(files, overwrite)
        run.start({name: paths for name, paths in files.items() if name not in done})
        return run

    def kill(name):
        if name == case:
            noted.append((tmp_path / ".begun").read_text())
            raise Killed

    noted = []
    for overwrite in (True, False):
        with pytest.raises(Killed):
            start(overwrite, kill)
        # a killed process takes nothing back
        (tmp_path / ".begun").write_text(noted[-1])
    (fault,) = start(False).faults
    assert fault.case == case and "ended twice" in fault.message and "--overwrite true" in fault.message
    written = sorted(path.name[0] for path in tmp_path.glob("?.nii.gz"))
    assert written == [name for name in "abc" if name != case]
    assert not start(True).faults and len(list(tmp_path.glob("?.nii.gz"))) == 3
    assert not (tmp_path / ".begun").exists()


def test_an_earlier_run_leaves_no_prediction_beside_a_killed_one(make_run, files, tmp_path):
    for name in ("a.nii.gz", "b.nii.gz", "b.npz", "c.nii.gz", "other.nii.gz", ".0123456789ab-a.nii.gz"):
        (tmp_path / name).write_text("old")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / ".0123456789ab-a.nii.gz").write_text("of another run")

    def kill(case):
        if case == "b":
            raise Killed

    run = make_run(kill)
    assert run.tidy(files, True) == set()
    with pytest.raises(Killed):
        run.start(files)
    left = {path.name: path.read_text() for path in tmp_path.glob("*.n*")}
    assert left == {"a.nii.gz": "a", "other.nii.gz": "old"} and not (tmp_path / ".0123456789ab-a.nii.gz").exists()
    assert (tmp_path / "sub" / ".0123456789ab-a.nii.gz").exists()


@pytest.mark.parametrize(
    "spacing, order, becomes",
    [
        ((0.1, 0.1, 0.1), (0, 1, 2), "200 × 200 × 300"),
        ((0.02, 1.0, 1.0), (1, 0, 2), "1000 × 20 × 30"),
        ((0.1, 0.1), (0, 1, 2), "10 × 200 × 300"),
    ],
)
def test_an_image_that_would_become_too_large_is_a_fault_of_its_own(make_run, files, spacing, order, becomes):
    run = make_run(spacing=spacing, max_voxels=100_000, order=order)
    run.start(files)
    assert [fault.case for fault in run.faults] == ["a", "b", "c"]
    assert all(becomes in fault.message and "raise max_voxels" in fault.message for fault in run.faults)
    run = make_run(spacing=spacing, max_voxels=None, order=order)
    run.start(files)
    assert not run.faults and json.loads(run.journal.path.read_text().splitlines()[-1]) == {"case": "c"}


@pytest.mark.parametrize("wrong", [0, 2.5, "many"])
def test_the_bound_is_a_whole_number(wrong):
    from grata.data import check_max_voxels

    with pytest.raises(GrataError, match="max_voxels"):
        check_max_voxels(wrong)
