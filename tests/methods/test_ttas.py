"""TTAS against its formula."""

import copy
import math

import pytest
import torch

from grata.errors import GrataError
from grata.methods import Prepared, create
from grata.networks import network_digest
from grata.objectives.shape_moments import moment_penalty, soft_moments
from grata.preparation.moments import ShapeMoments


def batch(size=2, spatial_dims=2, seed=0):
    return torch.rand((size, 1, *[16] * spatial_dims), generator=torch.Generator().manual_seed(seed))


def prior(network, spatial_dims=2, **changes):
    values = {
        "class_sizes": torch.tensor([0.8, 0.2]),
        "centroid": torch.tensor([[0.5] * spatial_dims, [0.3] * spatial_dims]),
        "spread": torch.tensor([[0.3] * spatial_dims, [0.1] * spatial_dims]),
    }
    return Prepared(**(values | changes), images=1, network="UNet", digest=network_digest(network))


def make(network, settings=None, spatial_dims=2, activation="softmax", **changes):
    given = {"activation": activation, "prepared": prior(network, spatial_dims, **changes)}
    return create("ttas", network, given | (settings or {}))


def naive(p, activation, margin, size_weight, moment_weight):
    """Return the loss, computed by loops over images, channels and pixels."""
    tau, centroid, spread = [0.8, 0.2], [0.5, 0.3], [0.3, 0.1]
    images, channels, height, width = p.shape
    n = height * width
    entropy = divergence = penalty = 0.0
    inverse = [1 / t for t in tau]
    for b in range(images):
        for c in range(channels):
            q = p[b, c]
            s = q.sum() / n
            if activation == "softmax":
                entropy = entropy - inverse[c] / sum(inverse) * (q * q.log()).sum() / n
                divergence = divergence + s * (s / tau[c]).log()
                there = (p[b].argmax(0) == c).sum() > 10 and c > 0
            else:
                entropy = entropy - ((1 - tau[c]) * q * q.log() + tau[c] * (1 - q) * (1 - q).log()).sum() / n
                divergence = divergence + s * (s / tau[c]).log() + (1 - s) * ((1 - s) / (1 - tau[c])).log()
                there = (q > 0.5).sum() > 10
            if not there:
                continue
            for axis in range(2):
                coordinates = [[((i, j)[axis] + 0.5) / 16 for j in range(width)] for i in range(height)]
                x = torch.tensor(coordinates, dtype=torch.float64)
                m = (q * x).sum() / q.sum()
                d = ((q * (x - m) ** 2).sum() / q.sum()).sqrt()
                for value, target in ((m, centroid[c]), (d, spread[c])):
                    out = max(value.item() - target * (1 + margin), target * (1 - margin) - value.item(), 0)
                    edge = target * (1 + margin) if value.item() > target else target * (1 - margin)
                    penalty = penalty + ((value - edge) ** 2 if out > 0 else 0)
    return (entropy + size_weight * divergence + moment_weight * penalty) / images


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("adapted", ["all", "affine"])
def test_one_step_goes_down_the_gradient_of_the_formula(make_network, activation, adapted):
    network = make_network()
    reference = copy.deepcopy(network).double().train()
    settings = {"steps": 1, "optimizer": "SGD", "lr": 0.01, "optimizer_options": {}, "adapted": adapted}
    settings |= {"size_weight": 0.7, "moment_weight": 3.0, "margin": 0.05}
    method = make(network, settings, activation=activation)
    record = method.adapt(batch())
    logits = reference(batch().double())
    p = logits.sigmoid() if activation == "sigmoid" else logits.softmax(1)
    loss = naive(p, activation, 0.05, 0.7, 3.0)
    assert record.loss == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    parameters = dict(reference.named_parameters())
    assert len(method.parameters) == (len(parameters) if adapted == "all" else 4)
    for name, p in network.named_parameters():
        moved = parameters[name].grad if name in method.parameters else 0
        torch.testing.assert_close(p.detach().double(), parameters[name].detach() - 0.01 * moved, rtol=0, atol=1e-6)


def test_weight_decay_and_150_steps_are_the_defaults(make_network):
    method = make(make_network())
    (group,) = method.optimizer.param_groups
    assert (group["weight_decay"], group["lr"], method.steps, method.card.episodic) == (1e-4, 5e-4, 150, True)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_soft_moments_of_a_mask_equal_the_prepared_ones(spatial_dims):
    mask = (batch(1, spatial_dims, seed=3) > 0.7).double()
    prepared = ShapeMoments()
    prepared.add(mask)
    size, centroid, spread = soft_moments(mask)
    torch.testing.assert_close(size[0].float(), prepared.class_sizes())
    torch.testing.assert_close((centroid[0].float(), spread[0].float()), prepared.moments())


def test_moments_of_nothing_are_finite_and_have_finite_gradients():
    p = torch.zeros(1, 2, 4, 4)
    p[0, 0, 1, 1] = 1
    p.requires_grad_()
    size, centroid, spread = soft_moments(p)
    (size.sum() + centroid.sum() + spread.sum()).backward()
    assert p.grad.isfinite().all() and centroid.isfinite().all() and spread.isfinite().all()
    assert spread[0, 0].max() < 1e-4 and centroid[0, 0].tolist() == pytest.approx([0.375, 0.375])


def test_a_moment_costs_nothing_within_its_margin_nor_where_nothing_is_predicted():
    target = torch.tensor([[0.5, 0.2]])
    there = torch.ones(1, 1)
    assert moment_penalty(torch.tensor([[[0.54, 0.181]]]), target, there, 0.1) == 0
    far = torch.tensor([[[0.65, 0.1]]])
    assert moment_penalty(far, target, there, 0.1).item() == pytest.approx(0.1**2 + 0.08**2)
    assert moment_penalty(far, target, 0 * there, 0.1) == 0


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_loss_falls_on_one_real_scan(make_network, real_scan, activation):
    method = make(make_network(3), {"steps": 15}, spatial_dims=3, activation=activation)
    steps = method.adapt(real_scan).steps
    assert len(steps) == 15 and steps[-1].loss < steps[0].loss


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_takes_any_images(make_network, spatial_dims, size, activation):
    method = make(make_network(spatial_dims), {"steps": 2}, spatial_dims, activation)
    x = batch(size, spatial_dims)
    assert method.adapt(x).flags == () and torch.equal(x, batch(size, spatial_dims))


def test_missing_prepared_values_are_refused_with_the_command(make_network):
    network = make_network()
    with pytest.raises(GrataError, match="class sizes.*python -m grata prepare"):
        create("ttas", network, {"activation": "softmax"})
    with pytest.raises(GrataError, match="centroids.*python -m grata prepare"):
        make(network, centroid=None)
    assert make(network, {"moments": [], "steps": 1}, centroid=None, spread=None).adapt(batch()).flags == ()


def test_values_prepared_for_another_network_are_refused(make_network):
    given = {"activation": "softmax", "prepared": prior(make_network())}
    with pytest.raises(GrataError, match="other weights"):
        create("ttas", make_network(out_channels=3), given).adapt(batch())
    with pytest.raises(GrataError, match="3 channels"):
        make(make_network(), class_sizes=torch.tensor([0.5, 0.3, 0.2])).adapt(batch())
    with pytest.raises(GrataError, match="2D images"):
        make(make_network(), spatial_dims=3).adapt(batch())


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("adapted", "some"),
        ("moments", ["size"]),
        ("moments", "spread"),
        ("size_weight", -1),
        ("moment_weight", math.nan),
        ("margin", -0.1),
    ],
)
def test_wrong_settings_are_refused_by_name(make_network, setting, value):
    with pytest.raises(GrataError, match=setting):
        make(make_network(), {setting: value})
