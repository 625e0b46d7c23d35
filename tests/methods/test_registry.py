"""Creation of a method by its name, and the affine parameters attached for it."""

import pytest
from torch import nn

from grata.errors import GrataError
from grata.methods import create
from grata.normalization import collect_affine_parameters


def plain():
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.InstanceNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()


def modules(network):
    return [name for name, _ in network.named_modules()]


def test_attached_parameters_are_reported_and_adapted():
    network = plain()
    before = modules(network)
    method = create("tent", network, affine="auto", activation="softmax")
    assert method.attached.names == tuple(method.parameters)
    method.attached.detach()
    assert modules(network) == before


def test_nothing_is_attached_unless_asked_for():
    network = plain()
    before = modules(network)
    with pytest.raises(GrataError, match="nothing to adapt"):
        create("tent", network, activation="softmax")
    assert modules(network) == before
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    assert create("tent", network, affine="auto", activation="softmax").attached is None


@pytest.mark.parametrize("network", [plain(), nn.Sequential(nn.Conv2d(1, 2, 1))], ids=["norm", "none"])
def test_source_attaches_nothing_and_is_never_refused_for_it(network):
    before = modules(network)
    assert create("source", network, affine="attach").attached is None
    assert modules(network) == before


def test_a_refused_method_leaves_the_network_as_it_was():
    network = plain()
    before = modules(network)
    with pytest.raises(GrataError, match="lr: must"):
        create("tent", network, {"lr": -1.0}, affine="attach", activation="softmax")
    assert modules(network) == before
    first = create("tent", network, affine="attach", activation="softmax")
    with pytest.raises(GrataError, match="lr: must"):
        create("tent", network, {"lr": -1.0}, affine="attach", activation="softmax")
    # the parameters that the first method adapts are still in the network
    assert list(collect_affine_parameters(network)) == list(first.parameters)
