"""MEMO against its formula."""

import copy

import pytest
import torch

from grata.errors import GrataError
from grata.methods import create
from grata.session import Session


def batch(size=2, spatial_dims=2, seed=0):
    return torch.rand((size, 1, *[16] * spatial_dims), generator=torch.Generator().manual_seed(seed))


def drawn_shade(x, generator):
    return x * (0.5 + torch.rand(1, generator=generator).to(x))


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_one_step_goes_down_the_entropy_of_the_mean_prediction(make_network, activation):
    network = make_network()
    reference = copy.deepcopy(network).double().train()
    settings = {
        "activation": activation,
        "augmentations": 5,
        "views": ["identity", "flip_w", "rot90"],
        "strong_view": drawn_shade,
        "lr": 0.1,
    }
    method = create("memo", network, settings, seed=4)
    record = method.adapt(batch())
    generator = torch.Generator().manual_seed(4)
    x, predictions = batch().double(), []
    views = [
        (lambda t: t, lambda t: t),
        (lambda t: t.flip(-1), lambda t: t.flip(-1)),
        (lambda t: t.rot90(1, (-2, -1)), lambda t: t.rot90(-1, (-2, -1))),
    ]
    for n in range(5):
        there, back = views[n % 3]
        logits = back(reference(there(x) * (0.5 + torch.rand(1, generator=generator))))
        predictions.append(logits.sigmoid() if activation == "sigmoid" else logits.softmax(1))
    p = torch.stack(predictions).mean(0)
    entropy = -p * p.log()
    if activation == "sigmoid":
        entropy = entropy - (1 - p) * (1 - p).log()
    loss = entropy.sum(1).mean()
    assert record.loss == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    parameters = dict(reference.named_parameters())
    assert parameters.keys() == method.parameters.keys()
    for name, p in method.parameters.items():
        expected = parameters[name].detach() - 0.1 * parameters[name].grad
        torch.testing.assert_close(p.detach().double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_the_gradient_by_parts_is_that_of_the_whole(make_network, activation):
    method = create("memo", make_network(), {"activation": activation, "augmentations": 4}, seed=2)
    method._activate()
    x = batch()
    state = method.generator.get_state()
    loss = method._loss(x)
    whole = torch.autograd.grad(loss, list(method.parameters.values()))
    method.generator.set_state(state)
    value, parts = method._loss_and_gradient(x, method._loss)
    assert value == pytest.approx(loss.item(), rel=1e-6)
    for a, b in zip(parts, whole):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_no_more_than_one_augmentation_is_held_at_a_time(make_network):
    network = make_network()
    alive, most = set(), 0

    def watch(module, inputs, output):
        nonlocal most
        if output.requires_grad:
            alive.add(id(output))
            output.register_hook(lambda _, key=id(output): alive.discard(key))
            most = max(most, len(alive))

    layer = next(module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d))
    layer.register_forward_hook(watch)
    create("memo", network, {"activation": "softmax", "augmentations": 6}).adapt(batch())
    assert most == 1


def test_entropy_of_the_mean_falls_on_one_real_scan(make_network, real_scan):
    settings = {"activation": "softmax", "augmentations": 7, "strong_view": lambda x, g: x, "lr": 0.05}
    method = create("memo", make_network(3), settings)
    losses = [method.adapt(real_scan).loss for _ in range(6)]
    assert losses[-1] < losses[0]


def test_each_case_starts_from_the_source(make_network, adapt_case):
    session = Session(create("memo", make_network(), {"activation": "sigmoid", "augmentations": 3}), guard=False)
    first, second = (adapt_case(session, batch(seed=1))[0] for _ in range(2))
    assert second.loss == first.loss and second.reset and session.episodic


def test_buffers_and_images_are_not_touched(make_network):
    network, x = make_network(), batch()
    before = {name: value.clone() for name, value in network.named_buffers()}
    create("memo", network, {"activation": "sigmoid", "augmentations": 3}).adapt(x)
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    assert torch.equal(x, batch())


def test_a_confident_network_gives_a_finite_gradient(make_network):
    network = make_network()
    last = [p for name, p in network.named_parameters() if name.endswith("weight")][-1]
    with torch.no_grad():
        last.mul_(1e4)
    for activation in ("sigmoid", "softmax"):
        method = create("memo", network, {"activation": activation, "augmentations": 2})
        assert method.adapt(batch()).flags == ()
        method.restore()


def test_a_step_that_is_not_finite_is_skipped(make_network):
    method = create("memo", make_network(), {"activation": "sigmoid", "augmentations": 2})
    before = {name: p.detach().clone() for name, p in method.parameters.items()}
    assert method.adapt(batch() * float("nan")).flags == ("non_finite_loss", "step_skipped")
    assert all(torch.equal(p, before[name]) for name, p in method.parameters.items())


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("size", [1, 4])
def test_takes_any_images(make_network, norm, spatial_dims, size):
    method = create("memo", make_network(spatial_dims, norm=norm), {"activation": "softmax", "augmentations": 2})
    assert method.adapt(batch(size, spatial_dims)).flags == ()


@pytest.mark.parametrize("value", [0, 1.5, True])
def test_wrong_settings_are_refused_by_name(make_network, value):
    with pytest.raises(GrataError, match="augmentations"):
        create("memo", make_network(), {"activation": "sigmoid", "augmentations": value})
