"""DyNo against its formula."""

import copy

import pytest
import torch
from torch import nn

from grata.methods.dyno import DyNo


def image(seed=0, count=1):
    return torch.rand((count, 1, 16, 16), generator=torch.Generator().manual_seed(seed))


class Naive:
    """The rule written out in float64, channel by channel, layer by layer."""

    def __init__(self, network):
        self.network = copy.deepcopy(network).double().eval()
        self.synthetic = {}
        self.images = 0
        for name, layer in self.network.named_modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.forward = self.normalize(name, layer)

    def normalize(self, name, layer):
        def forward(z):
            out = torch.empty_like(z)
            for c in range(z.shape[1]):
                source = layer.running_mean[c].item(), layer.running_var[c].item()
                own = z[:, c].mean().item(), z[:, c].var(unbiased=False).item()
                old = self.synthetic.get((name, c), (0.0, 0.0))
                d_source = sum(abs(a - b) for a, b in zip(own, source))
                d_synthetic = sum(abs(a - b) for a, b in zip(own, old))
                w_source, w_synthetic = torch.tensor([d_source, d_synthetic], dtype=torch.float64).softmax(0).tolist()
                n = self.images
                new = tuple((n * g + (s + i) / 2) / (n + 1) for g, s, i in zip(old, source, own))
                self.synthetic[name, c] = new
                mean, variance = (
                    w_synthetic * s + w_source / 2 * g + w_source / 2 * i for s, g, i in zip(source, new, own)
                )
                out[:, c] = (z[:, c] - mean) / (variance + layer.eps) ** 0.5 * layer.weight[c] + layer.bias[c]
            return out

        return forward

    @torch.no_grad()
    def __call__(self, x):
        logits = self.network(x.double())
        self.images += 1
        return logits


@pytest.mark.parametrize("count", [1, 3])
def test_follows_the_formula_over_a_stream(make_network, count):
    network = make_network()
    naive = Naive(network)
    method = DyNo(network, activation="sigmoid")
    for seed in range(4):
        x = image(seed, count)
        method.adapt(x)
        assert torch.allclose(method.network(x).double(), naive(x), atol=1e-4)


def test_other_forwards_of_an_image_do_not_count_as_images(make_network):
    """Unlike in the authors' code, where each flip moves the synthetic domain."""
    one, other = DyNo(make_network(), activation="sigmoid"), DyNo(make_network(), activation="sigmoid")
    one.adapt(image(0))
    other.adapt(image(0))
    for flip in ((-1,), (-2,)):
        one.network(image(0).flip(flip))
    one.adapt(image(1))
    other.adapt(image(1))
    assert torch.equal(one.network(image(1)), other.network(image(1)))


def test_costs_one_forward_an_image(make_network):
    network, calls = make_network(), []
    network.register_forward_hook(lambda *_: calls.append(1))
    method = DyNo(network, activation="sigmoid")
    x = image()
    method.adapt(x)
    predicted = method.network(x)
    assert len(calls) == 1
    # the statistics that were kept give the same prediction again
    method.computed = None
    assert torch.allclose(method.network(x), predicted, atol=1e-6) and len(calls) == 2


def test_an_image_that_is_not_finite_leaves_no_trace(make_network):
    method, alone = DyNo(make_network(), activation="sigmoid"), DyNo(make_network(), activation="sigmoid")
    method.adapt(image(0))
    alone.adapt(image(0))
    record = method.adapt(torch.full_like(image(), torch.nan))
    assert record.flags == ("non_finite_logits", "step_skipped")
    method.adapt(image(1))
    alone.adapt(image(1))
    assert torch.equal(method.network(image(1)), alone.network(image(1)))
