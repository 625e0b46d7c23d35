"""The overlay on bundles of others: what is missing is named, a bad file is one fault, words mean what YAML says."""

import json
import sys

import fire
import monai.bundle
import nibabel
import numpy as np
import pytest
from monai.bundle import ConfigParser
from monai.data import CacheDataset
from monai.utils import optional_import

import grata
from grata.bundles.checks import read_lazily, read_words
from grata.session import explain

NETWORK = {"_target_": "UNet", "spatial_dims": 3, "in_channels": 2, "out_channels": 2, "channels": [2, 4]}
LOAD = {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True}
SOFTMAX = {"_target_": "Activationsd", "keys": "pred", "softmax": True}
CONFIG = {
    "imports": ["$import os"],
    "bundle_root": ".",
    "dataset_dir": "data",
    "flag": True,
    "data": "$[{'image': [os.path.join(@dataset_dir, f'P{n}_t{k}.nii.gz') for k in (1, 2)]} for n in (1, 2, 3)]",
    "network_def": {**NETWORK, "strides": [2], "norm": "batch"},
    "preprocessing": {"_target_": "Compose", "transforms": [LOAD, {"_target_": "EnsureTyped", "keys": "image"}]},
    "dataset": {"_target_": "Dataset", "data": "@data", "transform": "@preprocessing"},
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
    "postprocessing": {"_target_": "Compose", "transforms": [SOFTMAX]},
    "evaluator": {
        "_target_": "SupervisedEvaluator",
        "device": "cpu",
        "val_data_loader": "@dataloader",
        "network": "@network_def",
        "postprocessing": "@postprocessing",
    },
    "initialize": ["$monai.utils.set_determinism(0)", "$open('flag', 'a').write(repr(@flag) + ' ')"],
    "run": ["$@evaluator.run()"],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    (tmp_path / "data #1").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "data #1")
    (tmp_path / "configs").mkdir()
    random = np.random.default_rng(0)
    for case in ("P1", "P2", "P3"):
        for kind in ("t1", "t2"):
            image = nibabel.Nifti1Image(random.random((8, 8, 8)).astype(np.float32), np.eye(4))
            nibabel.save(image, tmp_path / "data" / f"{case}_{kind}.nii.gz")
    return tmp_path


@pytest.fixture
def adapt(folder, monkeypatch, capsys):
    """Run the overlay in this process, and return the exit status and what was printed."""

    def adapt(*words, **keys):
        (folder / "configs" / "inference.json").write_text(json.dumps({**CONFIG, **keys}), encoding="utf-8")
        files = f"['configs/inference.json','{grata.overlay()}']"
        words = ["run", "adapt", "--config_file", files, "--method", "ptbn", "--adaptation#overwrite", "true", *words]
        words += ["--adaptation#guard", "false"]
        monkeypatch.setattr(sys, "argv", ["monai.bundle", *words])
        try:
            fire.Fire({"run": monai.bundle.run}, words)
            status = 0
        except SystemExit as end:
            status = end.code
        return status, capsys.readouterr().out

    return adapt


CACHING = [
    *("CacheDataset", "monai.data.CacheDataset", "SmartCacheDataset", "PersistentDataset", "CacheNTransDataset"),
    *(["LMDBDataset"] if optional_import("lmdb")[1] else []),
]


@pytest.mark.parametrize("kind", CACHING)
def test_a_bad_file_in_a_caching_data_set_is_one_fault(kind, adapt, folder):
    own = {"PersistentDataset": {"cache_dir": "cache"}, "LMDBDataset": {"cache_dir": "cache"}}
    own["CacheNTransDataset"] = {"cache_dir": "cache", "cache_n_trans": 1}
    own["SmartCacheDataset"] = {"replace_rate": 0.5, "cache_num": 2}
    dataset = {**CONFIG["dataset"], "_target_": kind, **own.get(kind, {})}
    (folder / "data" / "P2_t2.nii.gz").write_text("junk")
    status, out = adapt(dataset=dataset)
    assert status == 1 and "2 of 3 images done" in out and "  P2_t1: " in out


def test_a_caching_data_set_gives_the_same_images(folder, monkeypatch):
    data = [{"image": [f"data/{case}_{kind}.nii.gz" for kind in ("t1", "t2")]} for case in ("P1", "P2")]
    keys = {"data": data, "transform": CONFIG["preprocessing"]}
    for kind in ("CacheDataset", "SmartCacheDataset"):
        parser = ConfigParser({"dataset": {"_target_": kind, **keys, "cache_num": 1}})
        assert read_lazily(parser) and not read_lazily(parser)
        lazy = parser.get_parsed_content("dataset")
        whole = CacheDataset(data, parser.get_parsed_content("dataset#transform"), progress=False)
        assert [item["image"].sum() for item in lazy] == [item["image"].sum() for item in whole]


@pytest.mark.parametrize("target", ["Dataset", "scripts.MyDataset", "nowhere.CacheDataset", "UNet", "$torch.nn.ReLU"])
def test_other_components_are_left_as_they_are(target):
    parser = ConfigParser({"a": {"_target_": target, "x": [1]}})
    assert not read_lazily(parser) and parser.get("a") == {"_target_": target, "x": [1]}


@pytest.mark.parametrize("missing", [["P2_t1"], ["P2_t2"], ["P2_t1", "P2_t2"]])
def test_a_missing_modality_is_named(missing, adapt, folder):
    for name in missing:
        (folder / "data" / f"{name}.nii.gz").unlink()
    status, out = adapt()
    (line,) = [line for line in out.splitlines() if line.startswith("  P2_t1: ")]
    assert status == 1 and "2 of 3 images done" in out and "not exist" in line
    assert [f"P2_{kind}.nii.gz" in line for kind in ("t1", "t2")] == [f"P2_{kind}" in missing for kind in ("t1", "t2")]
    assert str(folder) not in line


def test_a_folder_with_a_number_sign_is_read(adapt):
    status, out = adapt("--dataset_dir", "data #1")
    assert status == 0 and "3 of 3 images done" in out


@pytest.mark.parametrize(
    "words, read",
    [
        (["--flag", "false"], "False"),
        (["--flag", "true"], "True"),
        (["--flag=FALSE"], "False"),
        (["--flag", "null"], "None"),
        (["--flag", "[false,{a: null}]"], "[False, {'a': None}]"),
        (["--flag", "0.5"], "0.5"),
        (["--flag", "3"], "3"),
        (["--flag", "falsely"], "'falsely'"),
    ],
)
def test_words_mean_what_yaml_says(words, read, folder, monkeypatch):
    """The bundle's own ``initialize`` runs again, since it made its objects of the text."""
    key, _, value = words[0].partition("=")
    value = fire.parser.DefaultParseValue(value or words[1])
    parser = ConfigParser({"flag": True, "seen": "$@flag"})
    parser["flag"] = value
    assert read_words(parser, {"flag": value}) == (parser.get("flag") != value or "null" in str(value))
    assert repr(parser.get_parsed_content("seen")) == read


def test_a_switch_of_the_bundle_that_is_given_as_a_word(adapt, folder):
    status, _ = adapt("--flag", "false")
    assert status == 0 and (folder / "flag").read_text().split() == ["'false'", "False"]


@pytest.mark.parametrize("state", ["missing", "pointer", "script"])
def test_weights_that_were_never_downloaded_are_named_with_what_downloads_them(state, adapt, folder):
    (folder / "models").mkdir()
    (folder / "large_files.yml").touch()
    if state != "missing":
        (folder / "models" / "model.pt").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
        )
    load = {"_target_": "CheckpointLoader", "load_path": "models/model.pt", "load_dict": {"model": "@network_def"}}
    keys = {"evaluator": {**CONFIG["evaluator"], "val_handlers": [load]}}
    if state == "script":
        keys = {"network_def": "$torch.jit.load('models/model.pt')"}
    with pytest.raises(Exception) as raised:
        adapt(**keys)
    message = explain(raised.value)
    assert f"python -m monai.bundle download_large_files --bundle_path {folder}" in message, message
    assert ("Git LFS" in message) == (state != "missing")
