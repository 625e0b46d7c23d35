"""SicTTA against its formulas."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from grata.methods.sictta import SicTTA, class_compact_density


def image(seed=0, count=1, size=16):
    return torch.rand((count, 1, size, size), generator=torch.Generator().manual_seed(seed))


def norms(network):
    return [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]


def watched(network, x):
    """The logits under the image's own statistics, with each layer's input and the output with the fewest positions."""
    inputs, deepest = [], []

    def watch(module, given, output):
        if isinstance(module, nn.BatchNorm2d):
            inputs.append(given[0].double())
        if output.ndim == 4 and (
            not deepest or (-output[0, 0].numel(), output.shape[1]) >= (-deepest[0][0, 0].numel(), deepest[0].shape[1])
        ):
            deepest[:] = [output.detach()]

    copied = copy.deepcopy(network)
    for layer in norms(copied):
        layer.training, layer.momentum = True, 0.0
    handles = [module.register_forward_hook(watch) for module in copied.modules()]
    with torch.no_grad():
        logits = copied(x)
    for handle in handles:
        handle.remove()
    return logits, inputs, deepest[0]


def test_the_first_image_is_predicted_by_the_source(make_network):
    network, x = make_network().eval(), image()
    expected = copy.deepcopy(network)(x)
    method = SicTTA(network, activation="sigmoid")
    method.adapt(x)
    assert torch.allclose(method.network(x), expected, atol=1e-6)


def test_the_second_image_shares_statistics_and_feature_with_the_first(make_network):
    network, one, two = make_network().eval(), image(1), image(2)
    method = SicTTA(copy.deepcopy(network), activation="sigmoid")
    method.adapt(one)
    method.adapt(two)
    predicted = method.network(two)

    _, inputs, f_one = watched(network, one)
    _, _, f_two = watched(network, two)
    r = F.cosine_similarity(f_one.flatten(), f_two.flatten(), dim=0)
    fused = (1 - r) * f_two + r * f_one
    kept = [(z.mean((0, 2, 3)), z.var((0, 2, 3), unbiased=False)) for z in inputs]
    naive = copy.deepcopy(network).double()
    for layer, (mean, variance) in zip(norms(naive), kept):

        def forward(z, layer=layer, mean=mean, variance=variance):
            own = z.mean((0, 2, 3)), z.var((0, 2, 3), unbiased=False)
            m = (own[0] + mean) / 2
            v = (own[1] + own[0] ** 2 + variance + mean**2) / 2 - m**2
            y = (z - m[:, None, None]) / (v[:, None, None] + layer.eps).sqrt()
            return y * layer.weight[:, None, None] + layer.bias[:, None, None]

        layer.forward = forward
    shape = tuple(fused.shape)
    # all modules that return the deepest map return the fused one
    for module in naive.modules():
        module.register_forward_hook(lambda m, i, o: fused.double() if tuple(o.shape) == shape else o)
    with torch.no_grad():
        expected = naive(two.double())
    assert torch.allclose(predicted.double(), expected, atol=1e-4)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_density_follows_its_formula(activation):
    p = torch.rand((2, 3, 5, 5), generator=torch.Generator().manual_seed(0))
    p = p / p.sum(1, keepdim=True) if activation == "softmax" else p
    found = class_compact_density(p, activation, 1000, torch.Generator())
    groups = [[x] if activation == "softmax" else [torch.stack([1 - c, c]) for c in x] for x in p]
    for value, parts in zip(found, groups):
        expected = []
        for part in parts:
            rows = [column / math.sqrt((column**2).sum()) for column in part.flatten(1).T]
            gram = sum(torch.outer(row, row) for row in rows)
            entropies = []
            for row in gram:
                q = torch.exp(row - row.max()) / torch.exp(row - row.max()).sum()
                entropies.append(-sum(v * math.log(v + 1e-5) for v in q.tolist()))
            expected.append(sum(entropies) / len(entropies))
        assert value == pytest.approx(sum(expected) / len(expected), abs=1e-5)


def test_the_pool_takes_the_lowest_densities_once_it_holds_enough(make_network):
    method = SicTTA(make_network(), activation="sigmoid", neighbours=2, pool=4, share=0.0)
    taken = []
    for density in (0.5, 0.9, 0.1, 0.6, 0.05, 0.04, 0.7):
        before = len(method._pool), method._pool[-1:]
        method._meet({"feature": torch.tensor(density)}, density)
        taken.append((len(method._pool), method._pool[-1:]) != before)
    # the first always; the second of a pool that holds one of two: at most the median; then the lowest of the last four
    assert taken == [True, False, True, False, True, True, False]
    assert len(method._pool) == 4


def test_keeps_no_images(make_network):
    method = SicTTA(make_network(), activation="sigmoid")
    x = image(size=32)
    method.adapt(x)
    kept = [value for entry in method.state_dict()["pool"] for value in entry.values()]
    assert kept and all(value.shape[-2:] != x.shape[-2:] for value in kept)


def test_images_of_other_sizes_meet(make_network):
    method = SicTTA(make_network(), activation="sigmoid")
    for size in (16, 24, 16):
        x = image(size=size)
        method.adapt(x)
        assert method.network(x).isfinite().all()


def test_each_image_of_a_batch_has_its_own_neighbours(make_network):
    method, alone = SicTTA(make_network(), activation="sigmoid"), SicTTA(make_network(), activation="sigmoid")
    for other in (method, alone):
        other.adapt(image(0))
    both = image(1, count=2)
    method.adapt(both)
    alone.adapt(both[1:])
    assert torch.allclose(method.network(both)[1:], alone.network(both[1:]), atol=1e-5)
