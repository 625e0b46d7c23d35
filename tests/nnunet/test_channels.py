"""Channels are counted once nnU-Net's own reader has read them: a file may hold several."""

import json
import os
import re
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from skimage import io

from grata.doctor.doctor import examine
from grata.errors import GrataError
from grata.nnunet import load_model, predict

pytest.importorskip("nnunetv2")

SHAPE = {2: (20, 24), 3: (16, 20, 18)}


def make_model(folder, reader, ending, dims):
    """A trained-model folder of three channels with a small random network."""
    plain = "torch.nn.modules"
    architecture = {
        "n_stages": 2,
        "features_per_stage": [4, 8],
        "conv_op": f"{plain}.conv.Conv{dims}d",
        "kernel_sizes": [[3] * dims] * 2,
        "strides": [[1] * dims, [2] * dims],
        "n_conv_per_stage": [1, 1],
        "n_conv_per_stage_decoder": [1],
        "conv_bias": True,
        "norm_op": f"{plain}.instancenorm.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    resampling = {
        f"resampling_fn_{name}{end}": value
        for name in ("data", "seg", "probabilities")
        for end, value in (
            ("", "resample_data_or_seg_to_shape"),
            ("_kwargs", {"is_seg": name == "seg", "order": 1, "order_z": 0, "force_separate_z": None}),
        )
    }
    name = "2d" if dims == 2 else "3d_fullres"
    configuration = {
        "data_identifier": f"nnUNetPlans_{name}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [16] * dims,
        "median_image_size_in_voxels": [16.0] * dims,
        "spacing": [1.0] * dims,
        "normalization_schemes": ["ZScoreNormalization"] * 3,
        "use_mask_for_norm": [False] * 3,
        **resampling,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": architecture,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }
    plans = {
        "dataset_name": "Dataset001_Channels",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0] * 3,
        "original_median_shape_after_transp": [16] * 3,
        "image_reader_writer": reader,
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {name: configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(channel): {} for channel in range(3)},
    }
    dataset = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, "organ": 1},
        "numTraining": 1,
        "file_ending": ending,
    }
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    checkpoint = {
        "network_weights": {},
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": name},
        "inference_allowed_mirroring_axes": None,
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        checkpoint["network_weights"] = random_network(folder).state_dict()
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return folder


def random_network(folder):
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from torch import nn

    plans = json.loads((folder / "plans.json").read_text())
    (configuration,) = plans["configurations"].values()
    kwargs = dict(configuration["architecture"]["arch_kwargs"])
    for key in ("conv_op", "norm_op", "nonlin"):
        kwargs[key] = getattr(nn, kwargs[key].rpartition(".")[2])
    return PlainConvUNet(input_channels=3, num_classes=2, deep_supervision=False, **kwargs)


def values(dims, channels, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (*SHAPE[dims], channels), dtype=np.uint8)


def write_picture(path, array):
    io.imsave(path, array[..., 0] if array.shape[-1] == 1 else array, check_contrast=False)


def write_volume(path, array):
    array = array[..., 0] if array.shape[-1] == 1 else array
    nib.save(nib.Nifti1Image(array.astype(np.float32), np.eye(4)), path)


FORMATS = {
    "png": ("NaturalImage2DIO", ".png", 2, write_picture),
    "tif": ("NaturalImage2DIO", ".tif", 2, write_picture),
    "bmp": ("NaturalImage2DIO", ".bmp", 2, write_picture),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_files_of_several_channels_are_predicted_as_nnunet_itself_does(kind, tmp_path):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    reader, ending, dims, write = FORMATS[kind]
    model, folder = make_model(tmp_path / "model", reader, ending, dims), tmp_path / "images"
    folder.mkdir()
    write(folder / f"whole_0000{ending}", values(dims, 3))
    for channel in range(3):
        write(folder / f"apart_{channel:04d}{ending}", values(dims, 3)[..., channel : channel + 1])
    write(folder / f"grey_0000{ending}", values(dims, 1))
    write(folder / f"many_0000{ending}", values(dims, 4))
    write(folder / f"hole_0001{ending}", values(dims, 1))
    quick = {"device": "cpu", "use_mirroring": False, "guard": False}
    assert predict(model, folder, tmp_path / "out", "source", **quick) == 1

    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), use_folds=(0,))
    for case in ("whole", "apart"):
        files = [str(path) for path in sorted(folder.glob(f"{case}_*"))]
        predictor.predict_from_files_sequential([files], [str(tmp_path / case)])
        found, expected = (io.imread(place / f"{case}{ending}") for place in (tmp_path / "out", tmp_path))
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    faults = faults_of(tmp_path / "out")
    # a bitmap has no alpha
    assert faults.keys() - {"many"} == {"grey", "hole"} and ("many" in faults) == (kind != "bmp")
    assert "3 channels" in faults["grey"] and f"there is grey_0000{ending}, with 1" in faults["grey"]
    assert kind == "bmp" or f"there is many_0000{ending}, with 4" in faults["many"]
    assert f"needs hole_0000{ending}" in faults["hole"]


def test_a_colour_picture_is_adapted_to(tmp_path):
    model, folder = make_model(tmp_path / "model", "NaturalImage2DIO", ".png", 2), tmp_path / "images"
    folder.mkdir()
    for case in "ab":
        write_picture(folder / f"{case}_0000.png", values(2, 3))
    assert predict(model, folder, tmp_path / "out", "tent", device="cpu", use_mirroring=False, guard=False) == 0
    assert load_model(model).channels == 3


def test_a_volume_that_nnunet_reads_and_cannot_write_is_a_fault_in_words(tmp_path):
    """nnU-Net's own reader takes the channels of a 4D file, and its writer then fails."""
    model, folder = make_model(tmp_path / "model", "SimpleITKIO", ".nii.gz", 3), tmp_path / "images"
    folder.mkdir()
    write_volume(folder / "whole_0000.nii.gz", values(3, 3))
    for channel in range(3):
        write_volume(folder / f"apart_{channel:04d}.nii.gz", values(3, 3)[..., channel : channel + 1])
    assert predict(model, folder, tmp_path / "out", "source", device="cpu", use_mirroring=False, guard=False) == 1
    faults = faults_of(tmp_path / "out")
    assert faults.keys() == {"whole"} and "one file for each channel" in faults["whole"]
    assert (tmp_path / "out" / "apart.nii.gz").is_file()


def faults_of(folder):
    return {fault["case"]: fault["message"] for fault in json.loads((folder / "summary.json").read_text())["faults"]}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have Unicode names alone")
def test_a_name_that_is_not_text_is_one_like_others(tmp_path):
    """ITK ends the whole process over bytes of a name that it cannot write."""
    odd = os.fsdecode(b"odd_\xff")
    model, folder = make_model(tmp_path / "model", "SimpleITKIO", ".nii.gz", 3), tmp_path / odd
    folder.mkdir()
    for case in (odd, "Größe_é"):
        for channel in range(3):
            write_volume(tmp_path / "x.nii.gz", values(3, 1, channel))
            (tmp_path / "x.nii.gz").rename(folder / f"{case}_{channel:04d}.nii.gz")
    output = tmp_path / f"{odd}-out"
    assert predict(model, folder, output, "source", device="cpu", use_mirroring=False, save_probabilities=True) == 0
    for case in (odd, "Größe_é"):
        assert all((output / f"{case}{ending}").is_file() for ending in (".nii.gz", ".npz", ".pkl"))
    rows = (output / "cases.csv").read_text("utf-8", errors="surrogateescape").splitlines()[1:]
    assert sorted(row.split(",")[0] for row in rows) == sorted([odd, "Größe_é"])


def test_images_of_other_endings_are_named_once(tmp_path, capsys):
    model, folder = make_model(tmp_path / "model", "NaturalImage2DIO", ".png", 2), tmp_path / "images"
    folder.mkdir()
    for name in ("b.nii.gz", "c_0000.JPG", "d_0000.PNG", "e.img", "notes.txt", "dataset.json", "f.dcm"):
        (folder / name).write_bytes(b"something")
    passed = "5 files were passed over (1 .JPG, 1 .PNG, 1 .dcm, 1 .img, 1 .nii.gz), because images of this model end in"
    with pytest.raises(GrataError, match=re.escape(passed)):
        predict(model, folder, tmp_path / "out", "source", device="cpu")
    write_picture(folder / "a_0000.png", values(2, 3))
    assert predict(model, folder, tmp_path / "out", "source", device="cpu", use_mirroring=False, guard=False) == 0
    assert capsys.readouterr().out.count(f"note: {passed}") == 1


@pytest.mark.parametrize("method", ["eata", "ttas", "ttt"])
def test_no_command_for_bundles_is_advised(method, tmp_path, capsys):
    model, folder = make_model(tmp_path / "model", "NaturalImage2DIO", ".png", 2), tmp_path / "images"
    folder.mkdir()
    write_picture(folder / "a_0000.png", values(2, 3))
    with pytest.raises(GrataError, match="only for bundles with a configs/adapt.yaml, so choose another"):
        predict(model, folder, tmp_path / "out", method, device="cpu")
    assert not examine(model).methods[method].count("python -m grata prepare")
