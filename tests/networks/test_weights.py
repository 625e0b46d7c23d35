import copy
import pickle

import pytest
import torch
from torch import nn

from grata.errors import GrataError
from grata.networks import ResUNet, load_encoder, load_source


def equal(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize("nested", [None, "model", "state_dict"])
def test_a_state_dict_is_loaded_whole(make_network, tmp_path, nested):
    trained, fresh = make_network(3), make_network(3)
    torch.nn.init.ones_(next(fresh.parameters()))
    state = trained.state_dict()
    torch.save(state if nested is None else {nested: state}, tmp_path / "model.pt")
    assert equal(load_source(fresh, tmp_path / "model.pt", "cpu"), trained)


def test_a_scripted_network_brings_its_own_definition_and_has_to_fit_one_that_is_given(make_network, tmp_path):
    trained = make_network(3).eval()
    torch.jit.script(trained).save(tmp_path / "model.ts")
    x = torch.rand(1, 1, 8, 8, 8)
    for network_def in (None, make_network(3)):
        torch.testing.assert_close(load_source(network_def, tmp_path / "model.ts", "cpu")(x), trained(x))
    with pytest.raises(GrataError, match="does not belong to this UNet"):
        load_source(make_network(2), tmp_path / "model.ts", "cpu")
    torch.save(trained.state_dict(), tmp_path / "model.pt")
    with pytest.raises(GrataError, match="network_def"):
        load_source(None, tmp_path / "model.pt", "cpu")


def test_foreign_weights_are_refused_with_what_does_not_fit(make_network, tmp_path):
    torch.save(make_network(3, out_channels=5).state_dict(), tmp_path / "foreign.pt")
    with pytest.raises(GrataError, match="of another shape"):
        load_source(make_network(3), tmp_path / "foreign.pt", "cpu")
    state = make_network(3).state_dict()
    state["extra"] = state.pop(next(iter(state)))
    torch.save(state, tmp_path / "foreign.pt")
    with pytest.raises(GrataError, match="1 missing.*1 unknown, e.g. extra"):
        load_source(make_network(3), tmp_path / "foreign.pt", "cpu")


class Malicious:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_pickle_that_runs_code_is_refused_and_not_run(make_network, tmp_path, capsys):
    (tmp_path / "model.pt").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(GrataError, match="cannot be read as a state dict"):
        load_source(make_network(3), tmp_path / "model.pt", "cpu")
    torch.save({"model": Malicious()}, tmp_path / "model.pt")
    with pytest.raises(GrataError, match="cannot be read as a state dict"):
        load_source(make_network(3), tmp_path / "model.pt", "cpu")
    # The message must not repeat torch's own advice to allow pickles.
    torch.save(make_network(3), tmp_path / "model.pt")
    with pytest.raises(GrataError) as refused:
        load_source(make_network(3), tmp_path / "model.pt", "cpu")
    assert "weights_only" not in str(refused.value)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["missing.pt", "empty.pt", "text.ts", "list.pt", ""])
def test_files_without_weights_are_named(make_network, tmp_path, name):
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.ts").write_text("not a network")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(GrataError, match=name):
        load_source(make_network(3), tmp_path / name, "cpu")


def split(state):
    branches = {key: value for key, value in state.items() if key.startswith("branches.")}
    return {key: value for key, value in state.items() if key not in branches}, branches


@pytest.fixture
def files(make_resunet, tmp_path):
    """A ResUNet with two branches, and its weights in two files."""
    network = make_resunet(branches=("denoising", "rotation"))
    for name, state in zip(("model.pt", "branches.pt"), split(network.state_dict())):
        torch.save(state, tmp_path / name)
    return network, tmp_path / "model.pt", tmp_path / "branches.pt"


def test_weights_in_several_files_are_loaded_as_one(files):
    network, model, branches = files
    loaded = load_source(ResUNet(depth=18, branches=["denoising", "rotation"]), [str(model), branches], "cpu")
    assert equal(loaded, network)
    plain = load_source(ResUNet(depth=18), [model], "cpu")
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(plain.eval()(x), network(x))


@pytest.mark.parametrize(
    "branches, names, message",
    [
        ([], ["model.pt", "branches.pt"], r"branches: denoising, rotation; network_def#branches names: none"),
        (["rotation"], ["model.pt", "branches.pt"], r"Set network_def#branches to \['denoising', 'rotation'\]"),
        (["denoising"], ["model.pt"], r"branches: none; .*names: denoising.*\[model.pt, branches.pt\]"),
        (["denoising", "rotation"], ["branches.pt"], "missing, e.g. encoder.conv1.weight.*Give the weights of this"),
        ([], ["model.pt", "model.pt"], "holds 165 weights that an earlier file holds too, e.g. decoder.0.norm.bias"),
        ([], ["model.pt", "absent.pt"], "absent.pt does not exist"),
        ([], ["model.pt", "model.ts"], "model.ts is a whole network"),
        ([], [], "weights: must be a file or a list of files, got"),
        ([], [3], "weights: must be a file or a list of files, got"),
    ],
)
def test_files_that_do_not_make_up_the_network_are_refused(files, branches, names, message):
    folder = files[1].parent
    (folder / "model.ts").write_bytes(b"")
    names = [folder / name if isinstance(name, str) else name for name in names]
    with pytest.raises(GrataError, match=message):
        load_source(ResUNet(depth=18, branches=branches), names, "cpu")


def test_half_precision_on_disk_leaves_the_network_in_single_precision(make_resunet, tmp_path):
    network = make_resunet(branches=())
    halves = {key: value.half() if value.is_floating_point() else value for key, value in network.state_dict().items()}
    torch.save(halves, tmp_path / "model.pt")
    loaded = load_source(ResUNet(depth=18), tmp_path / "model.pt", "cpu").eval()
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32, torch.int64}
    assert torch.equal(loaded.head.weight, network.head.weight.half().float())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x).sigmoid(), network(x).sigmoid(), rtol=0, atol=0.02)


IMAGENET = {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}


@pytest.mark.parametrize("counters", [True, False])
def test_encoder_takes_imagenet_weights_but_the_classifier(make_resunet, tmp_path, counters):
    trained, network = make_resunet(seed=1), make_resunet(seed=2)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state = trained.encoder.state_dict() | IMAGENET
    if not counters:
        state = {key: value for key, value in state.items() if "num_batches" not in key}
    torch.save(state, tmp_path / "resnet18.pth")
    assert load_encoder(network, tmp_path / "resnet18.pth") == ["fc.weight", "fc.bias"]
    assert equal(network.encoder, trained.encoder)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items() if not k.startswith("encoder."))


def test_encoder_refuses_weights_of_another_network(make_resunet, make_network, tmp_path):
    path = tmp_path / "resnet18.pth"
    state = make_resunet(branches=()).encoder.state_dict()
    torch.save(state | IMAGENET, path)
    with pytest.raises(GrataError, match="missing, e.g. layer1.2.conv1.weight"):
        load_encoder(ResUNet(depth=34), path)
    with pytest.raises(GrataError, match="3 channels, this network takes 1"):
        load_encoder(ResUNet(in_channels=1, depth=18), path)
    with pytest.raises(GrataError, match="UNet has no encoder that ImageNet weights"):
        load_encoder(make_network(2), path)
    with pytest.raises(GrataError, match="absent.pth is not a file"):
        load_encoder(ResUNet(depth=18), tmp_path / "absent.pth")
    for key, value in (("extra.weight", torch.rand(1)), ("bn1.weight", None)):
        torch.save({k: v for k, v in (state | {key: value}).items() if v is not None}, path)
        with pytest.raises(GrataError, match=f"e.g. {key}"):
            load_encoder(ResUNet(depth=18), path)


def test_the_memory_format_is_chosen_and_changes_no_weight(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    torch.save(network.state_dict(), tmp_path / "model.pt")
    loaded = load_source(copy.deepcopy(network), tmp_path / "model.pt", "cpu", memory_format="channels_last")
    assert loaded[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), network.state_dict().values()))
    with pytest.raises(GrataError, match="memory_format: .*channels_last.*'nhwc'"):
        load_source(network, tmp_path / "model.pt", "cpu", memory_format="nhwc")
    torch.jit.script(network).save(tmp_path / "model.ts")
    scripted = load_source(None, tmp_path / "model.ts", "cpu", memory_format="channels_last")
    assert next(scripted.parameters()).is_contiguous(memory_format=torch.channels_last)


def test_a_memory_format_of_other_dimensions_is_refused(make_network, tmp_path):
    network = make_network(3)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    with pytest.raises(GrataError, match="memory_format: channels_last does not fit this UNet"):
        load_source(network, tmp_path / "model.pt", "cpu", memory_format="channels_last")


def test_a_text_file_is_refused(tmp_path, make_network):
    (tmp_path / "model.pt").write_text("hello world")
    with pytest.raises(GrataError, match="model.pt cannot be read as a state dict"):
        load_source(make_network(3), tmp_path / "model.pt", "cpu")
