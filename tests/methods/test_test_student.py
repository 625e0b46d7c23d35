"""TeST against its formula."""

import copy

import pytest
import torch

from grata.errors import GrataError
from grata.methods import create


def batch(size=2, spatial_dims=2, seed=0):
    return torch.rand((size, 1, *[16] * spatial_dims), generator=torch.Generator().manual_seed(seed))


def logits_of_views(network, x):
    turned = network(x.rot90(1, (-2, -1))).rot90(-1, (-2, -1))
    return [network(x), network(x.flip(-1)).flip(-1), turned]


def activate(logits, activation):
    return logits.sigmoid() if activation == "sigmoid" else logits.softmax(1)


def cross_entropy(p, target, activation):
    """Return the cross-entropy at every voxel, for sigmoid also of every channel."""
    if activation == "sigmoid":
        return -(target * p.log() + (1 - target) * (1 - p).log())
    return -(target * p.log()).sum(1, keepdim=True)


def step(network, loss):
    network.zero_grad()
    loss.backward()
    with torch.no_grad():
        for p in network.parameters():
            p -= 0.1 * p.grad


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_two_images_teach_the_teacher_and_the_teacher_the_student(make_network, activation):
    network = make_network()
    student = copy.deepcopy(network).double().train()
    teacher = copy.deepcopy(student)
    settings = {
        "activation": activation,
        "confidence": 0.55,
        "entropy_weight": 0.3,
        "views": ["identity", "flip_w", "rot90"],
        "optimizer": "SGD",
        "lr": 0.1,
    }
    method = create("test", network, settings)
    for seed in range(2):
        record = method.adapt(batch(seed=seed))
        x = batch(seed=seed).double()
        predictions = [activate(logits, activation) for logits in logits_of_views(teacher, x)]
        mean = (sum(predictions) / 3).detach()
        step(teacher, sum(cross_entropy(p, mean, activation).mean() for p in predictions) / 3)
        with torch.no_grad():
            mean = sum(activate(logits, activation) for logits in logits_of_views(teacher, x)) / 3
        if activation == "sigmoid":
            label, sure = (mean > 0.5).double(), (mean - 0.5).abs() >= 0.05
        else:
            label = (mean == mean.amax(1, keepdim=True)).double()
            sure = mean.amax(1, keepdim=True) >= 0.55
        p = activate(student(x), activation)
        entropy = cross_entropy(p, p, activation).sum(1).mean()
        loss = cross_entropy(p, label, activation)[sure].mean() + 0.3 * entropy
        assert record.loss == pytest.approx(loss.item(), rel=1e-5)
        assert record.kept == pytest.approx(sure.double().mean().item()) and 0 < record.kept < 1
        step(student, loss)
    expected = dict(student.named_parameters())
    for name, p in method.parameters.items():
        torch.testing.assert_close(p.detach().double(), expected[name].detach(), rtol=0, atol=1e-6)
    for name, p in method.state_dict()["teacher"].items():
        torch.testing.assert_close(p.double(), dict(teacher.named_parameters())[name].detach(), rtol=0, atol=1e-6)


def test_where_nothing_is_confident_the_student_takes_no_step(make_network):
    network = make_network()
    before = copy.deepcopy(network.state_dict())
    method = create("test", network, {"activation": "softmax", "confidence": 1.0})
    record = method.adapt(batch())
    assert record.flags == ("nothing_confident", "step_skipped") and record.kept == 0 and record.learning_rate == 0
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    teacher = method.state_dict()["teacher"]
    assert any(not torch.equal(value, before[name]) for name, value in teacher.items())


def test_a_non_finite_image_changes_nothing(make_network):
    network = make_network()
    method = create("test", network, {"activation": "softmax", "confidence": 0.5})
    method.adapt(batch())
    before, teacher = copy.deepcopy(network.state_dict()), method.state_dict()["teacher"]
    record = method.adapt(batch() * float("inf"))
    assert "non_finite_teacher" in record.flags and "step_skipped" in record.flags
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(torch.equal(value, teacher[name]) for name, value in method.state_dict()["teacher"].items())


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_loss_falls_on_one_real_scan(make_network, real_scan, activation):
    method = create("test", make_network(3), {"activation": activation, "confidence": 0.5, "lr": 1e-3})
    losses = [method.adapt(real_scan).loss for _ in range(8)]
    assert losses[-1] < losses[0]


def test_buffers_and_images_are_not_touched(make_network):
    network, x = make_network(), batch()
    before = {name: value.clone() for name, value in network.named_buffers()}
    create("test", network, {"activation": "sigmoid", "confidence": 0.5}).adapt(x)
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    assert torch.equal(x, batch())


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_takes_any_images(make_network, norm, spatial_dims, size, activation):
    method = create("test", make_network(spatial_dims, norm=norm), {"activation": activation, "confidence": 0.5})
    assert method.adapt(batch(size, spatial_dims)).flags == ()


@pytest.mark.parametrize(("setting", "value"), [("teacher_steps", 0), ("confidence", 1.1), ("entropy_weight", -1)])
def test_wrong_settings_are_refused_by_name(make_network, setting, value):
    with pytest.raises(GrataError, match=setting):
        create("test", make_network(), {"activation": "sigmoid", setting: value})


@pytest.mark.parametrize("confidence", [0.0, 1.0])
def test_the_teachers_views_report_their_agreement(make_network, confidence):
    method = create("test", make_network(), {"activation": "softmax", "confidence": confidence, "steps": 2})
    record = method.adapt(batch())
    assert 0 < record.agreement <= 1
    assert all(step.agreement == record.agreement for step in record.steps)
