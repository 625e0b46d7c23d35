"""A network belongs to one method at a time, whatever its norms."""

import copy

import pytest
import torch
from torch import nn

import grata
from grata.errors import GrataError
from grata.methods import create
from grata.normalization import attach_affine

NORMS = {
    "batch": "batch",
    "instance": ("instance", {"affine": True}),
    "group": ("group", {"num_groups": 2}),
    "layer": ("layer", {"normalized_shape": (4, 16, 16)}),
    "attached": ("instance", {"affine": False}),
}


def images():
    return torch.rand((1, 1, 16, 16), generator=torch.Generator().manual_seed(0))


def snapshot(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def network_of(make_network, norm):
    if norm == "layer":
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.LayerNorm((4, 16, 16)), nn.Conv2d(4, 2, 1))
    network = make_network(norm=NORMS[norm])
    if norm == "attached":
        attach_affine(network)
    return network


@pytest.mark.parametrize("norm", NORMS)
def test_a_second_method_is_refused_until_the_first_restores(make_network, norm):
    network = network_of(make_network, norm)
    before, x = snapshot(network), images()
    first = create("tent", network, {"lr": 1e-2}, activation="softmax")
    others = [create(name, network, activation="softmax") for name in ("memo", "source", "sar")]
    first.adapt(x)
    adapted = snapshot(network)
    for other in others:
        with pytest.raises(GrataError, match=r"adapted by another method.*restore\(\)"):
            other.adapt(x)
        assert same(snapshot(network), adapted)
    others[0].restore()
    assert same(snapshot(network), adapted)
    first.restore()
    assert same(snapshot(network), before)
    others[0].adapt(x)
    first.restore()
    others[0].restore()
    assert same(snapshot(network), before)


@pytest.mark.parametrize("norm", NORMS)
def test_a_method_that_nobody_holds_any_more_is_restored_through_its_network(make_network, norm):
    network = network_of(make_network, norm)
    before = snapshot(network)
    create("tent", network, {"lr": 1e-2}, activation="softmax").adapt(images())
    second = create("tent", network, {"lr": 1e-2}, activation="softmax")
    with pytest.raises(GrataError, match="another method"):
        second.adapt(images())
    assert grata.restore(network) and same(snapshot(network), before)


def test_a_network_around_the_adapted_one_and_one_inside_it_are_taken_too(make_network):
    inner = make_network(norm=NORMS["instance"])
    outer = nn.Sequential(inner)
    for one, other in ((inner, outer), (outer, inner)):
        first = create("tent", one, activation="softmax")
        first.adapt(images())
        with pytest.raises(GrataError, match="another method"):
            create("tent", other, activation="softmax").adapt(images())
        first.restore()


def test_the_copy_of_a_method_owns_the_copy_of_the_network(make_network):
    method = create("tent", make_network(norm=NORMS["instance"]), activation="softmax")
    method.adapt(images())
    twin = copy.deepcopy(method)
    with pytest.raises(GrataError, match="another method"):
        create("tent", twin.given, activation="softmax").adapt(images())
    # a copy of the network alone is nobody's
    create("tent", copy.deepcopy(method.given), activation="softmax").adapt(images())


@pytest.mark.parametrize("norm", ["batch", "attached"])
def test_scripting_an_adapted_network_says_what_to_do_instead(make_network, norm):
    network = network_of(make_network, norm)
    method = create("tent", network, activation="softmax")
    method.adapt(images())
    for module in (network, nn.Sequential(network)):
        with pytest.raises(GrataError, match=r"cannot be scripted.*grata\.bank\.apply"):
            torch.jit.script(module)
    traced = torch.jit.trace(network, images())
    assert torch.equal(traced(images()), network(images()))
    method.restore()
    if norm == "batch":
        torch.jit.script(network)
