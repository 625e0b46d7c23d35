"""CoTTA against its formula."""

import copy

import pytest
import torch

from grata.errors import GrataError
from grata.methods import create


def batch(size=2, spatial_dims=2, seed=0):
    return torch.rand((size, 1, *[16] * spatial_dims), generator=torch.Generator().manual_seed(seed))


def probabilities(network, x, activation):
    logits = network(x)
    return logits.sigmoid() if activation == "sigmoid" else logits.softmax(1)


def cross_entropy(p, target, activation):
    if activation == "sigmoid":
        return -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    return -(target * p.log()).sum(1).mean()


def without_style(x, generator):
    return x


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("threshold", [0.0, 0.6, 1.0])
def test_two_steps_follow_the_teacher(make_network, activation, threshold):
    network = make_network()
    anchor = copy.deepcopy(network).double().train()
    student, teacher = copy.deepcopy(anchor), copy.deepcopy(anchor)
    method = create(
        "cotta",
        network,
        {
            "activation": activation,
            "threshold": threshold,
            "augmentations": 3,
            "views": ["identity", "flip_w", "rot90"],
            "strong_view": without_style,
            "momentum": 0.9,
            "restore_probability": 0.0,
            "optimizer": "SGD",
            "lr": 0.1,
        },
    )
    for seed in range(2):
        x = batch(seed=seed)
        record = method.adapt(x)
        x = x.double()
        with torch.no_grad():
            p = probabilities(anchor, x, activation)
            largest = p.amax(1, keepdim=True) if activation == "softmax" else p.maximum(1 - p)
            sure = largest >= threshold
            mean = (
                probabilities(teacher, x, activation)
                + probabilities(teacher, x.flip(-1), activation).flip(-1)
                + probabilities(teacher, x.rot90(1, (-2, -1)), activation).rot90(-1, (-2, -1))
            ) / 3
            target = torch.where(sure, probabilities(teacher, x, activation), mean)
        loss = cross_entropy(probabilities(student, x, activation), target, activation)
        assert record.loss == pytest.approx(loss.item(), rel=1e-5)
        assert record.kept == pytest.approx(sure.double().mean().item(), abs=1e-2)
        student.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p, q in zip(student.parameters(), teacher.parameters()):
                p -= 0.1 * p.grad
                q.mul_(0.9).add_(0.1 * p)
    expected = dict(student.named_parameters())
    for name, p in method.parameters.items():
        torch.testing.assert_close(p.detach().double(), expected[name].detach(), rtol=0, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(method.network(batch()).double(), teacher(batch().double()), rtol=0, atol=1e-5)


def test_the_teacher_predicts_and_the_student_stays_in_the_network(make_network):
    method = create("cotta", make_network(), {"activation": "softmax", "augmentations": 2, "momentum": 1.0, "lr": 0.1})
    x = batch()
    source = copy.deepcopy(method.given).train()
    method.adapt(x)
    student = {name: p.detach().clone() for name, p in method.parameters.items()}
    with torch.no_grad():
        torch.testing.assert_close(method.network(x), source(x))
    assert all(torch.equal(p, student[name]) for name, p in method.parameters.items())
    assert any(not torch.equal(p, q) for p, q in zip(student.values(), source.parameters()))


def test_a_confident_anchor_needs_no_augmentation(make_network):
    settings = {"activation": "sigmoid", "threshold": 0.0}
    method = create("cotta", make_network(), settings | {"strong_view": lambda x, g: pytest.fail("augmented")})
    assert method.adapt(batch()).kept == 1


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_weights_are_restored_to_the_source_at_random(make_network, probability):
    network = make_network()
    source = {name: p.detach().clone() for name, p in network.named_parameters()}
    settings = {"activation": "sigmoid", "augmentations": 2, "restore_probability": probability, "optimizer": "Adam"}
    method = create("cotta", network, settings)
    method.adapt(batch())
    same = torch.cat([(p == source[name]).flatten() for name, p in method.parameters.items()])
    # the gradient of a bias before batch normalization is only rounding, so that some may not move at all
    assert abs(same.float().mean().item() - probability) < 0.1


def test_a_step_that_is_skipped_leaves_student_and_teacher_alone(make_network):
    network = make_network()
    method = create("cotta", network, {"activation": "sigmoid", "augmentations": 2})
    method.adapt(batch())
    before, teacher = copy.deepcopy(network.state_dict()), method.state_dict()["teacher"]
    assert method.adapt(batch() * float("inf")).flags == ("non_finite_loss", "step_skipped")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(torch.equal(value, teacher[name]) for name, value in method.state_dict()["teacher"].items())


def test_buffers_are_not_touched(make_network):
    network = make_network()
    before = {name: value.clone() for name, value in network.named_buffers()}
    create("cotta", network, {"activation": "sigmoid", "augmentations": 2}).adapt(batch())
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_comes_closer_to_the_teacher_on_one_real_scan(make_network, real_scan, activation):
    settings = {"activation": activation, "augmentations": 4, "restore_probability": 0.0, "strong_view": without_style}
    method = create("cotta", make_network(3), settings)
    losses = [method.adapt(real_scan).loss for _ in range(6)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("norm", ["instance", ("group", {"num_groups": 2})])
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("size", [1, 4])
def test_any_normalization(make_network, norm, spatial_dims, size):
    method = create("cotta", make_network(spatial_dims, norm=norm), {"activation": "softmax", "augmentations": 2})
    x = batch(size, spatial_dims)
    assert method.adapt(x).flags == ()
    assert method.network(x).shape == (size, 2, *x.shape[2:])


@pytest.mark.parametrize(
    ("setting", "value"),
    [("threshold", 1.1), ("augmentations", 0), ("momentum", -0.1), ("restore_probability", 2), ("augmentations", 1.5)],
)
def test_wrong_settings_are_refused_by_name(make_network, setting, value):
    with pytest.raises(GrataError, match=setting):
        create("cotta", make_network(), {"activation": "sigmoid", setting: value})
