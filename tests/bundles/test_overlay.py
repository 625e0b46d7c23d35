"""One overlay adapts every kind of network that the Model Zoo has, and changes nothing else of its bundles.

The bundles here are small ones in the Zoo's layout, one for each row of networks and norms that the Zoo has.
"""

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow
from PIL import Image
from safetensors.torch import load_file

import grata
from grata.doctor.doctor import examine

SOFTMAX = {"_target_": "Activationsd", "keys": "pred", "softmax": True}
SIGMOID = {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}
ARGMAX = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
THRESHOLD = {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}
INVERT = {
    "_target_": "Invertd",
    "keys": "pred",
    "transform": "@preprocessing",
    "orig_keys": "image",
    "nearest_interp": False,
    "to_tensor": True,
}
CT = [
    {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
    {"_target_": "Spacingd", "keys": "image", "pixdim": [1.0, 1.0, 1.0], "mode": "bilinear"},
    {
        "_target_": "ScaleIntensityRanged",
        "keys": "image",
        "a_min": -57,
        "a_max": 164,
        "b_min": 0.0,
        "b_max": 1.0,
        "clip": True,
    },
]
MRI = [{"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True, "channel_wise": True}]
UNIT = [{"_target_": "ScaleIntensityd", "keys": "image"}]
UNET = {"in_channels": 1, "channels": [4, 8], "strides": [2], "num_res_units": 1}
DYNUNET = {
    "spatial_dims": 3,
    "kernel_size": [3, 3, 3],
    "strides": [1, 2, 2],
    "upsample_kernel_size": [2, 2],
    "filters": [4, 8, 8],
    "norm_name": "instance",
    "res_block": True,
}

# MONAI lacks the Zoo's UNesT, which has blocks of tokens with LayerNorm, merged into ever coarser ones, and a
# convolutional decoder with plain InstanceNorm. MONAI's HoVerNet takes a minute here: a small network with the same
# branches replaces it.
NETWORKS = '''
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.before = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.after = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        y = self.before(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.after(x))


class Hierarchy(nn.Module):
    """Two levels of tokens, 4 and 8 voxels wide, and a decoder."""

    def __init__(self, in_channels, out_channels, width=8):
        super().__init__()
        self.embed = nn.Conv3d(in_channels, width, 4, 4)
        self.fine, self.coarse = Block(width), Block(width)
        self.merge = nn.Conv3d(width, width, 2, 2)
        self.up = nn.ConvTranspose3d(width, width, 2, 2)
        self.decode = nn.Sequential(nn.Conv3d(2 * width, width, 3, padding=1), nn.InstanceNorm3d(width), nn.LeakyReLU())
        self.full = nn.ConvTranspose3d(width, width, 4, 4)
        self.out = nn.Conv3d(width, out_channels, 1)

    def forward(self, x):
        fine = self._attend(self.fine, self.embed(x))
        coarse = self._attend(self.coarse, self.merge(fine))
        return self.out(self.full(self.decode(torch.cat([fine, self.up(coarse)], 1))))

    @staticmethod
    def _attend(block, x):
        return block(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)


class Branches(nn.Module):
    """Three branches from one encoder; each output is 12 pixels smaller on each side than the image."""

    def __init__(self, in_channels, out_classes, width=8):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.heads = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.Conv2d(width, channels, 1))
                for name, channels in {**BRANCHES, "type_prediction": out_classes}.items()
            }
        )

    def forward(self, x):
        features = self.encoder(x)[..., 12:-12, 12:-12]
        return {name: head(features) for name, head in self.heads.items()}


BRANCHES = {"horizontal_vertical": 2, "nucleus_prediction": 2}
'''


@dataclass(frozen=True)
class Row:
    """A row of the Zoo: its network and norms, the meaning of its output, and the form of its bundle.

    Attributes:
        norm: kind of the norms whose parameters are adapted.
        layers: number of these norms, counted by hand.
        attached: whether their scale and shift are attached.
        more: further configuration.
    """

    network: dict[str, Any]
    norm: str
    layers: int
    head: str
    classes: int
    post: list[dict[str, Any]]
    pre: list[dict[str, Any]] = field(default_factory=lambda: CT)
    dims: int = 3
    shape: tuple[int, ...] = (40, 32, 32)
    channels: int = 1
    window: tuple[int, ...] | None = (32, 32, 32)
    attached: bool = False
    key: str = "run"
    loads_in: str = "initialize"
    ending: str = ".nii.gz"
    more: dict[str, Any] = field(default_factory=dict)


ROWS = {
    "unet_batch": Row(
        {"_target_": "UNet", "spatial_dims": 3, "out_channels": 2, "norm": "batch", **UNET},
        # two convolutions of the way down, one of the way up and one of its residual unit's: the last is bare
        *("BatchNorm3d", 3, "softmax", 2, [SOFTMAX, INVERT, ARGMAX]),
    ),
    "unet_batch_argmax": Row(
        {"_target_": "UNet", "spatial_dims": 3, "out_channels": 3, "norm": "batch", "dropout": 0.15, **UNET},
        *("BatchNorm3d", 3, "softmax", 3, [ARGMAX, INVERT]),
        pre=[*CT[:2], *UNIT, *MRI],
        loads_in="handlers",
    ),
    "flexible_unet_colour": Row(
        {
            "_target_": "FlexibleUNet",
            "spatial_dims": 2,
            "in_channels": 3,
            "out_channels": 2,
            "backbone": "efficientnet-b0",
            "decoder_channels": [16, 16, 8, 8, 8],
            "pretrained": False,
            "is_pad": False,
        },
        # 49 of the encoder, two of each of five levels of the decoder
        *("BatchNorm2d", 59, "softmax", 2),
        post=[{**ARGMAX, "to_onehot": 2}, {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x[1:]"}],
        pre=[{"_target_": "Resized", "keys": "image", "spatial_size": [64, 64], "mode": "bilinear"}, *UNIT],
        dims=2,
        shape=(48, 72),
        channels=3,
        window=None,
        ending=".png",
    ),
    "branches_as_hovernet": Row(
        {"_target_": "scripts.networks.Branches", "in_channels": 3, "out_classes": 3},
        # one of the encoder, one of each of three branches
        *("BatchNorm2d", 4, "softmax", 3),
        post=[
            {
                "_target_": "FlattenSubKeysd",
                "keys": "pred",
                "sub_keys": ["horizontal_vertical", "nucleus_prediction", "type_prediction"],
                "delete_keys": True,
            },
            {"_target_": "HoVerNetInstanceMapPostProcessingd"},
            {"_target_": "HoVerNetNuclearTypePostProcessingd"},
        ],
        pre=UNIT,
        dims=2,
        shape=(80, 40),
        channels=3,
        ending=".png",
        more={
            "inferer": {
                "_target_": "SlidingWindowHoVerNetInferer",
                "roi_size": 64,
                "sw_batch_size": 2,
                "overlap": 1 - 40 / 64,
                "padding_mode": "constant",
                "extra_input_padding": [12, 12, 12, 12],
            },
            "postprocessing#transforms#3#keys": "type_map",
            "postprocessing#transforms#3#resample": False,
        },
    ),
    "segresnet_multilabel": Row(
        {
            "_target_": "SegResNet",
            "in_channels": 4,
            "out_channels": 3,
            "init_filters": 8,
            "blocks_down": [1, 1],
            "blocks_up": [1],
            "dropout_prob": 0.2,
        },
        # two of each of three blocks, one before the last convolution
        *("GroupNorm", 7, "sigmoid", 3, [SIGMOID, INVERT, THRESHOLD]),
        pre=MRI,
        channels=4,
        key="evaluating",
        loads_in="handlers",
        more={"dataloader#shuffle": True},
    ),
    "segresnet_phases": Row(
        {
            "_target_": "SegResNet",
            "in_channels": 3,
            "out_channels": 6,
            "init_filters": 8,
            "upsample_mode": "deconv",
            "norm_name": "group",
            "blocks_down": [1, 1],
            "blocks_up": [1],
        },
        *("GroupNorm", 7, "sigmoid", 6, [SIGMOID, THRESHOLD]),
        channels=3,
        key="inference",
        loads_in="handlers",
        # phases of contrast under keys of their own, which become the image
        more={
            "phases": ["artery", "vein", "excret"],
            "dataset#data": "$[{k: f for k, f in zip(@phases, i['image'])} for i in @datalist]",
            "preprocessing#transforms": [
                {"_target_": "LoadImaged", "keys": "@phases"},
                {"_target_": "EnsureChannelFirstd", "keys": "@phases"},
                {"_target_": "ConcatItemsd", "keys": "@phases", "name": "image"},
                CT[-1],
            ],
        },
    ),
    "segresnet_many_classes": Row(
        {
            "_target_": "SegResNet",
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": 105,
            "init_filters": 8,
            "blocks_down": [1, 1],
            "blocks_up": [1],
        },
        *("GroupNorm", 7, "softmax", 105, [SOFTMAX, ARGMAX, {**INVERT, "nearest_interp": True}]),
        pre=[*CT[:2], *MRI, {**UNIT[0], "minv": -1.0, "maxv": 1.0}],
        shape=(32, 32, 32),
        more={"display": {"sw_batch_size": 1}, "inferer#sw_batch_size": "@display#sw_batch_size"},
    ),
    "basic_unet_clicks": Row(
        {
            "_target_": "BasicUNet",
            "spatial_dims": 2,
            "in_channels": 5,
            "out_channels": 1,
            "features": [4, 4, 8, 8, 8, 4],
        },
        # two convolutions of each of nine levels
        *("InstanceNorm2d", 18, "sigmoid", 1),
        post=[SIGMOID, THRESHOLD, {"_target_": "KeepLargestConnectedComponentd", "keys": "pred"}],
        # two maps of clicks beside the colours
        pre=[
            {**UNIT[0], "minv": -1.0, "maxv": 1.0},
            {
                "_target_": "Lambdad",
                "keys": "image",
                "func": "$lambda x: torch.cat([x, (x[:1] > 0.9).float(), (x[:1] < -0.9).float()])",
            },
        ],
        dims=2,
        shape=(32, 32),
        channels=3,
        window=None,
        ending=".png",
    ),
    "dints": Row(
        {
            "_target_": "DiNTS",
            "dints_space": {
                "_target_": "TopologyInstance",
                "channel_mul": 0.25,
                "num_blocks": 2,
                "num_depths": 2,
                "use_downsample": True,
                "arch_code": ["$numpy.ones((2, 4))", "$numpy.ones((2, 4))"],
                "device": "cpu",
            },
            "in_channels": 1,
            "num_classes": 4,
            "use_downsample": True,
        },
        # two on the way into each of two depths, one on each way out, one before the last convolution, twelve of cells
        *("InstanceNorm3d", 19, "softmax", 4, [SOFTMAX, INVERT, ARGMAX]),
        shape=(32, 32, 32),
        loads_in="handlers",
    ),
    "swin_unetr": Row(
        {
            "_target_": "SwinUNETR",
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": 5,
            "feature_size": 12,
            "depths": [1, 1, 1, 1],
            "window_size": 4,
        },
        # two of each of four blocks, one of each of four mergings
        *("LayerNorm", 12, "softmax", 5, [SOFTMAX, INVERT, ARGMAX]),
        shape=(64, 32, 32),
        window=(64, 32, 32),
    ),
    "transformer_of_its_own": Row(
        {"_target_": "scripts.networks.Hierarchy", "in_channels": 1, "out_channels": 4},
        *("LayerNorm", 4, "softmax", 4, [SOFTMAX, INVERT, ARGMAX]),
        key="evaluating",
        loads_in="handlers",
    ),
    "dynunet": Row(
        {"_target_": "DynUNet", "in_channels": 1, "out_channels": 4, **DYNUNET},
        # three of each residual block of the way down, but two where it keeps channels and size; two of the way up
        *("InstanceNorm3d", 13, "softmax", 4, [SOFTMAX, INVERT, ARGMAX]),
        attached=True,
        loads_in="handlers",
    ),
    "dynunet_guided": Row(
        {"_target_": "DynUNet", "in_channels": 3, "out_channels": 2, **DYNUNET},
        *("InstanceNorm3d", 13, "softmax", 2, [SOFTMAX, INVERT, ARGMAX]),
        # two channels of guidance, empty as without a user
        pre=[
            CT[-1],
            {"_target_": "Lambdad", "keys": "image", "func": "$lambda x: torch.cat([x, 0 * x, 0 * x])"},
        ],
        shape=(32, 32, 32),
        window=None,
        attached=True,
    ),
    "unet_template": Row(
        {"_target_": "UNet", "spatial_dims": 3, "out_channels": 4, **UNET},
        *("InstanceNorm3d", 3, "softmax", 4, [SOFTMAX, ARGMAX]),
        pre=UNIT,
        shape=(32, 32, 32),
        window=None,
        attached=True,
        loads_in="handlers",
    ),
    "unet_slices": Row(
        {"_target_": "UNet", "spatial_dims": 2, "out_channels": 4, **UNET},
        *("InstanceNorm2d", 3, "softmax", 4, [SOFTMAX, INVERT, ARGMAX]),
        pre=UNIT,
        dims=2,
        shape=(32, 32, 3),
        attached=True,
        key="evaluating",
        loads_in="handlers",
        more={"inferer": {"_target_": "SliceInferer", "roi_size": [32, 32], "spatial_dim": 2}},
    ),
}


def make_bundle(row: Row, root: Path, images: int = 2) -> Path:
    """Write a row's bundle in the Zoo's layout, with seeded weights and images."""
    for folder in ("configs", "models", "scripts", "images"):
        (root / folder).mkdir(parents=True)
    (root / "scripts" / "__init__.py").touch()
    (root / "scripts" / "networks.py").write_text(NETWORKS)
    (root / "configs" / "metadata.json").write_text(json.dumps({"version": "0.1.0", "monai_version": "1.4.0"}))
    rng = np.random.default_rng(3)
    for index in range(images):
        write_image(row, root / "images" / f"scan_{index}", rng)
    (root / "configs" / "inference.json").write_text(json.dumps(configuration(row)))
    parser = ConfigParser(configuration(row))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = parser.get_parsed_content("network_def")
        for module in network.modules():
            if "Norm" in type(module).__name__:
                for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                    if tensor.is_floating_point():
                        tensor.data += 0.2 * torch.rand_like(tensor)
    torch.save(network.state_dict(), root / "models" / "model.pt")
    return root


def write_image(row: Row, path: Path, rng: np.random.Generator) -> None:
    if row.ending == ".png":
        pixels = rng.integers(0, 255, (*row.shape, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(path.with_suffix(".png"))
        return
    for channel in range(row.channels):
        name = f"{path.name}.nii.gz" if row.channels == 1 else f"{path.name}_{channel}.nii.gz"
        grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in row.shape), indexing="ij"))
        volume = 200 * np.exp(-4 * (grid**2).sum(0)) + rng.normal(0, 20, row.shape)
        nibabel.save(nibabel.Nifti1Image(volume.astype(np.float32), np.eye(4)), path.with_name(name))


def configuration(row: Row) -> dict[str, Any]:
    loader = {
        "_target_": "CheckpointLoader",
        "load_path": "$@bundle_root + '/models/model.pt'",
        "load_dict": {"model": "@network"},
    }
    in_handlers = row.loads_in == "handlers"
    files = f"$sorted(glob.glob(@dataset_dir + '/*{row.ending}'))"
    several = row.channels > 1 and row.ending != ".png"
    grouped = f"$[@files[i:i + {row.channels}] for i in range(0, len(@files), {row.channels})]" if several else "@files"
    window = {"_target_": "SlidingWindowInferer", "roi_size": row.window, "sw_batch_size": 2, "overlap": 0.5}
    load = [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
    ]
    if several:
        load.pop()
    save = {
        "_target_": "SaveImaged",
        "keys": "pred",
        "output_dir": "@output_dir",
        "output_ext": row.ending,
        "output_postfix": "trans",
        "separate_folder": True,
    }
    config = {
        "imports": ["$import glob", "$import numpy"],
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": "images",
        "device": "$torch.device('cpu')",
        "files": files,
        "images": grouped,
        "datalist": "$[{'image': i} for i in @images]",
        "network_def": row.network,
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": load + row.pre},
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": window if row.window else {"_target_": "SimpleInferer"},
        "postprocessing": {"_target_": "Compose", "transforms": [*row.post, save]},
        "handlers": [loader] * in_handlers + [{"_target_": "StatsHandler", "iteration_log": False}],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        row.key: ["$@evaluator.run()"],
    }
    if not in_handlers:
        config |= {"checkpointloader": loader, "initialize": ["$@checkpointloader(@evaluator)"]}
    parser = ConfigParser(config)
    for key, value in row.more.items():
        parser[key] = value
    return parser.get()


def run(bundle: Path, key: str, output: str, *overlays: str, **overrides: Any) -> torch.nn.Module:
    """Run a workflow of the bundle in this process, in the bundle's folder, and return the network."""
    changes = {"output_dir": output, "dataset_dir": "images", **overrides}
    if overlays:
        changes |= {"adaptation#output_dir": f"{output}-adaptation", "adaptation#guard": False}
    workflow = ConfigWorkflow(
        ["configs/inference.json", *overlays], run_id=key, logging_file=False, workflow_type="infer", **changes
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return workflow.parser.get_parsed_content("network")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def layout(folder: Path) -> dict[str, tuple]:
    """Return shape and type of each file that was written, by name."""
    found = {}
    for name in files(folder):
        if name.endswith(".png"):
            image = Image.open(folder / name)
            found[name] = (image.size, image.mode)
        else:
            image = nibabel.load(folder / name)
            found[name] = (image.shape, image.get_data_dtype(), image.affine.tolist())
    return found


def norms(network: torch.nn.Module, kind: str) -> dict[str, torch.nn.Module]:
    return {name: module for name, module in network.named_modules() if type(module).__name__ == kind}


def adapted_by(folder: Path) -> dict[str, torch.Tensor]:
    """Return the adapted parameters that a run has saved."""
    saved = load_file(folder / "adapted.safetensors")
    return {key.removeprefix("parameters/"): value for key, value in saved.items() if key.startswith("parameters/")}


@pytest.fixture(autouse=True)
def _one_process_for_many_bundles(monkeypatch):
    """Each bundle has a package ``scripts``, and a run leaves its own hook for errors."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
        del sys.modules[name]


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_the_zoo(name, tmp_path, monkeypatch):
    row = ROWS[name]
    monkeypatch.syspath_prepend(str(tmp_path / "bundle"))
    bundle = make_bundle(row, tmp_path / "bundle")
    monkeypatch.chdir(bundle)
    source = torch.load("models/model.pt", weights_only=True)
    before = {key: hashlib.sha256(data).digest() for key, data in files(bundle).items()}
    overlay = str(grata.overlay())

    network = run(bundle, row.key, "../plain")
    own = norms(network, row.norm)
    assert len(own) == row.layers
    assert all((module.weight is None) is row.attached for module in own.values())

    # Without adaptation all files are equal.
    run(bundle, "adapt", "../source", overlay, method="source")
    assert len(files(tmp_path / "plain")) == 2
    assert files(tmp_path / "source") == files(tmp_path / "plain")

    network = run(bundle, "adapt", "../grata", overlay, method="grata")
    assert layout(tmp_path / "grata") == layout(tmp_path / "plain")
    now = {key: hashlib.sha256(data).digest() for key, data in files(bundle).items() if "__pycache__" not in key}
    assert now == before

    journal = [json.loads(line) for line in (tmp_path / "grata-adaptation" / "journal.jsonl").open()]
    assert len(journal) == 2 and all(record["parameter_change"]["l2"] > 0 for record in journal)

    # Only weight and bias of all norms are learned.
    adapted = adapted_by(tmp_path / "grata-adaptation")
    assert len(adapted) == 2 * row.layers
    assert {key.rsplit(".", 2 if row.attached else 1)[0] for key in adapted} == set(own)
    now = network.state_dict()
    changed = {key for key in source if not torch.equal(now[key], source[key])}
    assert changed == set() if row.attached else changed and changed <= set(adapted)

    facts = examine(bundle, dataset_dir="images").facts
    assert facts["head"].startswith(f"{row.head} (by ")
    assert f"{row.dims}D, {row.classes} output channels" in facts["network"]
    assert f"{row.layers} {row.norm}" in facts["normalization"]
    count = sum(tensor.numel() for tensor in adapted.values())
    assert facts["adapts"].startswith(f"{count:,} parameters {'attached' if row.attached else 'of the network'}")


def test_a_scan_that_cannot_be_read(python, tmp_path):
    """Run a YAML bundle by the command line: other scans are finished, the status is 1, the scan is named."""
    row = ROWS["unet_template"]
    bundle = make_bundle(row, tmp_path / "bundle", images=3)
    (bundle / "configs" / "inference.json").unlink()
    (bundle / "configs" / "inference.yaml").write_text(yaml.safe_dump(configuration(row)))
    (bundle / "images" / "scan_1.nii.gz").write_bytes(b"no scan")
    command = [python, "-m", "monai.bundle", "run", "adapt", "--bundle_root", ".", "--dataset_dir", "images"]
    command += ["--config_file", f"['configs/inference.yaml','{grata.overlay()}']", "--method", "grata"]
    command += ["--adaptation#guard", "false"]
    result = subprocess.run(command, cwd=bundle, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 1, result.stdout + result.stderr
    done = {path.name for path in (bundle / "eval").rglob("*.nii.gz")}
    assert done == {"scan_0_trans.nii.gz", "scan_2_trans.nii.gz"}
    assert "2 of 3 images done" in result.stdout and "scan_1: " in result.stdout
    assert "Traceback" not in result.stdout + result.stderr
    journal = [json.loads(line) for line in (bundle / "adaptation" / "journal.jsonl").open()]
    assert [record["case"] for record in journal] == ["scan_0", "scan_1", "scan_2"]
    assert "fault" in journal[1]
