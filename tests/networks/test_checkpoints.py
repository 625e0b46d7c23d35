from collections import OrderedDict

import pytest
import torch

from grata.errors import GrataError
from grata.networks import BRANCHES, ResUNet, convert_checkpoint, to_reference_names

SEQUENTIAL = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}


def by_index(state):
    """Return the layout whose encoder is a Sequential."""
    renamed = {}
    for key, value in state.items():
        root, child, *rest = key.split(".")
        renamed[".".join(["res", SEQUENTIAL[child], *rest]) if root == "res" else key] = value
    return renamed


def without_counters(state):
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


LAYOUTS = {
    "plain": lambda state: state,
    "parallel": lambda state: {f"module.{key}": value for key, value in state.items()},
    "model": lambda state: {"model": state, "epoch": 3},
    "state_dict": lambda state: {"state_dict": OrderedDict(state)},
    "parallel in model_state_dict": lambda state: {"model_state_dict": {f"module.{k}": v for k, v in state.items()}},
    "by index": by_index,
    "before counters": without_counters,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trip_gives_identical_predictions(make_resunet, layout):
    network = make_resunet(out_channels=3)
    conversion = convert_checkpoint(LAYOUTS[layout](to_reference_names(network.state_dict())))
    description = conversion.network_def
    assert description.pop("_target_") == "grata.networks.ResUNet"
    assert description == {"depth": 18, "in_channels": 3, "out_channels": 3, "branches": conversion.branches}
    assert sorted(conversion.branches) == sorted(BRANCHES) and conversion.unmapped == []
    assert len(conversion.filled) == (37 if layout == "before counters" else 0)
    converted = ResUNet(**description).eval()
    converted.load_state_dict(conversion.state)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(converted(x), network(x))
        for name in BRANCHES:
            assert torch.equal(converted.branch(name, x), network.branch(name, x))


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
@pytest.mark.parametrize("branches", [[], ["reconstruction"], ["rotation", "super_resolution"]])
def test_depth_channels_and_branches_follow_from_the_keys(depth, branches):
    with torch.device("meta"):
        network = ResUNet(1, 2, depth, branches)
    conversion = convert_checkpoint(to_reference_names(network.state_dict()))
    assert (conversion.depth, conversion.in_channels, conversion.out_channels) == (depth, 2, 1)
    assert conversion.branches == branches
    assert conversion.state.keys() == network.state_dict().keys()


def test_names_are_those_of_the_reference(make_resunet):
    names = to_reference_names(make_resunet().state_dict())
    assert {key.split(".")[0] for key in names} == (
        {"res", "up1", "up2", "up3", "up4", "up5", "bnout", "seg_head", "rotate_head"}
        | {f"{branch}{part}" for branch in ("recon", "denoise", "supres") for part in ("1", "2", "3", "4", "_head")}
    )
    for key in ("res.layer2.0.downsample.0.weight", "up1.tr_conv.bias", "up4.x_conv.weight", "up2.bn.running_var"):
        assert key in names


def test_branches_are_mapped_in_their_order_whatever_their_modules_are_called(make_resunet):
    state = make_resunet().state_dict()
    renamed = {}
    for key, value in to_reference_names(state).items():
        root, _, rest = key.partition(".")
        if root.startswith("recon"):
            module, _, leaf = rest.rpartition(".")
            key = f"reconstruct_{root}.inner_{module}.{leaf}"
        renamed[key] = value
    converted = convert_checkpoint(renamed)
    assert all(torch.equal(converted.state[key], value) for key, value in state.items())
    assert converted.renamed["branches.reconstruction.blocks.0.norm.weight"] == "reconstruct_recon1.inner_bn.weight"


def test_tensors_that_are_not_used_are_listed(make_resunet):
    state = to_reference_names(make_resunet(branches=()).state_dict())
    state |= {"res.fc.weight": torch.rand(10, 512), "res.fc.bias": torch.rand(10)}
    state |= {"res.in1.num_batches_tracked": torch.tensor(4)}
    del state["bnout.num_batches_tracked"]
    conversion = convert_checkpoint(state)
    assert conversion.unmapped == ["res.fc.weight", "res.fc.bias", "res.in1.num_batches_tracked"]
    assert conversion.filled == ["norm.num_batches_tracked"]
    ResUNet(depth=18).load_state_dict(conversion.state)


def change(**changes):
    """Set keys (dots written ``__``) to a tensor, or remove them with None."""

    def changed(state):
        for key, value in changes.items():
            key = key.replace("__", ".")
            state.pop(key) if value is None else state.update({key: value})
        return state

    return changed


@pytest.mark.parametrize(
    "fault, message",
    [
        (change(up3__bn__weight=None), r"1 keys of the network get nothing: decoder\.2\.norm\.weight"),
        (change(up6__weight=torch.rand(3)), r"1 keys of the checkpoint have no place: up6\.weight"),
        (change(up5__bias=torch.rand(3), x__y=torch.rand(1)), r"no place: x\.y; .*up5\.bias \(3,\), not \(32,\)"),
        (change(res__layer3__1__conv2__weight=None), r"encoder\.layer3\.1\.conv2\.weight"),
        (change(res__layer4__2__conv1__weight=torch.rand(3)), r"layers have 2, 2, 2, 3 basic blocks"),
        (change(res__conv1__weight=None), "needs res.conv1.weight and seg_head.weight, and has"),
        (change(res__0__weight=torch.rand(64, 3, 7, 7)), r"res\.conv1\.weight twice"),
        (change(recon2__conv__bias=None), r"reconstruction branch.*tensor 8 is recon2\.bn\.weight \(weight \(128,\)\)"),
        (change(recon_head__bias=None), r"reconstruction branch.*is missing \(nothing\)"),
        (change(supres_head__0__weight=torch.rand(9, 32, 5, 5)), r"super_resolution branch.*supres_head\.0\.weight"),
        (change(rotate_head2__weight=torch.rand(6, 6)), r"rotation branch.*rotate_head2\.weight.*ours is missing"),
        (change(up3__bn__weight=3.0), "not a state dict: 'up3.bn.weight' is not a tensor"),
        (list, "This is a list"),
        (lambda state: {}, "it is empty"),
        (lambda state: dict(sorted(state.items())), "reconstruction branch|denoising branch"),
    ],
)
def test_nothing_is_converted_in_part(make_resunet, fault, message):
    with pytest.raises(GrataError, match=message):
        convert_checkpoint(fault(to_reference_names(make_resunet().state_dict())))


@pytest.mark.parametrize("key", ["encoder", "decoder.0.conv.weight", "branches.jigsaw.head.weight", "up5.weight"])
def test_foreign_keys_have_no_reference_name(key):
    with pytest.raises(GrataError, match=f"{key} is not a key of a ResUNet"):
        to_reference_names({key: torch.rand(1)})
