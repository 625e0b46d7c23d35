"""What a network returns or refuses is said in words: probabilities for logits, and images that are too small."""

import pytest
import torch
from monai.engines import SupervisedEvaluator
from monai.networks.nets import UNet
from torch import nn

import grata
from grata.engines import AdaptationHandler
from grata.errors import GrataError
from grata.methods import create
from grata.session import Session, explain
from grata.session.judge import PROBABILITIES


class Returning(nn.Module):
    """A network that returns its prediction in a mapping, after an activation."""

    def __init__(self, network, activation):
        super().__init__()
        self.network, self.activation = network, activation

    def forward(self, x):
        return {"logits": self.activation(self.network(x))}


ENDS = {
    "sigmoid": (lambda network: nn.Sequential(network, nn.Sigmoid()), "sigmoid", None),
    "softmax": (lambda network: nn.Sequential(network, nn.Softmax(1)), "softmax", None),
    "in a mapping": (lambda network: Returning(network, nn.Softmax(1)), "softmax", "logits"),
    "bfloat16": (lambda network: nn.Sequential(network, nn.Softmax(1), Rounded()), "softmax", None),
    "hard": (lambda network: nn.Sequential(network, nn.Hardsigmoid()), "sigmoid", None),
}


class Rounded(nn.Module):
    def forward(self, x):
        return x.bfloat16().float()


def images(count=2, size=16):
    return list(torch.rand((count, 1, 1, size, size), generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("guard", [True, False], ids=["judged", "plain"])
@pytest.mark.parametrize("end", ENDS)
def test_a_network_that_ends_in_its_activation_is_flagged(make_network, end, guard):
    wrap, activation, output = ENDS[end]
    stream = grata.adapt(wrap(make_network()), images(), "ptbn", activation=activation, output=output, guard=guard)
    for adapted in stream:
        assert PROBABILITIES in adapted.record["flags"]
        if guard:
            assert adapted.verdict != "ok" and any("already is a probability" in r for r in adapted.record["reasons"])
    assert any("Give the network without its last activation" in line for line in stream.session.remarks())


@pytest.mark.parametrize(
    ("end", "activation"),
    [(nn.Identity(), "sigmoid"), (nn.Identity(), "softmax"), (nn.Tanh(), "sigmoid"), (nn.LogSoftmax(1), "softmax")],
)
def test_logits_are_not(make_network, end, activation):
    stream = grata.adapt(nn.Sequential(make_network(), end), images(), "ptbn", activation=activation, guard=False)
    assert not any(PROBABILITIES in adapted.record["flags"] for adapted in stream)
    assert stream.session.remarks() == []


def network_of(norm, spatial_dims=2):
    return UNet(spatial_dims, 1, 2, channels=(4, 8, 16), strides=(2, 2), norm=norm).eval()


SMALL = {
    "instance": ("instance", 2),
    "affine": (("instance", {"affine": True}), 2),
    "group": (("group", {"num_groups": 4}), 2),
    "volume": ("instance", 3),
    "batch": ("batch", 2),
}


def small(name):
    norm, dims = SMALL[name]
    network = network_of(norm, dims)
    if name == "group":
        # one group for each channel, as instance normalization
        for module in network.modules():
            if isinstance(module, nn.GroupNorm):
                module.num_groups = module.num_channels
    return network, torch.rand(1, 1, *[4] * dims), torch.rand(1, 1, *[8] * dims)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("method", ["tent", "source"])
def test_a_single_voxel_at_the_bottom_is_that_image_s_fault(name, method):
    network, bad, good = small(name)
    stream = grata.adapt(network, [good, bad, good], method, activation="softmax", guard=False)
    next(stream)
    if name == "batch" and method == "source":
        next(stream)
    else:
        with pytest.raises(GrataError, match=r"too small.*single v.*Use larger images"):
            next(stream)
    assert next(stream).prediction.shape[2:] == good.shape[2:]


def test_the_message_is_the_same_through_a_handler_and_torchscript():
    network, bad, _ = small("instance")
    handler = AdaptationHandler(create("tent", network, affine="attach", activation="softmax"), guard=False)
    engine = SupervisedEvaluator("cpu", [{"image": bad}], network, val_handlers=[handler], decollate=False)
    with pytest.raises(GrataError, match="too small for this network"):
        engine.run()
    scripted = torch.jit.script(network_of(("instance", {"affine": True})))
    session = Session(create("source", scripted, activation="softmax"), guard=False)
    with pytest.raises(GrataError, match="too small for this network"), session.case(bad) as case:
        case.adapt()
        case.judge(session.network(case.images))
    try:
        nn.InstanceNorm2d(1)(torch.rand(1, 1, 1, 1))
    except ValueError as error:
        assert explain(error).startswith("The image is too small for this network")
