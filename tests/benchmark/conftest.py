"""A bundle for two nested structures, and two sites."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml
from monai.networks.nets import UNet

NETWORK = {
    "_target_": "UNet",
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 2,
    "channels": [4, 8],
    "strides": [2],
    "norm": "batch",
}
ADAPT = {
    "imports": ["$import os", "$import grata"],
    "bundle_root": ".",
    "weights": "$os.path.join(@bundle_root, 'models', 'model.pt')",
    "device": "cpu",
    "dataset_dir": None,
    "labels_dir": None,
    "site": None,
    "method": "grata",
    "seed": 0,
    "settings": {},
    "activation": "sigmoid",
    # most tests are about the numbers of the methods themselves
    "guard": False,
    "segments": [
        {"value": 1, "label": "Disc", "includes": [2]},
        {"value": 2, "label": "Cup"},
    ],
    "network_def": NETWORK,
    "network": {
        "_target_": "grata.networks.load_source",
        "network_def": "@network_def",
        "weights": "@weights",
        "device": "@device",
    },
    "discovery": {
        "_target_": "grata.data.discover",
        "dataset_dir": "@dataset_dir",
        "labels_dir": "@labels_dir",
        "site": "@site",
        "spatial_dims": 2,
    },
    # A site can replace this with a function that harms the process that reads it.
    "trap": "$lambda image: image",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {
                "_target_": "LoadImaged",
                "keys": ["image", "label"],
                "reader": "$grata.data.ScanReader",
                "ensure_channel_first": True,
                "image_only": True,
                "allow_missing_keys": True,
            },
            {"_target_": "Lambdad", "keys": "image", "func": "@trap"},
            {"_target_": "CopyItemsd", "keys": "image", "names": "original"},
            {"_target_": "Resized", "keys": "image", "spatial_size": [24, 24]},
            {"_target_": "ScaleIntensityd", "keys": "image"},
        ],
    },
    "inferer": {"_target_": "SimpleInferer"},
    "to_probabilities": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "Activationsd", "keys": "pred", "sigmoid": True},
            {
                "_target_": "Invertd",
                "keys": "pred",
                "transform": "@preprocessing",
                "orig_keys": "image",
                "nearest_interp": False,
                "to_tensor": True,
            },
        ],
    },
    "to_label_map": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5},
            {"_target_": "Lambdad", "keys": "pred", "func": "$lambda p: p[:1] * (1 + p[1:])"},
        ],
    },
}


def save(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)


def make_site(folder: Path, cases: int, brightness: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :28]
    for index in range(cases):
        centre = generator.uniform(12, 16, 2)
        radius = np.hypot(y - centre[0], x - centre[1])
        label = (radius < 9).astype(np.uint8) + (radius < 4)
        image = brightness * label + generator.normal(0, 0.3, label.shape)
        save(image.astype(np.float32), folder / "images" / f"case{index}.nii.gz")
        save(label.astype(np.uint8), folder / "labels" / f"case{index}.nii.gz")


def write_bundle(folder: Path) -> Path:
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "adapt.yaml").write_text(yaml.safe_dump(ADAPT, sort_keys=False))
    torch.manual_seed(3)
    network = UNet(**{key: value for key, value in NETWORK.items() if key != "_target_"})
    for name, buffer in network.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return folder


@pytest.fixture(scope="session")
def _ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ground")
    write_bundle(folder / "bundle")
    make_site(folder / "north", 4, 1.0, 0)
    make_site(folder / "south", 3, 2.0, 1)
    return folder


@pytest.fixture
def settings(_ground, tmp_path):
    """Return a configuration that a test may change."""
    return {
        "bundle": str(_ground / "bundle"),
        "output_dir": str(tmp_path / "results"),
        "targets": {
            "north": {"dataset_dir": str(_ground / "north" / "images")},
            "south": {"dataset_dir": str(_ground / "south" / "images")},
        },
        "methods": {"source": {}, "ptbn": {}, "grata": {"lr": 0.02}},
        "workers": 0,
        "threads": 1,
    }


@pytest.fixture
def write(tmp_path):
    """Write a configuration and return its path."""

    def write_file(settings, name="benchmark.yaml"):
        path = tmp_path / name
        path.write_text(yaml.safe_dump(settings, sort_keys=False))
        return path

    return write_file


@pytest.fixture
def site(tmp_path):
    """Make another site, whose files a test may damage."""

    def make(name="spoilt", cases=3):
        make_site(tmp_path / name, cases, 1.5, 2)
        return tmp_path / name

    return make
