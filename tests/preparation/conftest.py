"""A bundle and a source set, made from the parameters of each test."""

import copy
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml
from monai.networks.nets import UNet

READ = {
    "_target_": "LoadImaged",
    "keys": ["image", "label"],
    "reader": "$grata.data.ScanReader",
    "ensure_channel_first": True,
    "image_only": True,
    "allow_missing_keys": True,
}
ADAPT = {
    "imports": ["$import os", "$import grata"],
    "bundle_root": ".",
    "weights": "$os.path.join(@bundle_root, 'models', 'model.pt')",
    "dataset_dir": None,
    "labels_dir": None,
    "activation": "sigmoid",
    "segments": [{"value": 1, "label": "Disc", "includes": [2]}, {"value": 2, "label": "Cup"}],
    "network_def": {
        "_target_": "UNet",
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 2,
        "channels": [4, 8],
        "strides": [2],
        "norm": "batch",
    },
    "network": {
        "_target_": "grata.networks.load_source",
        "network_def": "@network_def",
        "weights": "@weights",
        "device": "cpu",
    },
    "discovery": {
        "_target_": "grata.data.discover",
        "dataset_dir": "@dataset_dir",
        "labels_dir": "@labels_dir",
        "spatial_dims": 2,
    },
    "preprocessing": {"_target_": "Compose", "transforms": [READ, {"_target_": "ScaleIntensityd", "keys": "image"}]},
    "inferer": {"_target_": "SimpleInferer"},
    "to_probabilities": {"_target_": "Compose", "transforms": []},
    "to_label_map": {"_target_": "Compose", "transforms": []},
}


def save(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)


@pytest.fixture
def config():
    return copy.deepcopy(ADAPT)


@pytest.fixture
def write_bundle(tmp_path):
    """Write a bundle with random weights."""

    def write(config):
        folder = tmp_path / "bundle"
        (folder / "configs").mkdir(parents=True, exist_ok=True)
        (folder / "models").mkdir(exist_ok=True)
        (folder / "configs" / "adapt.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        arguments = {key: value for key, value in config["network_def"].items() if key != "_target_"}
        with torch.random.fork_rng():
            torch.manual_seed(3)
            torch.save(UNet(**arguments).state_dict(), folder / "models" / "model.pt")
        return folder

    return write


@pytest.fixture
def make_source(tmp_path):
    """Write images with two nested blocks, and return their folder and label maps."""

    def make(cases=6, shape=(16, 16), labelled=True, name="source"):
        generator = np.random.default_rng(0)
        labels = []
        for index in range(cases):
            label = np.zeros(shape, np.uint8)
            start = [int(generator.integers(1, size // 4)) for size in shape]
            label[tuple(slice(a, a + size // 2) for a, size in zip(start, shape))] = 1
            label[tuple(slice(a + 1, a + size // 4) for a, size in zip(start, shape))] = 2
            scan = label + generator.normal(0, 0.3, shape)
            save(scan.astype(np.float32), tmp_path / name / "images" / f"case{index}.nii.gz")
            if labelled:
                save(label, tmp_path / name / "labels" / f"case{index}.nii.gz")
            labels.append(label)
        return tmp_path / name, labels

    return make
