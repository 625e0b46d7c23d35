"""EATA against its formula."""

import copy
import math

import nibabel
import pytest
import torch

from grata.errors import GrataError
from grata.methods import METHODS, Prepared
from grata.networks import network_digest

EATA = METHODS["eata"]


def batch(seed=0, samples=2, dims=2):
    return torch.rand(samples, 1, *[16] * dims, generator=torch.Generator().manual_seed(seed))


def prepared(network, fisher=1.0):
    names = [name for name, p in network.named_parameters() if p.ndim == 1]
    values = {name: torch.full_like(dict(network.named_parameters())[name], fisher) for name in names}
    return Prepared(fisher=values, images=1, network="UNet", digest=network_digest(network))


def sharp(network, factor=20.0):
    """Scale the logits so that part of the voxels is reliable."""
    last = [p for p in network.parameters() if p.ndim > 3][-1]
    with torch.no_grad():
        last.mul_(factor)
    return network


def make(network, fisher=1.0, **settings):
    return EATA(network, prepared=prepared(network, fisher), **{"activation": "sigmoid", **settings})


def distributions(logits, activation):
    """Return probabilities ``(B, G, K, ...)`` by their definition."""
    if activation == "softmax":
        return logits.softmax(1)[:, None]
    return torch.stack([logits.sigmoid(), (-logits).sigmoid()], 2)


class Naive:
    """The paper's formulas voxel by voxel, in float64."""

    def __init__(self, activation, highest):
        self.activation, self.e0, self.average = activation, 0.4 * highest, {}

    def loss(self, logits):
        p = distributions(logits, self.activation)
        b, g, k = p.shape[:3]
        flat = p.flatten(3)
        terms, kept = [], {channel: [] for channel in range(g)}
        for i in range(b):
            for channel in range(g):
                for v in range(flat.shape[3]):
                    q = flat[i, channel, :, v]
                    h = -(q * q.log()).sum()
                    if h.item() >= self.e0:
                        continue
                    m = self.average.get(channel)
                    if m is not None and float(q.detach() @ m / (q.detach().norm() * m.norm())) >= 1.26 / math.sqrt(k):
                        continue
                    terms.append(math.exp(self.e0 - h.item()) * h)
                    kept[channel].append(q.detach())
        for channel, seen in kept.items():
            if seen:
                mean = torch.stack(seen).mean(0)
                m = self.average.get(channel)
                self.average[channel] = mean if m is None else 0.9 * m + 0.1 * mean
        self.share = len(terms) / (flat.numel() / k)
        return torch.stack(terms).mean()


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("channels", [2, 3])
def test_two_steps_are_those_of_the_formula(make_network, activation, channels):
    network = sharp(make_network(out_channels=channels))
    reference = copy.deepcopy(network).double().train()
    method = make(network, fisher=0.5, activation=activation, lr=0.05, fisher_alpha=3.0)
    names = list(method.parameters)
    parameters = [dict(reference.named_parameters())[name] for name in names]
    source = [p.detach().clone() for p in parameters]
    momentum = [torch.zeros_like(p) for p in parameters]
    naive = Naive(activation, math.log(channels if activation == "softmax" else 2))
    for seed in range(2):
        record = method.adapt(batch(seed))
        anchor = sum((0.5 * (p - s).square()).sum() for p, s in zip(parameters, source))
        loss = naive.loss(reference(batch(seed).double())) + 3.0 * anchor
        gradients = torch.autograd.grad(loss, parameters)
        assert record.loss == pytest.approx(loss.item(), rel=1e-4)
        assert record.kept == pytest.approx(naive.share, abs=1e-12) and 0 < record.kept < 1
        with torch.no_grad():
            for p, g, m in zip(parameters, gradients, momentum):
                m.mul_(0.9).add_(g)
                p.sub_(0.05 * m)
        for name, p in zip(names, parameters):
            torch.testing.assert_close(method.parameters[name].detach().double(), p.detach(), rtol=0, atol=5e-6)
    for channel, average in naive.average.items():
        torch.testing.assert_close(method._average[channel].double(), average, rtol=0, atol=1e-6)


def test_parameters_that_matter_to_the_source_move_less(make_network):
    settings = dict(lr=0.01, optimizer_options={}, redundancy=9.0)
    free, anchored = (make(sharp(make_network()), fisher=fisher, **settings) for fisher in (0, 1e-2))
    for _ in range(10):
        free.adapt(batch())
        anchored.adapt(batch())
    assert anchored.parameter_change()["l2"] < 0.8 * free.parameter_change()["l2"]


def test_without_reliable_voxels_no_step_is_taken_and_a_flag_says_so(make_network):
    method = make(make_network(), margin=1e-6, lr=0.1)
    before = method._copy()
    record = method.adapt(batch())
    assert record.flags == ("nothing_kept", "step_skipped") and record.kept == 0
    assert all(torch.equal(p, before[name]) for name, p in method.parameters.items())
    assert method._average is None and not method.optimizer.state


def test_redundant_voxels_do_not_contribute_to_the_step(make_network):
    method = make(sharp(make_network()), activation="softmax", lr=0.0, redundancy=0.9)
    method.adapt(batch())
    everything = make(sharp(make_network()), activation="softmax", lr=0.0, redundancy=9.0)
    everything.adapt(batch())
    first, second = everything.adapt(batch()).kept, method.adapt(batch()).kept
    assert second < first


def test_a_non_finite_image_is_flagged_and_not_remembered(make_network):
    method = make(sharp(make_network()))
    method.adapt(batch())
    average = method._average.clone()
    assert method.adapt(batch() * float("nan")).flags == ("non_finite_loss", "step_skipped")
    assert torch.equal(method._average, average)


def test_a_parameter_without_fisher_information_has_no_anchor(make_network):
    network = sharp(make_network())
    given = prepared(network)
    one = next(iter(make(network).parameters))
    given = Prepared(fisher={one: given.fisher[one]}, images=1, digest=given.digest)
    method = EATA(network, activation="sigmoid", prepared=given, lr=0.01)
    assert list(method._fisher) == [one] and not method.adapt(batch()).flags


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_takes_any_images_and_leaves_the_convolutions_alone(make_network, dims, samples, activation):
    network = sharp(make_network(dims))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    method = make(network, activation=activation, lr=0.01)
    record = method.adapt(batch(0, samples, dims))
    assert not record.flags and 0 < record.kept <= 1
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in method.parameters), name


def test_its_objective_falls_over_several_steps_on_one_scan(make_network, bundle):
    file = bundle / "sample_scans" / "nifti" / "icbm152_left.nii.gz"
    scan = torch.from_numpy(nibabel.load(file).get_fdata(dtype="float32"))[4:28, 4:28, 4:28]
    scan = scan[tuple(slice(0, s // 2 * 2) for s in scan.shape)]
    image = ((scan - scan.min()) / (scan.max() - scan.min()))[None, None]
    # the filters keep everything, so that the objective is the same at each step
    method = make(sharp(make_network(3)), fisher=1e-9, activation="softmax", lr=0.005, margin=1.0, redundancy=9.0)
    losses = [method.adapt(image).loss for _ in range(10)]
    assert losses[-1] < losses[0]


def test_the_fisher_information_is_required_and_must_belong_to_these_weights(make_network):
    with pytest.raises(GrataError, match="method eata needs the Fisher information.*grata prepare"):
        EATA(make_network(), activation="sigmoid")
    with pytest.raises(GrataError, match="method eata needs"):
        EATA(make_network(), activation="sigmoid", prepared=Prepared(digest=network_digest(make_network())))
    with pytest.raises(GrataError, match="other weights"):
        EATA(make_network(), activation="sigmoid", prepared=prepared(sharp(make_network()))).adapt(batch())


def test_the_file_of_the_preparation_is_read(make_network, tmp_path):
    network = sharp(make_network())
    prepared(network).save(tmp_path / "prepared.safetensors")
    method = EATA(network, activation="sigmoid", prepared=tmp_path / "prepared.safetensors")
    assert method._fisher.keys() == method.parameters.keys()


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"margin": 0}, "margin"),
        ({"margin": 1.1}, "margin"),
        ({"redundancy": 0.0}, "redundancy"),
        ({"fisher_alpha": -1}, "fisher_alpha"),
    ],
)
def test_wrong_settings_are_refused_by_name(make_network, settings, name):
    with pytest.raises(GrataError, match=f"^{name}: must be"):
        make(make_network(), **settings)
