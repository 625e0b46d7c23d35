import copy

import pytest
import torch
from torch import nn

from grata.errors import GrataError
from grata.normalization import BatchStatistics, ScriptedNetwork


def reference(x, layer, mix):
    """Return batch normalization in float64, written out."""
    dims = [d for d in range(x.ndim) if d != 1]
    shape = [1, -1] + [1] * (x.ndim - 2)
    x = x.double()
    mean = mix * x.mean(dims) + (1 - mix) * layer.running_mean
    var = mix * ((x - x.mean(dims, keepdim=True)) ** 2).mean(dims) + (1 - mix) * layer.running_var
    y = (x - mean.view(shape)) / (var.view(shape) + layer.eps).sqrt()
    return y * layer.weight.view(shape) + layer.bias.view(shape)


def a_layer(kind=nn.BatchNorm2d):
    layer = kind(3)
    torch.manual_seed(0)
    for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
        nn.init.uniform_(tensor, 0.5, 1.5)
    return layer


@pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [(nn.BatchNorm2d, (2, 3, 5, 4)), (nn.BatchNorm3d, (1, 3, 4, 3, 5)), (nn.SyncBatchNorm, (2, 3, 6))],
)
def test_statistics_are_the_mix_of_batch_and_source_in_any_mode(kind, shape, mix):
    layer = a_layer(kind)
    network = nn.Sequential(layer)
    x = torch.randn(shape)
    buffers = {name: b.clone() for name, b in network.named_buffers()}
    statistics = BatchStatistics(network, mix)
    statistics.attach()
    for training in (False, True):
        network.train(training)
        torch.testing.assert_close(network(x).double(), reference(x, layer, mix), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(b, buffers[name]) for name, b in network.named_buffers())


@pytest.mark.parametrize("mix", [0.5, 1.0])
def test_instance_normalization_with_running_statistics_mixes_them_with_those_of_the_image(mix):
    layer = nn.InstanceNorm2d(2, affine=True, track_running_stats=True)
    nn.init.uniform_(layer.running_mean, 1, 2)
    x = torch.randn(3, 2, 6, 5)
    network = nn.Sequential(layer).eval()
    BatchStatistics(network, mix).attach()
    mean = mix * x.mean((2, 3), keepdim=True) + (1 - mix) * layer.running_mean.view(1, 2, 1, 1)
    variance = mix * x.var((2, 3), keepdim=True, unbiased=False) + (1 - mix) * layer.running_var.view(1, 2, 1, 1)
    torch.testing.assert_close(network(x), (x - mean) / (variance + layer.eps).sqrt())


def test_the_gradient_flows_through_the_batch_part():
    layer = a_layer().double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    BatchStatistics(nn.Sequential(layer), 1.0).attach()
    assert torch.autograd.gradcheck(layer, (x,))


def test_detach_restores_the_layer_and_the_state_dict_keeps_its_keys():
    network = nn.Sequential(a_layer()).eval()
    x = torch.randn(2, 3, 4, 4)
    before, keys = network(x), list(network.state_dict())
    statistics = BatchStatistics(network, 1.0)
    statistics.attach()
    statistics.attach()
    assert not torch.equal(network(x), before)
    assert list(network.state_dict()) == keys
    statistics.detach()
    assert torch.equal(network(x), before)


def test_a_scripted_network_uses_batch_statistics_and_keeps_its_running_ones():
    network = nn.Sequential(nn.Conv2d(1, 3, 1), a_layer()).eval()
    scripted = ScriptedNetwork(torch.jit.script(copy.deepcopy(network)))
    x = torch.randn(2, 1, 5, 5)
    source = network(x)
    statistics = BatchStatistics(scripted, 1.0)
    statistics.attach()
    BatchStatistics(network, 1.0).attach()
    torch.testing.assert_close(scripted(x), network(x))
    assert torch.equal(scripted.scripted.state_dict()["1.running_mean"], network[1].running_mean)
    assert not any(module.training for module in scripted.scripted.modules())
    statistics.detach()
    torch.testing.assert_close(scripted(x), source)
    with pytest.raises(GrataError, match="TorchScript"):
        BatchStatistics(scripted, 0.5)


def test_a_traced_network_is_refused_because_its_statistics_are_constants():
    traced = ScriptedNetwork(torch.jit.trace(nn.Sequential(a_layer()).eval(), torch.randn(1, 3, 4, 4)))
    with pytest.raises(GrataError, match="traced"):
        BatchStatistics(traced, 1.0)


@pytest.mark.parametrize("mix", [-0.1, 1.1])
def test_a_mix_outside_its_range_is_refused(mix):
    with pytest.raises(GrataError, match="batch_statistics"):
        BatchStatistics(nn.Sequential(a_layer()), mix)


def test_a_single_value_per_channel_is_refused():
    network = nn.Sequential(a_layer())
    BatchStatistics(network, 1.0).attach()
    with pytest.raises(GrataError, match="too small for batch statistics"):
        network(torch.zeros(1, 3, 1, 1))


class NormAct(nn.BatchNorm2d):
    """Normalization and activation in one layer, as in some libraries."""

    def forward(self, x):
        return torch.relu(super().forward(x))


class InstanceNormAct(nn.InstanceNorm2d):
    def forward(self, x):
        return torch.relu(super().forward(x))


class ByFunction(nn.BatchNorm2d):
    """Layer that looks at its training flag only."""

    def forward(self, x):
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )


def test_a_layer_that_cannot_do_without_running_statistics_is_refused():
    class Frozen(nn.BatchNorm2d):
        def forward(self, x):
            return x * (self.running_var + self.eps).rsqrt().view(1, -1, 1, 1)

    network = nn.Sequential(Frozen(3)).eval()
    BatchStatistics(network, 1.0).attach()
    with pytest.raises(GrataError, match="Frozen has a forward of its own"):
        network(torch.randn(2, 3, 4, 4))


@pytest.mark.parametrize("kind", [NormAct, InstanceNormAct, ByFunction])
def test_a_layer_with_a_forward_of_its_own_keeps_it(kind):
    layer = kind(3, affine=True, track_running_stats=True)
    nn.init.uniform_(layer.running_mean, 1, 2)
    network = nn.Sequential(layer).eval()
    x = torch.randn(2, 3, 5, 4)
    source, keys = network(x), list(network.state_dict())
    expected = copy.deepcopy(network).train()(x)
    statistics = BatchStatistics(network, 1.0)
    statistics.attach()
    torch.testing.assert_close(network(x), expected)
    assert list(network.state_dict()) == keys
    statistics.detach()
    assert torch.equal(network(x), source)
    assert not any(module.training for module in network.modules())
    with pytest.raises(GrataError, match=f"0 is a {kind.__name__}"):
        BatchStatistics(network, 0.5)


def test_a_scripted_part_of_a_python_network_is_refused():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.jit.script(nn.Sequential(nn.Conv2d(1, 3, 1), a_layer()))

        def forward(self, x):
            return self.inner(x)

    with pytest.raises(GrataError, match=r"inner\.1 belongs to a TorchScript network"):
        BatchStatistics(Around(), 1.0)


def test_a_scripted_layer_of_an_unknown_class_is_refused():
    class Unknown(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("running_mean", torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - self.running_mean.view(1, -1, 1, 1)

    scripted = ScriptedNetwork(torch.jit.script(nn.Sequential(a_layer(), Unknown())))
    with pytest.raises(GrataError, match="1 of this TorchScript network is a Unknown"):
        BatchStatistics(scripted, 1.0)


def test_only_one_method_at_a_time_uses_the_layers():
    network = nn.Sequential(a_layer()).eval()
    first, second = BatchStatistics(network, 1.0), BatchStatistics(network, 0.5)
    first.attach()
    with pytest.raises(GrataError, match="another method"):
        second.attach()
    first.detach()
    second.attach()
    second.detach()
    assert "forward" not in vars(network[0])


def test_a_mix_is_as_exact_as_its_input():
    layer = a_layer().double()
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    network = nn.Sequential(layer)
    BatchStatistics(network, 0.3).attach()
    torch.testing.assert_close(network(x), reference(x, layer, 0.3), atol=1e-14, rtol=1e-13)
