"""TTT against its formula."""

import copy

import pytest
import torch
from monai.networks.nets import UNet
from torch.nn import functional as F

from grata.errors import GrataError
from grata.methods import Prepared, create
from grata.networks import AuxiliaryHeads, network_digest
from grata.views import resolve_views


def make_network():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return UNet(spatial_dims=2, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,), norm="batch")


def batch(size=1, shape=(16, 16), seed=0):
    return torch.rand((size, 1, *shape), generator=torch.Generator().manual_seed(seed))


def make(network, **settings):
    heads = AuxiliaryHeads.create(network, batch(), ["rotation"], seed=1)
    heads.modules.eval()
    given = Prepared(heads=heads.saved(), digest=network_digest(network))
    return create("ttt", network, {"prepared": given, "activation": "softmax", **settings}), heads


def test_the_step_is_the_one_down_the_mean_over_all_views_at_once():
    network = make_network()
    method, heads = make(network, lr=0.1)
    x = batch(2)
    method._activate()
    views = resolve_views(heads.views, x.shape[2:])
    losses = [F.cross_entropy(heads.branch("rotation", v(x)), torch.full((2,), k)) for k, v in enumerate(views)]
    loss = sum(losses) / len(losses)
    gradient = torch.autograd.grad(loss, list(method.parameters.values()), allow_unused=True)
    expected = [p.detach() - (0 if g is None else 0.1 * g) for p, g in zip(method.parameters.values(), gradient)]
    record = method.adapt(x)
    assert record.loss == loss.item()
    assert any(g is None for g in gradient)
    for value, wanted in zip(method.parameters.values(), expected):
        torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-7)


def test_the_views_are_used_one_by_one_so_that_memory_is_that_of_one():
    network = make_network()
    method, heads = make(network)
    events = []

    def watch(module, inputs, output):
        events.append("forward")
        output.register_hook(lambda _: events.append("backward"))

    first = next(module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d))
    first.register_forward_hook(watch)
    method.adapt(batch())
    assert events == ["forward", "backward"] * len(heads.views)


def test_views_that_change_the_shape_are_left_out_and_a_single_one_is_refused():
    method, _ = make(make_network())
    record = method.adapt(batch(shape=(16, 8)))
    assert record.flags == ()
    method, _ = make(make_network())
    method._rotation_views = lambda: ("identity", "rot90")
    with pytest.raises(GrataError, match="^ttt: of the rotation head's views only one"):
        method.adapt(batch(shape=(16, 8)))


def test_the_head_and_the_running_statistics_stay():
    network = make_network()
    method, _ = make(network, lr=0.1)
    before, head = copy.deepcopy(network.state_dict()), copy.deepcopy(method._heads.modules.state_dict())
    method.adapt(batch())
    assert all(torch.equal(value, head[key]) for key, value in method._heads.modules.state_dict().items())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items() if "running" in key)
    assert any(not torch.equal(value, before[key]) for key, value in network.state_dict().items())
