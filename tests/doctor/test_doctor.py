"""The doctor reports before a run what the run would find or refuse."""

import json
import shutil
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from monai.bundle import run
from monai.networks.nets import BasicUNet, UNet

import grata
from grata.doctor.doctor import doctor, examine
from grata.errors import GrataError
from grata.normalization import collect_affine_parameters
from grata.session.faults import causes, explain

NETWORK = {
    "_target_": "UNet",
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 3,
    "channels": [4, 8],
    "strides": [2],
}
SOFTMAX = [{"_target_": "Activationsd", "keys": "pred", "softmax": True}]


@pytest.fixture
def make_bundle(tmp_path):
    """Function that writes a bundle's configuration with some keys changed."""

    def make(**changes):
        (tmp_path / "configs").mkdir(exist_ok=True)
        (tmp_path / "models").mkdir(exist_ok=True)
        config = {
            "bundle_root": ".",
            "device": "cpu",
            "dataset_dir": "images",
            "network_def": NETWORK,
            "network": "$@network_def.to(@device)",
            "preprocessing": {"_target_": "Compose", "transforms": [{"_target_": "ScaleIntensityd", "keys": "image"}]},
            "dataset": {"_target_": "Dataset", "data": [], "transform": "@preprocessing"},
            "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
            "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [32, 32], "sw_batch_size": 2},
            "postprocessing": {"_target_": "Compose", "transforms": SOFTMAX},
            "evaluator": {
                "_target_": "SupervisedEvaluator",
                "device": "@device",
                "val_data_loader": "@dataloader",
                "network": "@network",
                "inferer": "@inferer",
                "postprocessing": "@postprocessing",
            },
            "load": {
                "_target_": "CheckpointLoader",
                "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network"},
            },
        } | changes
        config = {key: value for key, value in config.items() if value is not None}
        (tmp_path / "configs" / "inference.json").write_text(json.dumps(config))
        return tmp_path

    return make


def adapt(bundle, **overrides):
    """Call ``monai.bundle run adapt`` in this process."""
    files = [str(bundle / "configs" / "inference.json"), str(grata.overlay())]
    run("adapt", config_file=files, bundle_root=str(bundle), logging_file=False, **overrides)


def refusal(bundle, **overrides) -> str:
    """Return the message of a run that ends before the first image."""
    with pytest.raises(Exception) as error:
        adapt(bundle, **overrides)
    assert any(isinstance(cause, GrataError) for cause in causes(error.value))
    return explain(error.value)


@pytest.fixture(autouse=True)
def _own_excepthook(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


def test_what_a_run_will_use_is_reported(make_bundle):
    bundle = make_bundle()
    network = UNet(2, 1, 3, (4, 8), (2,))
    report = examine(bundle)
    assert "UNet, 2D, 3 output channels" in report.facts["network"]
    assert report.facts["normalization"] == "2 InstanceNorm2d without affine parameters"
    assert report.facts["head"] == "softmax (by Activationsd)"
    assert report.facts["window"].startswith("32 x 32, 2 at once")
    assert report.facts["images"] == "in 0..1"
    # Each channel has a scale and a shift.
    channels = sum(m.num_features for m in network.modules() if isinstance(m, torch.nn.InstanceNorm2d))
    assert report.facts["adapts"].startswith(f"{2 * channels} parameters attached")
    assert report.methods["grata"] == "" and "running statistics" in report.methods["ptbn"]
    assert report.adapts


def test_affine_parameters_of_the_networks_own_are_counted(make_bundle):
    bundle = make_bundle(network_def=NETWORK | {"norm": "batch"})
    own = collect_affine_parameters(UNet(2, 1, 3, (4, 8), (2,), norm="batch"))
    facts = examine(bundle).facts
    assert facts["adapts"].startswith(f"{sum(p.numel() for p in own.values())} parameters of the network")


@pytest.mark.parametrize("imported", [False, True])
def test_modules_of_one_bundle_are_not_taken_for_those_of_another(imported, make_bundle, tmp_path, monkeypatch):
    package = ModuleType("scripts")
    package.__path__ = []
    monkeypatch.delitem(sys.modules, "scripts", raising=False)
    if imported:
        monkeypatch.setitem(sys.modules, "scripts", package)
    bundle = make_bundle(network_def={"_target_": "scripts.net.Net"})
    for classes in (2, 5):
        other = tmp_path / f"bundle_{classes}"
        shutil.copytree(bundle / "configs", other / "configs")
        (other / "scripts").mkdir()
        (other / "scripts" / "net.py").write_text(
            "from torch import nn\n\n\n"
            "class Net(nn.Sequential):\n"
            "    def __init__(self):\n"
            f"        super().__init__(nn.Conv2d(1, {classes}, 1), nn.BatchNorm2d({classes}))\n"
        )
        assert examine(other).facts["adapts"].startswith(f"{2 * classes} parameters of the network")
    assert sys.modules.get("scripts") is (package if imported else None)


def test_a_method_and_its_settings_can_be_asked_for(make_bundle):
    bundle = make_bundle()
    report = examine(bundle, method="tent", **{"settings#lr": 0.1})
    assert report.methods == {"tent": ""} and "attached" in report.facts["adapts"]
    assert "lr: must be" in examine(bundle, method="tent", **{"settings#lr": -1.0}).methods["tent"]
    assert "lr: must be" in examine(bundle, **{"settings#lr": -1.0}).methods["grata"]
    with pytest.raises(GrataError, match="did you mean settings#lr"):
        examine(bundle, method="tent", **{"settings#lrr": 0.1})
    for wrong, message in (
        ({"settings": "lr=1"}, "settings: must hold the settings of the method, got 'lr=1'. .*--settings#<setting>"),
        ({"adaptation#affine": "atach"}, "adaptation#affine: must be one of auto, own, attach, got 'atach'"),
        ({"adaptation#activation": "relu"}, "adaptation#activation: must be one of softmax, sigmoid, got 'relu'"),
        ({"folds": 0}, "--folds: is for an nnU-Net folder, and .* is a bundle"),
    ):
        for method in ({}, {"method": "ptbn"}):
            with pytest.raises(GrataError, match=message):
                examine(bundle, **method, **wrong)
    with pytest.raises(GrataError, match="method: there is no 'tentt'"):
        examine(bundle, method="tentt")
    with pytest.raises(GrataError, match="Did you mean --adaptation#activation"):
        examine(bundle, **{"adaptation#activatoin": "softmax"})


def test_weights_are_looked_at(make_bundle):
    bundle = make_bundle()
    assert "missing" in examine(bundle).facts["weights"]
    torch.save(UNet(2, 1, 3, (4, 8), (2,)).state_dict(), bundle / "models" / "model.pt")
    assert examine(bundle).facts["weights"] == "model.pt fits the network"
    torch.save(UNet(2, 1, 2, (4, 8), (2,)).state_dict(), bundle / "models" / "model.pt")
    assert examine(bundle).facts["weights"].startswith("model.pt does not belong to this UNet")


def test_an_unknown_head_is_asked_for(make_bundle):
    bundle = make_bundle(postprocessing={"_target_": "Compose", "transforms": []})
    report = examine(bundle)
    assert "adaptation#activation" in report.methods["grata"] and report.methods["source"] == ""
    assert examine(bundle, **{"adaptation#activation": "sigmoid"}).methods["grata"] == ""
    assert "--adaptation#activation" in refusal(bundle)


def test_a_network_without_norms_is_refused(make_bundle, capsys):
    bundle = make_bundle(network_def=NETWORK | {"norm": None})
    report = examine(bundle)
    assert "normalization" in report.methods["grata"]
    assert report.facts["normalization"] == "none"
    assert "nothing to adapt" in refusal(bundle)


def test_an_inferer_that_adaptation_does_not_know_is_reported(make_bundle):
    bundle = make_bundle(inferer={"_target_": "PatchInferer"})
    assert doctor(bundle) == 1
    assert "PatchInferer" in examine(bundle).problems[0]


def test_an_evaluator_under_another_key_is_asked_for(make_bundle):
    evaluator = json.loads((make_bundle() / "configs" / "inference.json").read_text())["evaluator"]
    bundle = make_bundle(evaluator=None, validate={"evaluator": evaluator})
    (problem,) = examine(bundle).problems
    assert "@validate#evaluator" in problem and "its evaluators: validate#evaluator" in problem
    assert not examine(bundle, **{"adaptation#evaluator": "@validate#evaluator"}).problems
    assert "its evaluators: validate#evaluator" in refusal(bundle)
    assert "finds no image" in refusal(bundle, **{"adaptation#evaluator": "@validate#evaluator"})


@pytest.mark.parametrize("key", ["settings", "adaptation", "method"])
def test_a_key_that_the_overlay_would_replace_is_refused(make_bundle, key):
    bundle = make_bundle(**{key: {"some": "thing"}})
    assert f"has a key {key}" in refusal(bundle)
    if key != "adaptation":
        assert f"has a key {key}" in examine(bundle).problems[0]


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("adaptation#activatoin", "--adaptation#activation"),
        ("activation", "--adaptation#activation"),
        ("datset_dir", "--dataset_dir"),
        ("settings#lrr", "settings#lr"),
    ],
)
def test_a_mistyped_key_is_refused(make_bundle, key, hint):
    assert hint in refusal(make_bundle(), **{key: "sigmoid"})


def test_a_bundle_that_finds_no_image_is_no_success(make_bundle):
    assert "dataset_dir" in refusal(make_bundle())


def test_a_torchscript_file(tmp_path):
    network = BasicUNet(2, 1, 2, (4, 4, 4, 4, 4, 4), norm="batch").eval()
    torch.jit.script(network).save(tmp_path / "model.ts")
    report = examine(tmp_path / "model.ts", activation="softmax")
    assert "BasicUNet, 2D" in report.facts["network"] and report.methods["grata"] == ""
    assert "TorchScript" in report.methods["bn_alpha"]
    assert "activation" in examine(tmp_path / "model.ts").methods["grata"]


def test_only_what_can_prepare_a_model_is_advised(tmp_path, make_bundle):
    torch.jit.script(BasicUNet(2, 1, 2, (4, 4, 4, 4, 4, 4), norm="batch").eval()).save(tmp_path / "model.ts")
    bundle = make_bundle()
    for report in (examine(tmp_path / "model.ts", activation="softmax"), examine(bundle)):
        assert "only for bundles with a configs/adapt.yaml" in report.methods["ttas"]
        assert not any("python -m grata prepare" in lack for lack in report.methods.values())
    assert "['configs/inference.json', '" in examine(bundle).facts["run"]
    (bundle / "configs" / "adapt.yaml").write_text("method: grata")
    report = examine(bundle)
    assert "run `python -m grata prepare <bundle>" in report.methods["ttas"]
    assert "--config_file configs/adapt.yaml --method" in report.facts["run"]


def test_weights_alone_are_not_a_network(tmp_path):
    torch.save({"weight": torch.ones(1)}, tmp_path / "model.pt")
    with pytest.raises(GrataError, match="folder of their bundle"):
        examine(tmp_path / "model.pt")


def test_a_folder_that_is_not_a_bundle_is_refused(tmp_path):
    with pytest.raises(GrataError, match=r"inference\.json"):
        examine(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "inference.json").write_text(json.dumps({"network_def": {"_target_": "NoSuchNet"}}))
    with pytest.raises(GrataError, match="network_def cannot be built"):
        examine(tmp_path)


def test_the_command(python, make_bundle):
    command = [python, "-m", "grata", "doctor", str(make_bundle())]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert "softmax (by Activationsd)" in result.stdout and "run adapt" in result.stdout
