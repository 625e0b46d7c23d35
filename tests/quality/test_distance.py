"""Statistics of what reaches normalization layers, against plain NumPy."""

import numpy as np
import pytest
import torch
from torch import nn

from grata.methods import create
from grata.quality import layer_statistics


class Network(nn.Module):
    def __init__(self, norm="batch", dims=2):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        convolution = nn.Conv2d if dims == 2 else nn.Conv3d
        if norm == "batch":
            self.norm = (nn.BatchNorm2d if dims == 2 else nn.BatchNorm3d)(4)
            self.norm.running_mean.copy_(torch.randn(4, generator=generator))
            self.norm.running_var.copy_(0.5 + torch.rand(4, generator=generator))
        else:
            self.norm = (nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d)(4, affine=True)
        self.first, self.last = convolution(1, 4, 1), convolution(4, 2, 1)
        self.eval()

    def forward(self, x):
        return self.last(self.norm(self.first(x)))


def images(*shape, seed=0, scale=1.0, shift=0.0):
    return shift + scale * torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def reached(network, *batches):
    """All that reaches the normalization layer, ``(C, N)``."""
    with torch.no_grad():
        parts = [network.first(x).double().transpose(0, 1).flatten(1).numpy() for x in batches]
    return np.concatenate(parts, 1)


def run(network, *batches):
    with layer_statistics(network) as found, torch.no_grad():
        for x in batches:
            network(x)
    return found


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (100, 0), (1, 300)])
def test_moments_and_distance(dims, scale, shift):
    network = Network(dims=dims)
    batches = [images(2, 1, *[6] * dims, scale=scale, shift=shift), images(1, 1, *[9] * dims, seed=1, scale=scale)]
    found, x = run(network, *batches), reached(network, *batches)
    mean, variance = found.moments("norm")
    np.testing.assert_allclose(mean, x.mean(1), rtol=1e-4, atol=1e-5)
    # also where the mean is large beside the deviation
    np.testing.assert_allclose(variance, x.var(1), rtol=1e-4)
    mu, s = network.norm.running_mean.double().numpy(), network.norm.running_var.double().numpy()
    distance = (np.log1p((x.mean(1) - mu) ** 2 / s) + np.abs(np.log(x.var(1) / s))).mean()
    assert found.names == ["norm"]
    assert found.distances() == {"norm": pytest.approx(distance, rel=1e-3)}


def test_the_source_itself_has_no_distance_and_scaled_images_ever_more():
    network, x = Network(), images(4, 1, 16, 16)
    seen = reached(network, x)
    network.norm.running_mean.copy_(torch.as_tensor(seen.mean(1)))
    network.norm.running_var.copy_(torch.as_tensor(seen.var(1)))
    found = [run(network, factor * x).distances()["norm"] for factor in (1, 2, 10, 100)]
    assert found[0] == pytest.approx(0, abs=1e-4) and found == sorted(found) and found[-1] > 8


def test_flips_and_the_order_of_batches_change_nothing():
    network, x, y = Network(), images(1, 1, 8, 9), images(1, 1, 8, 9, seed=1)
    found = run(network, x, y).distances()["norm"]
    for batches in ((y, x), (x.flip(-1), y.flip(-2)), (torch.cat([x, y]),)):
        assert run(network, *batches).distances()["norm"] == pytest.approx(found, rel=1e-5)


def test_channels_that_are_constant_in_the_source_do_not_count():
    network, x = Network(), images(1, 1, 8, 8)
    whole = run(network, x).distances()["norm"]
    network.norm.running_var[0] = 0
    alive = reached(network, x)[1:]
    mu, s = network.norm.running_mean[1:].numpy(), network.norm.running_var[1:].numpy()
    distance = (np.log1p((alive.mean(1) - mu) ** 2 / s) + np.abs(np.log(alive.var(1) / s))).mean()
    assert run(network, x).distances()["norm"] == pytest.approx(distance, rel=1e-3) != whole
    network.norm.running_var.zero_()
    assert run(network, x).distances() == {}
    # a constant image has a distance, and no infinite one
    network.norm.running_var.fill_(1)
    assert np.isfinite(run(network, torch.zeros(1, 1, 8, 8)).distances()["norm"])


def test_layers_without_running_statistics_are_seen_and_have_no_distance():
    network, x = Network("instance"), images(1, 1, 8, 8)
    found = run(network, x)
    np.testing.assert_allclose(found.moments("norm")[0], reached(network, x).mean(1), rtol=1e-4)
    assert found.distances() == {}


def test_a_torchscript_network_cannot_be_looked_into():
    found = run(torch.jit.script(Network()), images(1, 1, 8, 8))
    assert found.names == [] and found.distances() == {}


def test_nothing_stays_on_the_network():
    network = Network()
    with pytest.raises(RuntimeError), layer_statistics(network) as found:
        network(images(1, 1, 8, 8))
        network(torch.zeros(1, 7, 8, 8))
    assert found.names == ["norm"]
    network(images(1, 1, 8, 8, seed=2))
    assert not any(module._forward_pre_hooks for module in network.modules())
    # the prediction itself is the same
    with layer_statistics(network):
        watched = network(images(1, 1, 8, 8))
    assert torch.equal(watched, network(images(1, 1, 8, 8)))


def test_of_an_adapted_network_the_source_statistics_are_known():
    """Batch statistics take the place of the running ones in the forward; the distance is still from the source's."""
    network, x = Network(), images(1, 1, 8, 8)
    expected = run(network, x).distances()
    method = create("ptbn", network, {})
    method.adapt(x)
    with layer_statistics(method.network) as found, method.source_network() as source:
        source(x)
    assert found.distances() == {"norm": pytest.approx(expected["norm"], rel=1e-6)}
