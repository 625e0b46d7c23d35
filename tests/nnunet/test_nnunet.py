"""Adaptation and prediction of a small nnU-Net that nnU-Net itself trained."""

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import zipfile

import nibabel as nib
import numpy as np
import pytest
import torch

from grata.bank import AdapterBank, export_checkpoint
from grata.doctor.doctor import examine
from grata.errors import GrataError
from grata.files import atomic_write
from grata.methods import StepRecord
from grata.nnunet import AdaptedPredictor, describe, load_model, predict
from grata.nnunet import run as nnunet_run
from grata.nnunet.checkpoints import read_checkpoint
from grata.nnunet.command import run_command
from grata.nnunet.predictor import mirror_views
from grata.session.keeper import Keeper
from grata.views import VIEWS

pytest.importorskip("nnunetv2")

# A learning rate at which a few windows make a difference.
SETTINGS = {"lr": 0.05}
# The networks were trained for a moment, and a guard would rightly object; doors and sessions have its tests.
QUICK = {"device": "cpu", "use_mirroring": False, "guard": False}


def outputs(folder, case):
    """Voxels and affine of a segmentation, and its probabilities where they were saved."""
    image = nib.load(folder / f"{case}.nii.gz")
    saved = folder / f"{case}.npz"
    probabilities = np.load(saved)["probabilities"] if saved.is_file() else None
    return np.asanyarray(image.dataobj), image.affine, probabilities


def assert_same(first, second, case):
    for one, other in zip(outputs(first, case), outputs(second, case), strict=True):
        np.testing.assert_array_equal(one, other)


def journal(folder):
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def nnunet_itself(model, images, output, folds, mirroring):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(use_mirroring=mirroring, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), use_folds=folds)
    output.mkdir()
    predictor.predict_from_files_sequential(str(images), str(output), save_probabilities=True)


def volume(shape, seed=0):
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("configuration", "folds", "mirroring"),
    [("3d_fullres", (0, 1), False), ("3d_fullres", (1,), True), ("2d", (0,), True)],
)
def test_the_source_network_predicts_as_nnunet_itself_does(trained, images, tmp_path, configuration, folds, mirroring):
    model = trained[configuration]
    nnunet_itself(model, images, tmp_path / "theirs", folds, mirroring)
    settings = {"folds": folds, "use_mirroring": mirroring, "device": "cpu", "save_probabilities": True}
    assert predict(model, images, tmp_path / "ours", "source", **settings) == 0
    for case in ("case7", "case8"):
        assert_same(tmp_path / "ours", tmp_path / "theirs", case)
    voxels, affine, probabilities = outputs(tmp_path / "ours", "case7")
    scan = nib.load(images / "case7_0000.nii.gz")
    assert voxels.shape == scan.shape and len(np.unique(voxels)) > 1 and probabilities.std() > 0
    np.testing.assert_allclose(affine, scan.affine, atol=1e-5)


def test_only_normalization_layers_change(trained):
    for configuration, shape in (("3d_fullres", (20, 24, 18)), ("2d", (5, 24, 18))):
        predictor = AdaptedPredictor(load_model(trained[configuration], 0), "grata", SETTINGS)
        network, weights = predictor.methods["0"].given, predictor.model.checkpoint.weights
        with predictor.case(volume(shape)):
            pass
        changed = {name for name, value in network.state_dict().items() if not torch.equal(value, weights[name])}
        # nnU-Net's blocks list a normalization layer twice: by its name and in the list of all modules.
        layers = {name for name, module in network.named_modules(remove_duplicate=False) if "Norm" in str(type(module))}
        assert changed and changed <= {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}


def test_an_adapted_run_repeats_bit_for_bit_and_differs_from_the_source(trained, images, tmp_path):
    settings = QUICK | {"folds": [0, 1], "save_probabilities": True, "guard": True}
    for name in ("first", "second"):
        assert predict(trained["3d_fullres"], images, tmp_path / name, "grata", SETTINGS, **settings) == 0
    predict(trained["3d_fullres"], images, tmp_path / "source", "source", **settings)
    for case in ("case7", "case8"):
        assert_same(tmp_path / "first", tmp_path / "second", case)
        assert not np.array_equal(outputs(tmp_path / "first", case)[2], outputs(tmp_path / "source", case)[2])
    measured = dict.fromkeys(("seconds", "seconds_predict", "seconds_judge", "peak_memory_mib"))
    lines, again = ([line | measured for line in journal(tmp_path / name)] for name in ("first", "second"))
    assert lines == again
    assert [(line["case"], line["fold"]) for line in lines] == list(itertools.product(("case7", "case8"), "01"))
    for fold in "01":
        first, second = (line["parameter_change"]["l2"] for line in lines if line["fold"] == fold)
        assert 0 < first != second
    assert [path.name for path in (tmp_path / "first").iterdir() if path.name.startswith(".")] == [".lock"]


def test_folds_adapt_apart_and_their_logits_are_averaged(trained):
    data, logits = volume((20, 24, 18)), {}
    for folds in ("0", "1", ("0", "1")):
        predictor = AdaptedPredictor(load_model(trained["3d_fullres"], folds), "grata", SETTINGS, use_mirroring=False)
        with predictor.case(data) as predicted:
            logits[folds] = predicted
        assert torch.equal(predictor.logits(data), predicted)
    assert not torch.equal(logits["0"], logits["1"])
    assert torch.equal(logits["0", "1"], (logits["0"] + logits["1"]) / 2)


@pytest.mark.parametrize(("configuration", "shape"), [("3d_fullres", (20, 24, 12)), ("2d", (3, 24, 12))])
def test_windows_are_nnunets_own_the_most_uncertain_first(trained, monkeypatch, configuration, shape):
    predictor = AdaptedPredictor(
        load_model(trained[configuration], 0), windows={"uncertain": 2, "random": 1, "batch_size": 1}
    )
    method, data, taken = predictor.methods["0"], volume(shape), []
    monkeypatch.setattr(method, "adapt", lambda batch: taken.append(batch) or StepRecord())
    with predictor.case(data):
        pass
    # The last axis is shorter than the patch and gets two zeros on each side; the others take steps of half a patch.
    padded = torch.nn.functional.pad(data, (2, 2))
    if configuration == "2d":
        windows = [padded[:, d, y : y + 16] for d in range(3) for y in (0, 8)]
    else:
        windows = [padded[:, x : x + 16, y : y + 16] for x in (0, 4) for y in (0, 8)]
    order = sorted(range(len(windows)), key=lambda i: -method.uncertainty(windows[i][None]).item())
    assert len(taken) == 3 < len(windows)
    for batch, index in zip(taken, order[:2]):
        assert torch.equal(batch, windows[index][None])
    assert any(torch.equal(taken[2], windows[index][None]) for index in order[2:])


def test_an_image_that_fits_into_the_patch_is_adapted_to_whole(trained, monkeypatch):
    predictor = AdaptedPredictor(load_model(trained["3d_fullres"], 0))
    taken = []
    monkeypatch.setattr(predictor.methods["0"], "adapt", lambda batch: taken.append(batch) or StepRecord())
    with predictor.case(volume((12, 16, 10))):
        pass
    assert len(taken) == 1 and torch.equal(taken[0][0, :, 2:14, :, 3:13], volume((12, 16, 10)))


def test_weak_views_are_nnunets_own_mirrored_images():
    for dims in (2, 3):
        x = torch.randn(1, 1, *(4, 5, 6)[:dims])
        axes = [c for n in range(dims + 1) for c in itertools.combinations(range(2, dims + 2), n)]
        theirs = [torch.flip(x, c) for c in axes]
        ours = [VIEWS[name](x) for name in mirror_views(range(dims), dims)]
        assert len(ours) == len(theirs) == 2**dims
        assert all(any(torch.equal(one, other) for other in theirs) for one in ours)
    assert mirror_views(None, 3) == ["identity"]
    assert mirror_views((0,), 3) == ["identity", "flip_d"]


def test_settings_default_to_what_nnunet_knows(trained):
    given = {"strong_view": {"noise": [0.0, 0.1]}}
    method = AdaptedPredictor(load_model(trained["2d"], 0), "grata", given).methods["0"]
    assert (method.activation, method.strong_view.output_range, method.strong_view.noise) == (
        "softmax", "input", (0.0, 0.1),
    )  # fmt: skip
    given = {"views": ["identity"], "strong_view": {"output_range": "unit"}}
    method = AdaptedPredictor(load_model(trained["2d"], 0), "grata", given).methods["0"]
    assert (list(method.views), method.strong_view.output_range) == (["identity"], "unit")


def test_regions_are_adapted_with_sigmoid_and_predicted_as_nnunet_does(edited, images, tmp_path):
    def regions(dataset):
        dataset["labels"] = {"background": 0, "organ": [1, 2], "lesion": 2}
        dataset["regions_class_order"] = [1, 2]

    def two_heads(checkpoint):
        weights = checkpoint["network_weights"]
        for name in weights:
            if ".seg_layers." in name:
                weights[name] = weights[name][:2].clone()

    model = edited(dataset=regions, checkpoint=two_heads)
    assert describe(model)["activation"] == "sigmoid"
    nnunet_itself(model, images, tmp_path / "theirs", (0,), False)
    assert predict(model, images, tmp_path / "ours", "source", save_probabilities=True, **QUICK) == 0
    assert_same(tmp_path / "ours", tmp_path / "theirs", "case7")
    predictor = AdaptedPredictor(load_model(model), "tent", SETTINGS)
    assert predictor.methods["0"].activation == "sigmoid"
    with predictor.case(volume((16, 16, 16)), "a"):
        pass
    assert "step_skipped" not in predictor.sessions["0"].flags.get("a", ())


def test_norms_without_affine_parameters_are_given_some(edited):
    def plain(plans):
        plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["norm_op_kwargs"]["affine"] = False

    def drop(checkpoint):
        weights = checkpoint["network_weights"]
        for name in [name for name, value in weights.items() if value.ndim == 1 and not _is_convolution(name, weights)]:
            del weights[name]

    model = edited(plans=plain, checkpoint=drop)
    found = describe(model)
    assert found["refused"] == [] and found["attached"] == found["parameters"] > 0
    data = volume((16, 16, 16))
    source = AdaptedPredictor(load_model(model), "source").logits(data)
    predictor = AdaptedPredictor(load_model(model), "grata", SETTINGS)
    assert torch.equal(predictor.logits(data), source)
    with predictor.case(data) as logits:
        assert not torch.equal(logits, source)
    with pytest.raises(GrataError, match="nothing to adapt"):
        AdaptedPredictor(load_model(model), "grata", affine="own")


def _is_convolution(name, weights):
    return weights[f"{name.rpartition('.')[0]}.weight"].ndim > 1


@pytest.mark.parametrize("method", ["ptbn", "dua", "tent"])
def test_networks_with_batch_normalization_take_methods_of_its_statistics(edited, method):
    def batch_norm(plans):
        arguments = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
        arguments["norm_op"] = "torch.nn.modules.batchnorm.BatchNorm3d"

    def statistics(checkpoint):
        weights = checkpoint["network_weights"]
        for name in [name for name in weights if name.endswith(".weight") and weights[name].ndim == 1]:
            layer, count = name.removesuffix(".weight"), len(weights[name])
            weights |= {f"{layer}.running_mean": torch.zeros(count), f"{layer}.running_var": torch.ones(count)}
            weights[f"{layer}.num_batches_tracked"] = torch.tensor(1)

    model = load_model(edited(plans=batch_norm, checkpoint=statistics))
    assert describe(model.folder)["normalization"] == {"BatchNorm3d": 5}
    data = volume((16, 16, 20))
    # those statistics are made up, so that a guard would keep the source prediction
    predictor = AdaptedPredictor(model, method, guard=False)
    before = predictor.logits(data)
    assert torch.equal(before, AdaptedPredictor(model, "source").logits(data))
    with predictor.case(data) as logits:
        assert not torch.equal(logits, before)


def test_a_bad_case_is_reported_and_the_others_are_as_without_it(trained, images, tmp_path, capsys):
    mixed = tmp_path / "mixed"
    shutil.copytree(images, mixed)
    (mixed / "case7b_0000.nii.gz").write_bytes(b"no image")
    shutil.copy(mixed / "case7_0000.nii.gz", mixed / "case9_0001.nii.gz")
    shutil.copy(mixed / "case7_0000.nii.gz", mixed / "plain.nii.gz")
    model = trained["3d_fullres"]
    settings = QUICK | {"folds": 0, "save_probabilities": True}
    assert predict(model, mixed, tmp_path / "mixed_out", "grata", SETTINGS, **settings) == 1
    assert predict(model, images, tmp_path / "out", "grata", SETTINGS, **settings) == 0
    for case in ("case7", "case8"):
        assert_same(tmp_path / "mixed_out", tmp_path / "out", case)
    summary = json.loads((tmp_path / "mixed_out" / "summary.json").read_text())
    assert (summary["cases_found"], summary["cases_finished"]) == (5, 2)
    faults = {fault["case"]: fault["message"] for fault in summary["faults"]}
    assert faults.keys() == {"case7b", "case9", "plain"}
    assert "case7b_0000.nii.gz" in faults["case7b"]
    assert "needs case9_0000.nii.gz" in faults["case9"]
    assert "plain_0000.nii.gz" in faults["plain"]
    assert "case7b" in capsys.readouterr().out
    assert [line["case"] for line in journal(tmp_path / "mixed_out") if "fault" in line] == ["case7b"]


def test_finished_cases_are_kept_when_nothing_is_to_be_overwritten(trained, images, tmp_path):
    model, settings = trained["3d_fullres"], QUICK | {"folds": 0}
    assert predict(model, images, tmp_path, "grata", SETTINGS, **settings) == 0
    before, lines = outputs(tmp_path, "case8")[0], journal(tmp_path)
    (tmp_path / "case8.nii.gz").unlink()
    written = (tmp_path / "case7.nii.gz").stat().st_mtime_ns
    assert predict(model, images, tmp_path, "source", overwrite=False, **settings) == 0
    assert (tmp_path / "case7.nii.gz").stat().st_mtime_ns == written
    after = journal(tmp_path)
    assert after[0] == lines[0] and [line["method"] for line in after] == ["grata", "source"]
    assert predict(model, images, tmp_path, "grata", SETTINGS, **settings) == 0
    np.testing.assert_array_equal(outputs(tmp_path, "case8")[0], before)
    assert len(journal(tmp_path)) == 2


def test_a_bank_lets_each_site_go_on_from_where_it_stood(trained, images, tmp_path):
    model, settings = trained["3d_fullres"], QUICK | {"folds": [0, 1], "save_probabilities": True}
    for case in ("case7", "case8"):
        (tmp_path / case).mkdir()
        shutil.copy(images / f"{case}_0000.nii.gz", tmp_path / case)
    for number, (site, case) in enumerate([("A", "case7"), ("B", "case8"), ("A", "case8")]):
        kept = settings | {"site": site, "bank": tmp_path / "bank"}
        assert predict(model, tmp_path / case, tmp_path / str(number), "grata", SETTINGS, **kept) == 0
    assert predict(model, images, tmp_path / "alone", "grata", SETTINGS, **settings) == 0
    assert_same(tmp_path / "2", tmp_path / "alone", "case8")
    assert not np.array_equal(outputs(tmp_path / "1", "case8")[2], outputs(tmp_path / "2", "case8")[2])
    assert len(AdapterBank(tmp_path / "bank" / "fold_1").entries()) == 2
    with pytest.raises(GrataError, match="bank: the bank keeps one adaptation per site"):
        predict(model, images, tmp_path / "out", bank=tmp_path / "bank")


class Killed(BaseException):
    pass


@pytest.mark.parametrize("when", ["between the folds", "before the end"])
def test_a_run_that_is_killed_leaves_no_finished_case_that_the_bank_did_not_learn(
    when, trained, images, tmp_path, monkeypatch
):
    def banks():
        folders = [AdapterBank(tmp_path / "bank" / f"fold_{fold}") for fold in (0, 1)]
        return [[bank.read(name).cases for name in bank.entries()] for bank in folders]

    settings = QUICK | {"folds": [0, 1], "site": "A", "bank": tmp_path / "bank", "overwrite": False}
    arguments = (trained["2d"], images, tmp_path / "out", "tent", SETTINGS)
    kept = []

    def kill():
        # Fails after the first case.
        if len(kept) == (3 if when == "between the folds" else 4):
            raise Killed

    def keep(keeper):
        kill()
        original(keeper)
        kept.append(keeper)

    @contextlib.contextmanager
    def write(path):
        with atomic_write(path) as temporary:
            yield temporary
            kill()

    original = Keeper.keep
    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "keep", keep)
        patch.setattr(nnunet_run, "atomic_write", write)
        with pytest.raises(Killed):
            predict(*arguments, **settings)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["case7.nii.gz"]
    assert banks() == ([[2], [1]] if when == "between the folds" else [[2], [2]])
    assert predict(*arguments, **settings) == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["case7.nii.gz", "case8.nii.gz"]
    # A fold that had kept the case adapts to it once more.
    assert banks() == ([[3], [2]] if when == "between the folds" else [[3], [3]])


def test_a_case_that_cannot_be_exported_leaves_no_trace_in_the_bank(trained, images, tmp_path, monkeypatch):
    def refuse(*arguments):
        if "case8" in str(arguments[5]):
            raise ValueError("no export")
        return export(*arguments)

    from nnunetv2.inference import export_prediction

    export = export_prediction.export_prediction_from_logits
    monkeypatch.setattr(export_prediction, "export_prediction_from_logits", refuse)
    settings = QUICK | {"folds": 0, "site": "A", "bank": tmp_path / "bank"}
    assert predict(trained["2d"], images, tmp_path / "out", "tent", SETTINGS, **settings) == 1
    (line,) = [line for line in journal(tmp_path / "out") if "fault" not in line]
    bank = AdapterBank(tmp_path / "bank" / "fold_0")
    card = bank.read(bank.entries()[0]).card
    assert card["cases"] == 1 and card["parameter_change"] == line["parameter_change"]


def test_nnunet_itself_predicts_with_an_exported_checkpoint_as_the_adapted_network(trained, images, tmp_path):
    settings = QUICK | {"folds": 0, "site": "A", "bank": tmp_path / "bank", "save_probabilities": True}
    assert predict(trained["2d"], images, tmp_path / "ours", "grata", SETTINGS, **settings) == 0
    bank = AdapterBank(tmp_path / "bank" / "fold_0")
    merged = tmp_path / "merged"
    (merged / "fold_0").mkdir(parents=True)
    for name in ("plans.json", "dataset.json"):
        shutil.copy(trained["2d"] / name, merged)
    checkpoint = "fold_0/checkpoint_final.pth"
    export_checkpoint(bank.read(bank.entries()[0]), trained["2d"] / checkpoint, merged / checkpoint)
    nnunet_itself(merged, images, tmp_path / "theirs", (0,), False)
    # The checkpoint holds the parameters that the last case was predicted with.
    assert_same(tmp_path / "ours", tmp_path / "theirs", "case8")
    assert not np.array_equal(outputs(tmp_path / "ours", "case7")[2], outputs(tmp_path / "theirs", "case7")[2])


class _Evil:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_checkpoint_that_would_run_code_is_refused_unrun(edited, images, tmp_path):
    marker = tmp_path / "marker"
    model = edited(checkpoint=lambda checkpoint: checkpoint.update(logging=_Evil(marker)))
    with pytest.raises(GrataError, match=r"checkpoint_final\.pth: it needs posix\.mkdir"):
        predict(model, images, tmp_path / "out", **QUICK)
    assert "posix.mkdir" in describe(model)["refused"][0]
    assert not marker.exists()


@pytest.mark.parametrize("function", ["os.system", "torch.os.system"])
def test_plans_that_name_a_function_of_the_system_are_refused_uncalled(function, edited, tmp_path):
    def evil(plans):
        arguments = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
        arguments |= {"nonlin": function, "nonlin_kwargs": {"command": f"mkdir {tmp_path / 'marker'}"}}

    model = load_model(edited(plans=evil))
    with pytest.raises(GrataError, match=rf"names {function}, which is not a part of a network"):
        model.network("0")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("key", ["network_class_name", "nonlin"])
def test_plans_do_not_import_what_lies_in_the_working_directory(key, edited, tmp_path, monkeypatch):
    def evil(plans):
        architecture = plans["configurations"]["3d_fullres"]["architecture"]
        (architecture if key in architecture else architecture["arch_kwargs"])[key] = "evil.Network"

    (tmp_path / "evil.py").write_text(
        f"import os, torch\nos.mkdir({str(tmp_path / 'marker')!r})\nNetwork = torch.nn.ReLU"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    found = describe(edited(plans=evil))
    assert [reason for reason in found["refused"] if "names evil.Network, which is not a part of a network" in reason]
    assert not (tmp_path / "marker").exists()


def test_checkpoints_written_with_an_older_numpy_are_read(trained, tmp_path):
    path = trained["3d_fullres"] / "fold_0" / "checkpoint_final.pth"
    older = tmp_path / "older.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(older, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                assert b"cnumpy._core.multiarray\nscalar\n" in content
                content = content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
            target.writestr(name, content)
    for name, value in read_checkpoint(path).weights.items():
        assert torch.equal(value, read_checkpoint(older).weights[name])


def test_what_cannot_be_adapted_is_refused_with_the_reason(edited, trained, images, tmp_path):
    def cascade(plans):
        plans["configurations"]["3d_fullres"]["previous_stage"] = "3d_lowres"

    def unknown(checkpoint):
        checkpoint["trainer_name"] = "nnUNetTrainerOfAFriend"

    model = edited(plans=cascade, checkpoint=unknown)
    with pytest.raises(GrataError, match="second stage of a cascade.*3d_lowres"):
        predict(model, images, tmp_path / "out", **QUICK)
    refused = describe(model)["refused"]
    assert len(refused) == 2 and "cascade" in refused[0] and "nnUNetTrainerOfAFriend" in refused[1]
    with pytest.raises(GrataError, match="no fold 4.*it has 0, 1"):
        load_model(trained["3d_fullres"], [0, 4])
    with pytest.raises(GrataError, match="plans.json cannot be read"):
        load_model(tmp_path)
    (model / "fold_0" / "checkpoint_final.pth").write_bytes(b"PK damaged")
    with pytest.raises(GrataError, match="is damaged or not a checkpoint"):
        load_model(model)
    torch.save({"state_dict": {}}, model / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(GrataError, match="not a checkpoint of nnU-Net v2"):
        load_model(model)


def test_a_network_of_other_weights_is_refused(edited):
    model = edited(checkpoint=lambda checkpoint: checkpoint["network_weights"].popitem())
    with pytest.raises(GrataError, match="weights do not fit"):
        load_model(model).network("0")


def test_describe_reports_what_is_in_the_folder(trained):
    found = describe(trained["2d"])
    network = load_model(trained["2d"]).network("0")
    norms = [module for module in network.modules() if isinstance(module, torch.nn.InstanceNorm2d)]
    assert found["refused"] == [] and found["folds"] == ["0", "1"] and found["configuration"] == "2d"
    assert (found["spatial_dims"], found["patch_size"], found["spacing"]) == (2, [16, 16], pytest.approx([1.0, 1.2]))
    assert (found["channels"], found["labels"], found["classes"]) == (["MRI"], ["background", "organ", "lesion"], 3)
    assert found["normalization"] == {"InstanceNorm2d": len(norms)} and found["network"] == "PlainConvUNet"
    assert found["parameters"] == sum(2 * norm.num_features for norm in norms) and found["attached"] == 0


def test_the_doctor_reports_it(trained, edited):
    report = examine(trained["3d_fullres"])
    assert report.facts["head"] == "softmax (by nnU-Net's labels)" and "PlainConvUNet, 3D" in report.facts["network"]
    assert report.methods["grata"] == "" and "running statistics" in report.methods["ptbn"] and report.adapts
    cascade = edited(plans=lambda plans: plans["configurations"]["3d_fullres"].update(previous_stage="3d_lowres"))
    assert "cascade" in str(examine(cascade)) and not examine(cascade).adapts


def test_without_nnunet_the_message_says_how_to_install_it(trained, images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nnunetv2", None)
    with pytest.raises(GrataError, match=r'pip install -e "\.\[nnunet\]"'):
        predict(trained["2d"], images, tmp_path / "out")


def test_the_command_line(trained, images, tmp_path):
    command = [sys.executable, "-m", "grata", "nnunet", trained["2d"], images, tmp_path / "out", "--folds", "0"]
    options = ["--method", "tent", "--settings#lr", "0.01", "--device", "cpu", "--use_mirroring", "false"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("nnUNet_")}
    done = subprocess.run(
        [*command, *options, "--site", "A"], capture_output=True, text=True, env=environment, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "2 of 2 cases finished" in done.stdout and "nnUNet_" not in done.stdout + done.stderr
    assert [(line["method"], line["site"]) for line in journal(tmp_path / "out")] == [("tent", "A")] * 2
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["settings"]["settings"] == {"lr": 0.01}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fold": 0}, "fold: there is no such option. Did you mean folds"),
        ({"settings#lrr": 0.1}, "settings#lrr: method grata has no such setting; did you mean settings#lr"),
        ({"windows#uncertain": -1}, "windows#uncertain: must be a whole number of at least 0, got -1"),
        ({"overwrite": "maybe"}, "overwrite: must be true or false"),
        ({"tile_step_size": 2}, "tile_step_size: must be a finite number above 0 and at most 1, got 2"),
        ({"device": "gpu"}, "device: 'gpu' is not a device"),
    ],
)
def test_wrong_options_are_named(trained, images, tmp_path, options, message):
    with pytest.raises(GrataError, match=message):
        run_command(trained["2d"], images, tmp_path / "out", "grata", **options)
