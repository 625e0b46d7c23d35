import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

ANGLE = 0.1
ROTATION = np.array([[-1, 0, 0], [0, np.cos(ANGLE), -np.sin(ANGLE)], [0, np.sin(ANGLE), np.cos(ANGLE)]])
AFFINE = np.eye(4)
AFFINE[:3, :3] = ROTATION * (1.2, 1.0, 1.5)
AFFINE[:3, 3] = 10, -20, 5


def scan(seed: int, shape: tuple[int, int, int] = (24, 28, 20), gain: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A noisy image of a ball with a core, and its label map."""
    rng = np.random.default_rng(seed)
    centre = np.array(shape) / 2 + rng.uniform(-2, 2, 3)
    distance = np.linalg.norm(np.stack(np.indices(shape), -1) - centre, axis=-1)
    label = (distance < 9).astype(np.uint8) + (distance < 5)
    return (gain * (100 * label + rng.normal(300, 20 * gain, shape))).astype(np.float32), label


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Folders of two configurations that nnU-Net itself planned and trained, with two folds each, by configuration."""
    root = tmp_path_factory.mktemp("nnunet")
    raw = root / "raw" / "Dataset001_Tiny"
    for name in ("imagesTr", "labelsTr"):
        (raw / name).mkdir(parents=True)
    for seed in range(3):
        image, label = scan(seed, (40, 48, 32))
        nib.save(nib.Nifti1Image(image, AFFINE), raw / "imagesTr" / f"scan{seed}_0000.nii.gz")
        nib.save(nib.Nifti1Image(label, AFFINE), raw / "labelsTr" / f"scan{seed}.nii.gz")
    dataset = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "organ": 1, "lesion": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(dataset))
    program = Path(__file__).with_name("train.py")
    done = subprocess.run(
        [sys.executable, program, root, "3d_fullres,2d"], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    results = root / "results" / "Dataset001_Tiny"
    return {name: results / f"nnUNetTrainer__nnUNetPlans__{name}" for name in ("3d_fullres", "2d")}


@pytest.fixture
def edited(trained, tmp_path):
    """Function that copies the 3D model with its first fold and edits plans, dataset.json and checkpoint."""

    def make(plans=lambda plans: None, dataset=lambda dataset: None, checkpoint=lambda checkpoint: None):
        folder = tmp_path / "edited"
        shutil.copytree(trained["3d_fullres"], folder, ignore=shutil.ignore_patterns("fold_1", "*best*"))
        for name, edit in (("plans.json", plans), ("dataset.json", dataset)):
            content = json.loads((folder / name).read_text())
            edit(content)
            (folder / name).write_text(json.dumps(content))
        path = folder / "fold_0" / "checkpoint_final.pth"
        content = torch.load(path, weights_only=False)  # The fixture above wrote it.
        checkpoint(content)
        torch.save(content, path)
        return folder

    return make


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Two images with a contrast other than in training."""
    folder = tmp_path_factory.mktemp("images")
    for seed in (7, 8):
        nib.save(nib.Nifti1Image(scan(seed, gain=2.0)[0], AFFINE), folder / f"case{seed}_0000.nii.gz")
    return folder
