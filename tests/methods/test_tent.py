"""TENT against its formula."""

import copy

import pytest
import torch

from grata.methods import Tent


def batch(seed=0):
    return torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_one_step_goes_down_the_gradient_of_the_mean_entropy(make_network, activation):
    network = make_network()
    reference = copy.deepcopy(network).double().train()
    method = Tent(network, activation=activation, optimizer="SGD", lr=0.1)
    record = method.adapt(batch())
    logits = reference(batch().double())
    if activation == "sigmoid":
        p = logits.sigmoid()
        loss = -(p * p.log() + (1 - p) * (1 - p).log()).sum(1).mean()
    else:
        p = logits.softmax(1)
        loss = -(p * p.log()).sum(1).mean()
    assert record.loss == pytest.approx(loss.item(), rel=1e-5)
    parameters = dict(reference.named_parameters())
    for name, adapted in method.parameters.items():
        (gradient,) = torch.autograd.grad(loss, parameters[name], retain_graph=True)
        expected = parameters[name].detach() - 0.1 * gradient
        torch.testing.assert_close(adapted.detach().double(), expected, rtol=0, atol=1e-6)


def test_entropy_falls_over_several_steps_on_one_image(make_network):
    method = Tent(make_network(), activation="sigmoid", lr=1e-2)
    losses = [method.adapt(batch()).loss for _ in range(10)]
    assert losses[-1] < losses[0]


def test_a_non_finite_step_is_skipped_and_flagged(make_network):
    method = Tent(make_network(), activation="sigmoid")
    before = {name: p.detach().clone() for name, p in method.parameters.items()}
    record = method.adapt(batch() * float("inf"))
    assert record.flags == ("non_finite_loss", "step_skipped") and record.learning_rate == 0
    assert all(torch.equal(p, before[name]) for name, p in method.parameters.items())


def test_another_process_resumes_bit_for_bit(make_network):
    method = Tent(make_network(), activation="sigmoid")
    method.adapt(batch())
    other = Tent(make_network(), activation="sigmoid")
    other.load_state_dict(method.state_dict())
    assert method.adapt(batch(1)) == other.adapt(batch(1))
    assert all(torch.equal(p, other.parameters[name]) for name, p in method.parameters.items())
