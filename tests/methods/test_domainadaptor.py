"""DomainAdaptor against its formulas."""

import copy
import math

import nibabel
import pytest
import torch
from torch import nn

from grata.errors import GrataError
from grata.methods import METHODS
from grata.methods.domainadaptor import adaptive_mix, generalized_entropy

DomainAdaptor = METHODS["domainadaptor"]


def batch(seed=0, samples=3, dims=2):
    return torch.rand(samples, 1, *[16] * dims, generator=torch.Generator().manual_seed(seed))


def naive_mix(layer, x):
    """Return a layer's statistics in float64 with gradients, computed image by image and channel by channel."""
    channels = x.shape[1]
    source = [(layer.running_mean[c], layer.running_var[c]) for c in range(channels)]
    whole = [(x[:, c].mean(), x[:, c].var(unbiased=False)) for c in range(channels)]

    def distance(a, b):
        parts = [(float(m) - float(n)) ** 2 + (float(v) ** 0.5 - float(w) ** 0.5) ** 2 for (m, v), (n, w) in zip(a, b)]
        return sum(parts) / channels

    weights = []
    for image in x.detach():
        own = [(image[c].mean(), image[c].var(unbiased=False)) for c in range(channels)]
        st, si, it = (distance(a, b) for a, b in ((detached(whole), source), (own, source), (own, detached(whole))))
        weights.append(1 - st / (st + si + it))
    weight = sum(weights) / len(weights)
    return weight, whole, source


def detached(pairs):
    return [(m.detach(), v.detach()) for m, v in pairs]


class NaiveNorm(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        weight, whole, source = naive_mix(self.layer, x)
        channels = []
        for c, ((m, v), (n, w)) in enumerate(zip(whole, source)):
            mean, variance = weight * n + (1 - weight) * m, weight * w + (1 - weight) * v
            batch_deviation, deviation = (v + self.layer.eps).sqrt(), (variance + self.layer.eps).sqrt()
            a, b = (batch_deviation / deviation).detach(), ((m - mean) / deviation).detach()
            y = a * (x[:, c] - m) / batch_deviation + b
            torch.testing.assert_close(y, (x[:, c] - mean) / deviation)
            channels.append(y * self.layer.weight[c] + self.layer.bias[c])
        return torch.stack(channels, 1)


def naive_network(network):
    for name, child in network.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(network, name, NaiveNorm(child))
        else:
            naive_network(child)
    return network


def naive_entropy(logits, activation):
    if activation == "sigmoid":
        pairs = torch.stack([logits, torch.zeros_like(logits)], 2)
        return torch.stack([naive_entropy(pairs[:, c], "softmax") for c in range(logits.shape[1])]).mean()
    mean = logits.mean(1, keepdim=True)
    deviation = ((logits - mean).square().sum(1, keepdim=True) / (logits.shape[1] - 1)).sqrt()
    t = (2 * deviation).detach()
    p = (logits / t).exp() / (logits / t).exp().sum(1, keepdim=True)
    return (-(p * p.log()).sum(1, keepdim=True) * t * t).mean()


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("channels", [2, 4])
def test_one_step_is_that_of_the_formula(make_network, activation, channels):
    network = make_network(out_channels=channels)
    reference = copy.deepcopy(network).double()
    method = DomainAdaptor(network, activation=activation, lr=0.1)
    names = list(method.parameters)
    parameters = [dict(reference.named_parameters())[name] for name in names]
    logits = naive_network(reference)(batch().double())
    loss = naive_entropy(logits, activation)
    gradients = torch.autograd.grad(loss, parameters)
    record = method.adapt(batch())
    assert record.loss == pytest.approx(loss.item(), rel=1e-4)
    for name, p, g in zip(names, parameters, gradients):
        torch.testing.assert_close(method.parameters[name].detach().double(), p.detach() - 0.1 * g, rtol=0, atol=1e-6)
    with torch.no_grad():
        for p, g in zip(parameters, gradients):
            p.sub_(0.1 * g)
        expected = reference(batch().double())
        torch.testing.assert_close(method.network(batch()).double(), expected, rtol=0, atol=1e-5)


def test_a_single_image_is_half_way_between_batch_and_source():
    layer = nn.BatchNorm2d(3).eval()
    layer.running_mean.normal_(generator=torch.Generator().manual_seed(1))
    x = batch(0, 3).view(1, 3, 16, 16) * 4
    mean, variance = adaptive_mix(layer, x)
    torch.testing.assert_close(mean, (layer.running_mean + x.mean((0, 2, 3))) / 2)
    torch.testing.assert_close(variance, (layer.running_var + x.var((0, 2, 3), unbiased=False)) / 2)


def test_unlike_images_that_together_equal_the_source_use_its_statistics():
    layer = nn.BatchNorm2d(1).eval()
    x = torch.cat([batch(0, 1) + 8, batch(1, 1) - 8])
    x = (x - x.mean()) / x.std(unbiased=False)
    mean, variance = adaptive_mix(layer, x)
    torch.testing.assert_close(mean, torch.zeros(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(variance, torch.ones(1), atol=1e-4, rtol=0)


def test_statistics_equal_to_the_sources_stay_the_same():
    layer = nn.BatchNorm2d(1).eval()
    x = torch.full((1, 1, 2, 2), 0.0)
    layer.running_var.zero_()
    mean, variance = adaptive_mix(layer, x)
    assert mean.item() == variance.item() == 0


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_equal_logits_have_a_finite_objective_and_no_gradient(activation):
    logits = torch.zeros(1, 3, 2, 2, requires_grad=True)
    loss = generalized_entropy(logits, activation)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert math.isfinite(loss.item()) and gradient.abs().max() < 1e-6


def test_two_classes_are_driven_apart_in_proportion_to_their_distance():
    logits = torch.tensor([[1.0], [4.0], [-2.0]]).view(1, 1, 3, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(generalized_entropy(logits, "sigmoid"), logits)
    ratio = gradient / logits
    assert ratio.max() < 0
    torch.testing.assert_close(ratio, ratio[..., :1, :].expand_as(ratio))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_takes_any_images_and_leaves_the_convolutions_alone(make_network, dims, samples, activation):
    network = make_network(dims)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    method = DomainAdaptor(network, activation=activation, lr=0.1)
    assert method.card.episodic and not method.adapt(batch(0, samples, dims)).flags
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in method.parameters), name


def test_entropy_falls_over_several_steps_on_one_scan(make_network, bundle):
    file = bundle / "sample_scans" / "nifti" / "icbm152_left.nii.gz"
    scan = torch.from_numpy(nibabel.load(file).get_fdata(dtype="float32"))[4:28, 4:28, 4:28]
    scan = scan[tuple(slice(0, s // 2 * 2) for s in scan.shape)]
    image = ((scan - scan.min()) / (scan.max() - scan.min()))[None, None]
    method = DomainAdaptor(make_network(3, out_channels=3), activation="softmax", lr=0.05)
    entropies = []
    for _ in range(10):
        method.adapt(image)
        entropies.append(method.uncertainty(image).item())
    assert entropies[-1] < entropies[0]


def test_a_step_lowers_the_objective_at_the_temperatures_before_it(make_network):
    method = DomainAdaptor(make_network(out_channels=3), activation="softmax", lr=1e-2)
    method._activate()
    with torch.no_grad():
        before = method._logits(batch())
        t = 2 * before.std(1, keepdim=True)
        method.adapt(batch())
        after = method._logits(batch())

    def objective(z):
        return (-((z / t).softmax(1) * (z / t).log_softmax(1)).sum(1, keepdim=True) * t**2).mean()

    assert objective(after) < objective(before)


def test_a_weight_in_place_of_the_rule(make_network):
    method = DomainAdaptor(make_network(), activation="sigmoid", batch_statistics=0.3)
    assert method._statistics.mix == 0.3 and not method.adapt(batch()).flags


def test_a_network_without_running_statistics_is_refused(make_network):
    with pytest.raises(GrataError, match="keeps none .*InstanceNorm2d.*tent and grata fit"):
        DomainAdaptor(make_network(norm=("instance", {"affine": True})), activation="sigmoid")


def test_wrong_settings_are_refused_by_name(make_network):
    with pytest.raises(GrataError, match="^batch_statistics: must be"):
        DomainAdaptor(make_network(), activation="sigmoid", batch_statistics=2)
    with pytest.raises(GrataError, match="^lr: must be"):
        DomainAdaptor(make_network(), activation="sigmoid", lr=-1)
