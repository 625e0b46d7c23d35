"""SAR against its formula."""

import copy
import math

import nibabel
import pytest
import torch

from grata.errors import GrataError
from grata.methods import METHODS
from grata.predictions import maximal_entropy, voxel_entropy

SAR = METHODS["sar"]


def batch(seed=0, samples=2, dims=2):
    return torch.rand(samples, 1, *[16] * dims, generator=torch.Generator().manual_seed(seed))


def sharp(network, factor=20.0):
    """Scale the logits so that part of the voxels is reliable."""
    last = [p for p in network.parameters() if p.ndim > 3][-1]
    with torch.no_grad():
        last.mul_(factor)
    return network


def entropies(logits, activation):
    """Return the entropies ``(B, G, ...)`` by their definition, in the precision of the logits."""
    if activation == "softmax":
        p = logits.softmax(1)
        return -(p * (p + 1e-300).log()).sum(1, keepdim=True)
    p = logits.sigmoid()
    return -(p * (p + 1e-300).log() + (1 - p) * (1 - p + 1e-300).log())


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("channels", [2, 3])
def test_one_step_is_that_of_the_formula(make_network, activation, channels):
    network = sharp(make_network(out_channels=channels))
    reference = copy.deepcopy(network).double().train()
    method = SAR(network, activation=activation, lr=0.1, sharpness=0.2, frozen=0.0)
    record = method.adapt(batch())
    margin = 0.4 * math.log(channels if activation == "softmax" else 2)
    names = list(method.parameters)
    parameters = [dict(reference.named_parameters())[name] for name in names]
    h = entropies(reference(batch().double()), activation)
    reliable = h < margin
    first = torch.autograd.grad(h[reliable].mean(), parameters)
    norm = sum(g.square().sum() for g in first).sqrt()
    start = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p, g in zip(parameters, first):
            p.add_(0.2 * g / norm)
    h = entropies(reference(batch().double()), activation)
    both = reliable & (h < margin)
    second = torch.autograd.grad(h[both].mean(), parameters)
    assert 0 < both.double().mean() < 1
    assert record.kept == pytest.approx(both.double().mean().item(), abs=1e-12)
    assert record.loss == pytest.approx(h[both].mean().item(), rel=1e-4)
    assert method._average == pytest.approx(h[reliable].mean().item(), rel=1e-4)
    for name, s, g in zip(names, start, second):
        torch.testing.assert_close(method.parameters[name].detach().double(), s - 0.1 * g, rtol=0, atol=2e-6)


def test_without_sharpness_and_with_a_wide_margin_it_is_entropy_minimization(make_network):
    settings = dict(activation="softmax", lr=0.1, optimizer="SGD")
    sar = SAR(make_network(), margin=1.0, sharpness=0.0, frozen=0.0, **{"activation": "sigmoid", **settings})
    tent = METHODS["tent"](make_network(), optimizer_options={"momentum": 0.9}, **settings)
    for seed in range(2):
        a, b = sar.adapt(batch(seed)), tent.adapt(batch(seed))
        assert a.loss == pytest.approx(b.loss, rel=1e-5) and a.kept == 1
    for name, p in sar.parameters.items():
        torch.testing.assert_close(p, tent.parameters[name], rtol=0, atol=1e-6)


def test_leaves_the_last_normalization_layers_and_all_else_alone(make_network):
    network = sharp(make_network())
    norms = [name for name, m in network.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    method = SAR(network, activation="sigmoid", lr=0.1, frozen=0.5)
    assert {name.rpartition(".")[0] for name in method.parameters} == set(norms[: len(norms) // 2])
    assert not method.adapt(batch()).flags
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in method.parameters), name


def test_the_first_layer_is_adapted_however_few_there_are(make_network):
    assert len(SAR(make_network(), activation="sigmoid", frozen=0.99).parameters) == 2


def test_without_reliable_voxels_no_step_is_taken_and_a_flag_says_so(make_network):
    method = SAR(make_network(), activation="sigmoid", margin=1e-6, lr=0.1)
    before = method._copy()
    record = method.adapt(batch())
    assert record.flags == ("nothing_kept", "step_skipped") and record.kept == 0 and record.learning_rate == 0
    assert all(torch.equal(p, before[name]) for name, p in method.parameters.items())
    assert not method.optimizer.state


def test_a_non_finite_image_is_flagged(make_network):
    assert SAR(make_network(), activation="sigmoid").adapt(batch() * float("nan")).flags == (
        "non_finite_loss",
        "step_skipped",
    )


def test_collapse_of_the_entropy_brings_back_the_source(make_network):
    method = SAR(sharp(make_network()), activation="sigmoid", recovery=1.0, momentum=0.0, lr=1.0, margin=1.0)
    source = method._copy()
    flags = []
    for _ in range(40):
        flags = method.adapt(batch()).flags
        if flags:
            break
    assert flags == ("recovered",)
    assert all(torch.equal(p, source[name]) for name, p in method.parameters.items())
    assert math.isinf(method._average) and not method.optimizer.state
    assert method.adapt(batch()).flags == ()


def test_no_recovery_when_it_is_switched_off_and_none_above_half_of_the_start(make_network):
    method = SAR(sharp(make_network()), activation="sigmoid", recovery=0.0, momentum=0.0, lr=1.0, margin=1.0)
    assert not any(method.adapt(batch()).flags for _ in range(40))
    method = SAR(sharp(make_network()), activation="sigmoid", recovery=1.0)
    method.adapt(batch())
    assert method._threshold == 0.5 * method._average


def test_the_threshold_is_the_papers_for_a_thousand_classes_and_follows_their_number(make_network):
    for channels, activation in ((3, "softmax"), (3, "sigmoid")):
        method = SAR(make_network(out_channels=channels), activation=activation, margin=1.0)
        method.adapt(batch())
        highest = math.log(3 if activation == "softmax" else 2)
        assert method._threshold == pytest.approx(0.029 * highest)
    assert 0.029 * math.log(1000) == pytest.approx(0.2, abs=5e-4)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_takes_any_images(make_network, dims, samples, activation):
    method = SAR(sharp(make_network(dims)), activation=activation)
    record = method.adapt(batch(0, samples, dims))
    assert not record.flags and 0 < record.kept <= 1


def test_entropy_of_the_reliable_voxels_falls_over_several_steps_on_one_scan(make_network, bundle):
    file = bundle / "sample_scans" / "nifti" / "icbm152_left.nii.gz"
    scan = torch.from_numpy(nibabel.load(file).get_fdata(dtype="float32"))[4:28, 4:28, 4:28]
    scan = scan[tuple(slice(0, s // 2 * 2) for s in scan.shape)]
    image = ((scan - scan.min()) / (scan.max() - scan.min()))[None, None]
    method = SAR(sharp(make_network(3)), activation="softmax", lr=0.02, margin=1.0, recovery=0.0)
    losses = [method.adapt(image).loss for _ in range(10)]
    assert losses[-1] < losses[0]


def test_entropy_of_each_channel_and_its_maximum():
    logits = torch.zeros(1, 3, 2, 2)
    for activation in ("sigmoid", "softmax"):
        entropy = voxel_entropy(logits, activation)
        assert entropy.shape == (1, 3 if activation == "sigmoid" else 1, 2, 2)
        torch.testing.assert_close(entropy, torch.full_like(entropy, maximal_entropy(3, activation)))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"margin": 0.0}, "margin"),
        ({"margin": 2}, "margin"),
        ({"sharpness": -1}, "sharpness"),
        ({"recovery": "0.2"}, "recovery"),
        ({"momentum": 1.5}, "momentum"),
        ({"frozen": 1.0}, "frozen"),
    ],
)
def test_wrong_settings_are_refused_by_name(make_network, settings, name):
    with pytest.raises(GrataError, match=f"^{name}: must be"):
        SAR(make_network(), **{"activation": "sigmoid", **settings})
