import hashlib
import importlib.util
from pathlib import Path

import pytest
import torch
import yaml
from monai.networks.nets import DynUNet

from grata.networks import ResUNet, load_source, to_reference_names

ROOT = Path(__file__).resolve().parents[2]


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_convert_checkpoint_writes_weights_and_reports_what_it_did(make_resunet, tmp_path, capsys):
    network = make_resunet(branches=("rotation",), out_channels=1)
    state = {f"module.{key}": value for key, value in to_reference_names(network.state_dict()).items()}
    state |= {"module.res.fc.bias": torch.zeros(3)}
    torch.save({"state_dict": state}, tmp_path / "authors.pth")
    script("convert_checkpoint").main(tmp_path / "authors.pth", tmp_path / "model.pt")
    printed = capsys.readouterr().out
    assert f"{len(state) - 1} of {len(state)} tensors converted" in printed and "left out: res.fc.bias" in printed
    description = yaml.safe_load(printed[printed.index("network_def:") :])["network_def"]
    assert description.pop("_target_") == "grata.networks.ResUNet"
    loaded = load_source(ResUNet(**description), tmp_path / "model.pt", "cpu").eval()
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(loaded(x), network(x))
    with pytest.raises(SystemExit, match="exists already"):
        script("convert_checkpoint").main(tmp_path / "authors.pth", tmp_path / "model.pt")


def test_convert_checkpoint_writes_nothing_unless_all_fits(tmp_path):
    torch.save({"res.conv1.weight": torch.rand(1)}, tmp_path / "foreign.pth")
    with pytest.raises(SystemExit, match="foreign.pth: This is not a checkpoint"):
        script("convert_checkpoint").main(tmp_path / "foreign.pth", tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()


@pytest.fixture
def trained(make_resunet, tmp_path):
    """Return a network and its checkpoint as MONAI's CheckpointSaver writes it."""
    network = make_resunet(branches=("denoising", "rotation"))
    torch.save({"model": network.state_dict(), "optimizer": {}}, tmp_path / "joint.pt")
    return network, tmp_path / "joint.pt"


def test_pack_weights_splits_and_rounds_what_may_be_rounded(trained, tmp_path, capsys):
    network, checkpoint = trained
    script("pack_weights").main(checkpoint, tmp_path / "models")
    printed = capsys.readouterr().out.splitlines()
    assert [Path(line.split(":")[0]).name for line in printed] == ["model.pt", "branches.pt"]
    assert "24.0 MB" in printed[0] and all(0 < float(line.split()[-1]) < 2**-11 for line in printed)
    model, branches = (torch.load(tmp_path / "models" / name) for name in ("model.pt", "branches.pt"))
    assert all(key.startswith("branches.") for key in branches)
    assert (model | branches).keys() == network.state_dict().keys()
    for key, value in (model | branches).items():
        source = network.state_dict()[key]
        assert value.dtype == (torch.float16 if source.ndim > 1 else source.dtype)
        torch.testing.assert_close(value.to(source.dtype), source, rtol=1e-3, atol=1e-6)
    files = [tmp_path / "models" / name for name in ("model.pt", "branches.pt")]
    loaded = load_source(ResUNet(depth=18, branches=["denoising", "rotation"]), files, "cpu").eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x).sigmoid(), network(x).sigmoid(), rtol=0, atol=0.02)


def test_pack_weights_writes_once_what_a_network_lists_twice(tmp_path):
    shape = {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [4, 8, 16]}
    network = DynUNet(2, 1, 2, **shape)
    torch.save(network.state_dict(), tmp_path / "trained.pt")
    script("pack_weights").main(tmp_path / "trained.pt", tmp_path / "models")
    packed = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert packed.keys() == network.state_dict().keys()
    for key, value in network.state_dict().items():
        torch.testing.assert_close(packed[key].float(), value, rtol=1e-3, atol=1e-6)
    listed = sum(value.numel() for value in packed.values())
    assert listed > 1.5 * sum(value.numel() for value in network.parameters())
    stored = {value.untyped_storage().data_ptr(): value.nbytes for value in packed.values()}
    assert sum(stored.values()) == sum(value.numel() * (2 if value.ndim > 1 else 4) for value in network.parameters())


def test_pack_weights_names_a_file_that_the_model_zoo_does_not_take(trained, tmp_path, monkeypatch):
    pack_weights = script("pack_weights")
    monkeypatch.setattr(pack_weights, "LIMIT", 2_000_000)
    with pytest.raises(SystemExit) as refused:
        pack_weights.main(trained[1], tmp_path / "models")
    message = str(refused.value)
    assert message.startswith("model.pt: written, but larger than the 2 MB")
    (entry,) = yaml.safe_load(message[message.index("large_files:") :])["large_files"]
    assert entry["path"] == "models/model.pt" and entry["hash_type"] == "md5" and "url" in entry
    assert entry["hash_val"] == hashlib.md5((tmp_path / "models" / "model.pt").read_bytes()).hexdigest()


def test_pack_weights_leaves_no_mixed_bundle(trained, make_resunet, tmp_path):
    pack_weights = script("pack_weights")
    pack_weights.main(trained[1], tmp_path / "models")
    torch.save(make_resunet(branches=()).state_dict(), tmp_path / "plain.pt")
    with pytest.raises(SystemExit, match="belongs to another network"):
        pack_weights.main(tmp_path / "plain.pt", tmp_path / "models")
    with pytest.raises(SystemExit, match="absent.pt is not a file"):
        pack_weights.main(tmp_path / "absent.pt", tmp_path / "models")


def test_pack_weights_refuses_what_half_precision_does_not_hold(tmp_path):
    torch.save({"head.weight": torch.tensor([[1e6]])}, tmp_path / "wild.pt")
    with pytest.raises(SystemExit, match=r"head.weight holds 1e\+06, which is beyond the range of half precision"):
        script("pack_weights").main(tmp_path / "wild.pt", tmp_path / "models")
    assert not (tmp_path / "models" / "model.pt").exists()
