import copy
import json
import zipfile

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import UNet

from grata.bank import Adaptation, export_checkpoint, save
from grata.errors import GrataError
from grata.networks import load_source
from grata.normalization import attach_affine

INSTANCE = ("instance", {"affine": True})


def adapted(method, images, path):
    for x in images[:2]:
        method.adapt(x)
    save(method, path)
    return Adaptation.read(path)


def untouched(before, after, changed):
    """Check that all tensors but ``changed`` are equal to the last bit, and that all have their type and layout."""
    assert list(before) == list(after)
    for name, value in before.items():
        assert after[name].dtype == value.dtype and after[name].shape == value.shape
        assert after[name].stride() == value.stride()
        assert (name in changed) != torch.equal(after[name], value), name


def nested(state):
    """Return a checkpoint as nnU-Net writes ``checkpoint_final.pth``, with NumPy numbers in its logs."""
    return {
        "network_weights": state,
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"train_losses": [np.float64(-0.5), np.float32(0.25)], "epoch": [1]},
        "_best_ema": np.float64(0.9),
        "current_epoch": 1000,
        "init_args": {"plans": {"name": "nnUNetPlans"}, "fold": 0},
        "inference_allowed_mirroring_axes": (0, 1),
    }


@pytest.mark.parametrize("form", ["plain", "model", "nnunet", "data parallel"])
def test_the_merged_checkpoint_predicts_as_the_adapted_network(form, make_method, make_network, images, tmp_path):
    source = make_network(2, norm=INSTANCE)
    state = copy.deepcopy(source.state_dict())
    content = {
        "plain": state,
        "model": {"model": state, "epoch": 3},
        "nnunet": nested(state),
        "data parallel": {"state_dict": {f"module.{name}": value for name, value in state.items()}},
    }[form]
    torch.save(content, tmp_path / "model.pt")
    method = make_method("tent", source)
    adaptation = adapted(method, images, tmp_path / "a")
    remarks = export_checkpoint(adaptation, tmp_path / "model.pt", tmp_path / "merged.pt")
    assert len(remarks) == 1 and f"{adaptation.parameters} values" in remarks[0]
    safe = [np.dtype, type(np.dtype("f8")), type(np.dtype("f4"))]
    safe += [(np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar")]
    with torch.serialization.safe_globals(safe):
        merged = torch.load(tmp_path / "merged.pt", weights_only=True)
    key = {"plain": None, "model": "model", "nnunet": "network_weights", "data parallel": "state_dict"}[form]
    written = merged if key is None else merged.pop(key)
    before = content if key is None else content.pop(key)
    prefix = "module." if form == "data parallel" else ""
    untouched(before, written, {prefix + name for name in method.parameters})
    if key is not None:
        assert repr(merged) == repr(content)
    network = make_network(2, norm=INSTANCE).eval()
    network.load_state_dict({name.removeprefix("module."): value for name, value in written.items()})
    with torch.no_grad():
        assert torch.equal(network(images[2]), method.network(images[2]))


def test_a_torchscript_network_is_merged_with_all_its_files(make_method, make_network, images, tmp_path):
    source = make_network(2, norm=INSTANCE).eval()
    extra = {"metadata.json": json.dumps({"version": "1.2"}), "notes/read.me": "é"}
    torch.jit.save(torch.jit.script(source), tmp_path / "model.ts", _extra_files=extra)
    method = make_method("tent", torch.jit.load(tmp_path / "model.ts"))
    adaptation = adapted(method, images, tmp_path / "a")
    export_checkpoint(adaptation, tmp_path / "model.ts", tmp_path / "merged.ts")
    found = dict.fromkeys(extra, "")
    merged = torch.jit.load(tmp_path / "merged.ts", _extra_files=found)
    assert {name: value.decode() for name, value in found.items()} == extra
    untouched(source.state_dict(), merged.state_dict(), set(method.parameters))
    with torch.no_grad():
        torch.testing.assert_close(merged(images[2]), method.network(images[2]), rtol=0, atol=0)
    with zipfile.ZipFile(tmp_path / "model.ts") as a, zipfile.ZipFile(tmp_path / "merged.ts") as b:
        assert sorted(name.split("/", 1)[1] for name in a.namelist()) == sorted(
            name.split("/", 1)[1] for name in b.namelist()
        )


def test_statistics_that_were_adapted_are_merged(make_method, make_network, images, tmp_path):
    torch.save(make_network(2).state_dict(), tmp_path / "model.pt")
    method = make_method("dua")
    remarks = export_checkpoint(adapted(method, images, tmp_path / "a"), tmp_path / "model.pt", tmp_path / "merged.pt")
    assert len(remarks) == 1
    network = load_source(make_network(2), tmp_path / "merged.pt", "cpu").eval()
    with torch.no_grad():
        assert torch.equal(network(images[2]), method.network(images[2]))


def test_the_teacher_is_merged_where_it_is_what_predicts(make_method, make_network, images, tmp_path):
    torch.save(make_network(2, norm=INSTANCE).state_dict(), tmp_path / "model.pt")
    method = make_method("cotta", make_network(2, norm=INSTANCE))
    export_checkpoint(adapted(method, images, tmp_path / "a"), tmp_path / "model.pt", tmp_path / "merged.pt")
    network = load_source(make_network(2, norm=INSTANCE), tmp_path / "merged.pt", "cpu").eval()
    with torch.no_grad():
        assert torch.equal(network(images[2]), method.network(images[2]))


def test_methods_that_need_statistics_of_the_batch_say_so(make_method, make_network, images, tmp_path):
    """The checkpoint predicts as the method does only with the statistics of the batch."""
    torch.save(make_network(2).state_dict(), tmp_path / "model.pt")
    method = make_method("tent")
    remarks = export_checkpoint(adapted(method, images, tmp_path / "a"), tmp_path / "model.pt", tmp_path / "merged.pt")
    assert "statistics of the batch" in remarks[1] and "ptbn" in remarks[1]
    network = load_source(make_network(2), tmp_path / "merged.pt", "cpu").eval()
    with torch.no_grad():
        assert not torch.allclose(network(images[2]), method.network(images[2]))
        ptbn = make_method("ptbn", network)
        ptbn.adapt(images[2])
        assert torch.equal(ptbn.network(images[2]), method.network(images[2]))


def test_methods_that_predict_by_more_than_weights_say_so(make_method, make_network, images, tmp_path):
    torch.save(make_network(2).state_dict(), tmp_path / "model.pt")
    adaptation = adapted(make_method("diga"), images, tmp_path / "a")
    remarks = export_checkpoint(adaptation, tmp_path / "model.pt", tmp_path / "merged.pt")
    assert "predicts with more than weights" in remarks[-1]


def test_attached_parameters_become_those_of_layers_with_affine_parameters(make_method, make_network, images, tmp_path):
    source = make_network(2, norm=("instance", {"affine": False}))
    torch.save(source.state_dict(), tmp_path / "model.pt")
    attach_affine(source)
    method = make_method("tent", source)
    adaptation = adapted(method, images, tmp_path / "a")
    remarks = export_checkpoint(adaptation, tmp_path / "model.pt", tmp_path / "merged.pt")
    assert f"{len(method.parameters)} keys were added" in remarks[1] and "affine: true" in remarks[1]
    network = load_source(make_network(2, norm=INSTANCE), tmp_path / "merged.pt", "cpu").eval()
    with torch.no_grad():
        torch.testing.assert_close(network(images[2]), method.network(images[2]))
        assert not torch.allclose(network(images[2]), make_network(2, norm=INSTANCE).eval()(images[2]))
    torch.jit.save(torch.jit.script(make_network(2, norm=("instance", {"affine": False}))), tmp_path / "model.ts")
    with pytest.raises(GrataError, match="TorchScript network has no place"):
        export_checkpoint(adaptation, tmp_path / "model.ts", tmp_path / "merged.ts")


class Shared(torch.nn.Module):
    """Lists one layer under two names, as nnU-Net's networks do."""

    def __init__(self, affine=True):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(1, 2, 3), torch.nn.InstanceNorm2d(2, affine=affine)
        self.all_modules = torch.nn.Sequential(self.conv, self.norm)

    def forward(self, x):
        return self.all_modules(x)


@pytest.mark.parametrize("affine", [True, False])
def test_what_a_network_lists_twice_is_changed_twice(affine, make_method, images, tmp_path):
    source = Shared(affine)
    # The two names share no memory, as after a conversion of the file.
    torch.save({name: value.clone() for name, value in source.state_dict().items()}, tmp_path / "model.pt")
    if not affine:
        attach_affine(source)
    method = make_method("tent", source)
    export_checkpoint(adapted(method, images, tmp_path / "a"), tmp_path / "model.pt", tmp_path / "merged.pt")
    network = load_source(Shared(), tmp_path / "merged.pt", "cpu").eval()
    with torch.no_grad():
        torch.testing.assert_close(network(images[2]), method.network(images[2]))


def test_weights_in_half_precision_keep_it(make_method, make_network, images, tmp_path):
    """As in the weights of the picture bundles: convolutions in float16, normalization in float32."""
    network = make_network(2, norm=INSTANCE)
    norms = [name for name in network.state_dict() if ".adn." in name]
    half = {name: v.clone() if name in norms else v.half() for name, v in network.state_dict().items()}
    torch.save(half, tmp_path / "model.pt")
    torch.save({name: value.half() for name, value in half.items()}, tmp_path / "all.pt")
    network.load_state_dict(half)
    method = make_method("tent", network)
    adaptation = adapted(method, images, tmp_path / "a")
    assert len(export_checkpoint(adaptation, tmp_path / "model.pt", tmp_path / "merged.pt")) == 1
    merged = torch.load(tmp_path / "merged.pt", weights_only=True)
    untouched(half, merged, set(method.parameters))
    assert all(torch.equal(merged[name], value) for name, value in method.parameters.items())
    remarks = export_checkpoint(adaptation, tmp_path / "all.pt", tmp_path / "rounded.pt")
    assert "rounded to float16" in remarks[1]


def test_a_bundles_own_checkpoint_is_recognized(bundle, make_method, tmp_path):
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "adapt.yaml"))
    path = bundle / "models" / "model.pt"
    save(make_method("tent", load_source(parser.get_parsed_content("network_def"), path, "cpu")), tmp_path / "a")
    export_checkpoint(Adaptation.read(tmp_path / "a"), path, tmp_path / "merged.pt")
    untouched(torch.load(path, weights_only=True), torch.load(tmp_path / "merged.pt", weights_only=True), set())


@pytest.mark.parametrize(
    "wrong", ["missing", "other weights", "other network", "pickle", "damaged", "output", "script"]
)
def test_what_cannot_be_merged_is_refused_and_nothing_written(wrong, make_method, make_network, images, tmp_path):
    state = make_network(2).state_dict()
    checkpoint, output = tmp_path / "model.pt", tmp_path / "merged.pt"
    if wrong == "other weights":
        state = {name: value + 1 for name, value in state.items()}
    elif wrong == "other network":
        state = UNet(2, 1, 2, channels=(4, 6), strides=(2,)).state_dict()
    elif wrong == "pickle":
        state = {"model": state, "trainer": Shared()}
    if wrong != "missing":
        torch.save(state, checkpoint)
    if wrong == "damaged":
        checkpoint.write_bytes(checkpoint.read_bytes()[:500])
    elif wrong == "script":
        checkpoint = checkpoint.rename(tmp_path / "model.ts")
    elif wrong == "output":
        output.write_text("mine")
    message = {
        "missing": "does not exist",
        "other weights": r"does not hold the source weights \(of a UNet\)",
        "other network": "does not hold the source weights",
        "pickle": "never loaded because they can run code",
        "damaged": "cannot be read: it is damaged",
        "output": "exists already and is not overwritten",
        "script": "damaged or not a TorchScript network",
    }[wrong]
    with pytest.raises(GrataError, match=message):
        export_checkpoint(adapted(make_method("tent"), images, tmp_path / "a"), checkpoint, output)
    assert not output.exists() or output.read_text() == "mine"
