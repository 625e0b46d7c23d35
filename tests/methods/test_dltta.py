"""DLTTA and its learning rate against their formula."""

import copy
import io
import math

import nibabel
import pytest
import torch
from torch.nn import functional as F

from grata.errors import GrataError
from grata.methods import METHODS
from grata.optimization import RATES, DiscrepancyRate, MemoryBank, StepSignals, make_rate

DLTTA, GraTa, Tent = METHODS["dltta"], METHODS["grata"], METHODS["tent"]


def batch(seed=0, samples=1, dims=2):
    return torch.rand(samples, 1, *[16] * dims, generator=torch.Generator().manual_seed(seed))


def signals(probabilities, features, activation):
    return StepSignals(torch.zeros(1), math.nan, activation, lambda: (probabilities, features))


def naive_discrepancy(p, q, activation):
    """Return the discrepancy, computed voxel by voxel in float64."""
    total, voxels = 0.0, p[0].numel()
    p, q = p.double().flatten(1), q.double().flatten(1)
    for i in range(voxels):
        for c in range(len(p)):
            pairs = [(p[c, i], q[c, i])]
            if activation == "sigmoid":
                pairs.append((1 - p[c, i], 1 - q[c, i]))
            for a, b in pairs:
                total += 0.5 * float(a * (a / b).log() + b * (b / a).log())
    return total / voxels


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_the_factor_is_the_exponential_of_the_divergence_from_the_mean_of_the_nearest(activation):
    generator = torch.Generator().manual_seed(3)
    rate = DiscrepancyRate(neighbours=2, size=4)
    maps = torch.randn(6, 2, 4, 4, generator=generator)
    maps = maps.sigmoid() if activation == "sigmoid" else maps.softmax(1)
    features = torch.randn(6, 3, generator=generator)
    for index in range(5):
        rate.factor(signals(maps[index : index + 1], features[index : index + 1], activation))
    factor = rate.factor(signals(maps[5:], features[5:], activation))
    # the memory has dropped the first of the five
    cosines = [float(F.cosine_similarity(features[j], features[5], dim=0)) for j in range(1, 5)]
    nearest = sorted(range(4), key=lambda j: -cosines[j])[:2]
    mean = sum(maps[1 + j] for j in nearest) / 2
    assert factor == pytest.approx(math.exp(naive_discrepancy(maps[5], mean, activation)), rel=1e-6)
    assert factor > 1


def test_until_there_are_enough_neighbours_the_factor_is_one(make_network):
    method = DLTTA(
        make_network(),
        activation="sigmoid",
        learning_rate_law={"name": "discrepancy", "neighbours": 3, "size": 3},
        lr=1e-2,
    )
    rates = [method.adapt(batch(seed)).learning_rate for seed in range(5)]
    assert rates[:3] == [1e-2] * 3 and min(rates[3:]) > 1e-2


def test_images_of_one_batch_are_not_compared_with_each_other():
    rate = DiscrepancyRate(neighbours=1, size=2)
    maps, features = torch.rand(2, 1, 4, 4), torch.ones(2, 3)
    assert rate.factor(signals(maps, features, "sigmoid")) == 1
    assert rate.factor(signals(maps[1:], features[1:], "sigmoid")) >= 1


def test_an_image_equal_to_all_it_is_compared_with_takes_a_step_of_the_base_rate():
    rate = DiscrepancyRate(neighbours=2, size=2)
    maps, features = torch.rand(1, 2, 40, 40), torch.ones(1, 3)
    assert [rate.factor(signals(maps, features, "sigmoid")) for _ in range(4)] == [1.0] * 4


def test_images_of_other_sizes_are_compared_on_a_coarse_grid():
    rate = DiscrepancyRate(neighbours=1, size=3, grid=8)
    for shape in ((16, 16), (4, 12), (30, 5)):
        factor = rate.factor(signals(torch.full((1, 1, *shape), 0.3), torch.ones(1, 3), "sigmoid"))
        assert factor == pytest.approx(1, abs=1e-6)
    assert all(max(value.shape[1:]) <= 8 for value in rate.state_dict()["values"])


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_one_step_is_that_of_tent_at_another_length(make_network, activation):
    settings = dict(activation=activation, optimizer="SGD", lr=0.05)
    law = {"name": "discrepancy", "neighbours": 1, "size": 2}
    method = DLTTA(make_network(), learning_rate_law=law, **{"activation": "sigmoid", **settings})
    method.adapt(batch(1))
    reference = copy.deepcopy(method._network)
    state = {name: p.detach().clone().double() for name, p in method.parameters.items()}
    record = method.adapt(batch(2))
    assert record.learning_rate > 0.05
    other = make_network().double().train()
    other.load_state_dict({k: v.double() for k, v in reference.state_dict().items()})
    logits = other(batch(2).double())
    p = logits.sigmoid() if activation == "sigmoid" else logits.softmax(1)
    entropy = -(p * p.log()).sum(1).mean()
    if activation == "sigmoid":
        entropy = entropy - ((1 - p) * (1 - p).log()).sum(1).mean()
    parameters = dict(other.named_parameters())
    for name, adapted in method.parameters.items():
        (gradient,) = torch.autograd.grad(entropy, parameters[name], retain_graph=True)
        expected = state[name] - record.learning_rate * gradient
        torch.testing.assert_close(adapted.detach().double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_takes_any_images_and_leaves_the_convolutions_alone(make_network, dims, samples, activation):
    network = make_network(dims)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    law = {"name": "discrepancy", "neighbours": 2, "size": 4}
    method = DLTTA(network, activation=activation, learning_rate_law=law)
    for seed in range(3):
        assert not method.adapt(batch(seed, samples, dims)).flags
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in method.parameters)


def test_entropy_falls_over_several_steps_on_one_scan(make_network, bundle):
    file = bundle / "sample_scans" / "nifti" / "icbm152_left.nii.gz"
    scan = torch.from_numpy(nibabel.load(file).get_fdata(dtype="float32"))[4:28, 4:28, 4:28]
    scan = scan[tuple(slice(0, s // 2 * 2) for s in scan.shape)]
    image = ((scan - scan.min()) / (scan.max() - scan.min()))[None, None]
    method = DLTTA(make_network(3), activation="softmax", lr=1e-2)
    losses = [method.adapt(image).loss for _ in range(12)]
    assert losses[-1] < losses[0]


def test_any_method_can_be_given_the_law(make_network):
    law = {"name": "discrepancy", "neighbours": 1, "size": 1}
    grata = GraTa(make_network(), activation="sigmoid", learning_rate_law=law)
    tent = Tent(make_network(), activation="sigmoid", learning_rate_law=law)
    for method in (grata, tent):
        first, second = (method.adapt(batch(seed)).learning_rate for seed in (0, 1))
        assert second > first == method.lr
    assert math.isfinite(grata.adapt(batch(2)).cosine)


def test_restore_forgets_the_memory_and_a_state_carries_it(make_network):
    method = DLTTA(
        make_network(), activation="sigmoid", learning_rate_law={"name": "discrepancy", "neighbours": 1, "size": 2}
    )
    for seed in range(2):
        method.adapt(batch(seed))
    buffer = io.BytesIO()
    torch.save(method.state_dict(), buffer)
    buffer.seek(0)
    other = DLTTA(
        make_network(), activation="sigmoid", learning_rate_law={"name": "discrepancy", "neighbours": 1, "size": 2}
    )
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert method.adapt(batch(2)).learning_rate == other.adapt(batch(2)).learning_rate > 1e-3
    method.restore()
    assert method.adapt(batch(2)).learning_rate == 1e-3


@pytest.mark.parametrize(
    ("law", "message"),
    [
        ({"name": "discrepancy", "neighbours": 0}, "learning_rate_law#neighbours"),
        ({"name": "discrepancy", "size": 4}, "learning_rate_law#size"),
        ({"name": "discrepancy", "grid": 1.5}, "learning_rate_law#grid"),
        ({"name": "discrepancy", "depth": 1}, "learning_rate_law#depth"),
    ],
)
def test_wrong_settings_are_refused_by_name(law, message):
    with pytest.raises(GrataError, match=message):
        make_rate(law)
    assert RATES["discrepancy"] is DiscrepancyRate


def test_a_state_of_another_law_is_refused(make_network):
    method = Tent(make_network(), activation="sigmoid")
    method.adapt(batch())
    other = Tent(make_network(), activation="sigmoid", learning_rate_law="discrepancy")
    other.adapt(batch())
    with pytest.raises(GrataError, match="another learning_rate_law"):
        other.load_state_dict(method.state_dict())
    with pytest.raises(GrataError, match="another learning_rate_law"):
        method.load_state_dict(other.state_dict())
    assert method.batches == other.batches == 1


def test_a_network_that_cannot_be_looked_into_is_refused(make_network):
    with pytest.raises(GrataError, match="method dltta compares deepest features"):
        DLTTA(torch.jit.script(make_network()), activation="sigmoid")


def test_the_memory_keeps_the_last_and_finds_the_nearest_first():
    memory = MemoryBank(2)
    for angle in (0.0, 0.5, 1.0):
        memory.add(torch.tensor([math.cos(angle), math.sin(angle)]), torch.tensor(angle))
    cosines, values = memory.nearest(torch.tensor([0.0, 2.0]), 5)
    assert len(memory) == 2 and [float(v) for v in values] == [1.0, 0.5]
    torch.testing.assert_close(cosines, torch.tensor([math.sin(1.0), math.sin(0.5)]))


def test_a_memory_that_was_read_from_a_file_goes_on_where_the_network_computes():
    """Use ``meta`` for any device but the CPU, where the pairs from a file are."""
    read = MemoryBank(3)
    read.load_state_dict({"keys": [torch.ones(2), torch.zeros(2)], "values": [torch.ones(1), torch.zeros(1)]})
    read.add(torch.ones(2, device="meta"), torch.ones(1, device="meta"))
    state = read.state_dict()
    for tensors in (state["keys"], state["values"]):
        assert [tensor.device.type for tensor in tensors] == ["meta"] * 3
