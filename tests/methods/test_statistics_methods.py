"""BN-α, MedBN and InTEnt against their formulas."""

import copy
import math

import pytest
import torch

from grata.errors import GrataError
from grata.methods import METHODS, PTBN, Tent, create, settings_of
from grata.methods.bn_alpha import BNAlpha
from grata.methods.intent import InTEnt
from grata.methods.medbn import MedBN
from grata.normalization import BatchStatistics, ScriptedNetwork
from grata.normalization.rules import instance_mix


def batch(size=2, spatial_dims=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((size, 1, *[16] * spatial_dims), generator=generator)


def naive(network, x, statistics):
    """Return the output in float64 where batch normalization uses ``mean, variance = statistics(z, layer)``."""
    network = copy.deepcopy(network).double().eval()

    def normalize(layer):
        def forward(z):
            mean, variance = statistics(z, layer)
            shape = [-1, z.shape[1]] + [1] * (z.ndim - 2)
            y = (z - mean.reshape(shape)) / (variance.reshape(shape) + layer.eps).sqrt()
            return y * layer.weight.reshape(shape) + layer.bias.reshape(shape)

        return forward

    for layer in network.modules():
        if "BatchNorm" in type(layer).__name__:
            layer.forward = normalize(layer)
    with torch.no_grad():
        return network(x.double())


def mixed(weight):
    def statistics(z, layer):
        values = z.transpose(0, 1).flatten(1)
        mean, variance = values.mean(1), values.var(1, unbiased=False)
        return (
            weight * mean + (1 - weight) * layer.running_mean,
            weight * variance + (1 - weight) * layer.running_var,
        )

    return statistics


def close(a, b):
    torch.testing.assert_close(a.double(), b, rtol=0, atol=2e-5)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("alpha", [0.1, 0.7])
def test_bn_alpha_mixes_the_batch_into_the_source(make_network, spatial_dims, alpha):
    network, x = make_network(spatial_dims), batch(3, spatial_dims)
    expected = naive(network, x, mixed(alpha))
    method = BNAlpha(network, alpha=alpha)
    method.adapt(x)
    with torch.no_grad():
        close(method.network(x), expected)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_medbn_normalizes_about_the_median_of_batch_and_space(make_network, spatial_dims):
    def statistics(z, layer):
        values = z.transpose(0, 1).flatten(1)
        # the median of an even number of values is the lower of the two in the middle
        median = values.sort(1).values[:, (values.shape[1] - 1) // 2]
        return median, ((values - median[:, None]) ** 2).mean(1)

    network, x = make_network(spatial_dims), batch(2, spatial_dims)
    expected = naive(network, x, statistics)
    method = MedBN(network)
    method.adapt(x)
    with torch.no_grad():
        close(method.network(x), expected)


def test_an_artefact_in_a_corner_moves_medbn_less_than_batch_statistics(make_network):
    x = batch(1)
    spoilt = x.clone()
    spoilt[..., :4, :4] = 50.0

    def change(method_class):
        method = method_class(make_network())
        method.adapt(x)
        with torch.no_grad():
            return (method.network(spoilt) - method.network(x))[..., 8:, 8:].abs().mean()

    assert change(MedBN) < change(PTBN)


def test_a_method_that_learns_takes_the_median_by_its_name(make_network):
    method = Tent(make_network(), activation="sigmoid", batch_statistics="median")
    before = {name: p.detach().clone() for name, p in method.parameters.items()}
    assert method.adapt(batch()).flags == ()
    assert any(not torch.equal(p, before[name]) for name, p in method.parameters.items())
    with pytest.raises(GrataError, match="median"):
        Tent(make_network(), activation="sigmoid", batch_statistics="mode")


def mean_entropy(entropy, outcome, weighting):
    """Return the mean over all voxels, or the mean over the outcomes present of their own means."""
    if weighting == "entropy":
        return entropy.mean().item()
    return sum(entropy[outcome == k].mean().item() for k in outcome.unique()) / len(outcome.unique())


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("weighting", ["balance", "entropy", "uniform"])
@pytest.mark.parametrize(("spatial_dims", "size"), [(2, 3), (3, 1)])
def test_intent_averages_predictions_by_their_balanced_entropies(
    make_network, activation, weighting, spatial_dims, size
):
    network, x = make_network(spatial_dims, out_channels=3), batch(size, spatial_dims)
    mixes = (0.0, 0.5, 1.0)
    logits = [naive(network, x, mixed(m)) for m in mixes]
    method = InTEnt(network, mixes=mixes, activation=activation, weighting=weighting)
    method.adapt(x)
    with torch.no_grad():
        predicted = method.network(x)
    for index in range(size):
        if activation == "softmax":
            cases = [[z[index].softmax(0) for z in logits]]
            found = [predicted[index].softmax(0)]
        else:
            cases = [[z[index, c].sigmoid() for z in logits] for c in range(3)]
            found = predicted[index].sigmoid()
        for predictions, p_found in zip(cases, found):
            values = []
            for p in predictions:
                if activation == "softmax":
                    values.append(mean_entropy(-(p * p.log()).sum(0), p.argmax(0), weighting))
                else:
                    entropy = -(p * p.log() + (1 - p) * (1 - p).log())
                    values.append(mean_entropy(entropy, p >= 0.5, weighting))
            low, high = min(values), max(values)
            raw = [1.0 if weighting == "uniform" else math.exp((high - v) / (high - low)) for v in values]
            expected = sum(w * p for w, p in zip(raw, predictions)) / sum(raw)
            close(p_found, expected)


def test_intent_counts_predictions_of_the_same_entropy_alike(make_network):
    method = InTEnt(make_network(), mixes=[0.3, 0.3], activation="softmax")
    twin = BNAlpha(make_network(), alpha=0.3)
    method.adapt(batch(1)), twin.adapt(batch(1))
    with torch.no_grad():
        torch.testing.assert_close(method.network(batch(1)).softmax(1), twin.network(batch(1)).softmax(1))


def test_intent_uses_all_voxels_where_no_foreground_is_found(make_network):
    method = InTEnt(make_network(), activation="sigmoid")
    logits = torch.rand(1, 2, 4, 4) - 2.0
    p = logits.sigmoid()
    entropy = -(p * p.log() + (1 - p) * (1 - p).log())
    torch.testing.assert_close(method._mean_entropy(logits), entropy.mean((2, 3)))


def test_intent_with_a_single_mix_is_bn_alpha(make_network):
    x = batch(1)
    one, other = InTEnt(make_network(), activation="sigmoid", mixes=[0.3]), BNAlpha(make_network(), alpha=0.3)
    one.adapt(x), other.adapt(x)
    with torch.no_grad():
        torch.testing.assert_close(one.network(x), other.network(x), rtol=0, atol=1e-4)


def test_the_prediction_for_an_image_does_not_depend_on_earlier_ones(make_network):
    method = InTEnt(make_network(), activation="sigmoid")
    method.adapt(batch(1, seed=4))
    with torch.no_grad():
        first = method.network(batch(1, seed=4))
        method.adapt(batch(1, seed=5))
        method.adapt(batch(1, seed=4))
        assert torch.equal(method.network(batch(1, seed=4)), first)


@pytest.mark.parametrize("method", [BNAlpha, MedBN, InTEnt])
def test_networks_whose_statistics_cannot_be_changed_are_refused(make_network, method):
    given = {"activation": "sigmoid"} if "activation" in method.settings() else {}
    with pytest.raises(GrataError, match="InstanceNorm2d"):
        method(make_network(2, "instance"), **given)
    with pytest.raises(GrataError, match="TorchScript"):
        method(torch.jit.script(make_network().eval()), **given)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (BNAlpha, {"alpha": 1.5}, "alpha: must be"),
        (InTEnt, {"mixes": []}, "mixes: must be a list"),
        (InTEnt, {"mixes": [0.5, 2]}, "mixes: must be"),
        (InTEnt, {"weighting": "best"}, "weighting: must be one of balance"),
    ],
)
def test_wrong_settings_are_refused_by_name(make_network, method, settings, message):
    with pytest.raises(GrataError, match=message):
        method(make_network(), **settings)


@pytest.mark.parametrize("name", ["diga", "dua", "intent", "vptta"])
def test_methods_that_choose_their_statistics_do_not_have_the_setting(make_network, name):
    assert "batch_statistics" not in settings_of(name)
    with pytest.raises(GrataError, match="batch_statistics: "):
        METHODS[name](make_network(), batch_statistics=1.0)
    with pytest.raises(GrataError, match=f"settings#batch_statistics: method {name} has no such setting"):
        create(name, make_network(), {"batch_statistics": 1.0}, activation="softmax")
    create(name, make_network(), activation="softmax", batch_statistics=1.0)


@pytest.mark.parametrize("name", ["bn_alpha", "diga", "domainadaptor", "dua", "intent", "medbn", "vptta"])
def test_a_scripted_network_is_refused_with_a_remedy_that_works(make_network, name):
    scripted = torch.jit.script(make_network())
    with pytest.raises(GrataError, match="^A TorchScript network .* neither a mix .*model.pt.* such as ptbn"):
        create(name, scripted, activation="softmax")


def test_a_scripted_network_refuses_other_statistics_for_a_while_too(make_network):
    statistics = BatchStatistics(ScriptedNetwork(torch.jit.script(make_network())), 1.0)
    with pytest.raises(GrataError, match="TorchScript"), statistics.using(0.5):
        pass
    with statistics.using(0.0):
        pass


class OneVoxel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(2)
        self.norm.running_mean.fill_(0.5)

    def forward(self, x):
        return self.norm(x)


@pytest.mark.parametrize(
    ("mix", "fits"),
    [(1.0, False), (0.5, True), (0.0, True), ("median", False), (instance_mix(0.2), True), (instance_mix(1.0), False)],
)
def test_a_single_value_is_refused_where_only_it_counts(mix, fits):
    layer = OneVoxel()
    statistics, x = BatchStatistics(layer, mix), torch.tensor([[2.0, -1.0]])[:, :, None, None]
    statistics.attach()
    if fits:
        assert layer(x).abs().min() > 0
    else:
        with pytest.raises(GrataError, match="too small"):
            layer(x)
