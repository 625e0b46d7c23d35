"""A step has its own length; one that overflows leaves the optimizer as it was."""

import pytest
import torch
from torch import nn

from grata.errors import GrataError
from grata.optimization import Stepper, make_optimizer


def stepper(optimizer="Adam", lr=0.1, **options):
    parameters = {"a": nn.Parameter(torch.ones(3)), "b": nn.Parameter(torch.ones(2))}
    return Stepper(parameters, lambda named: make_optimizer(optimizer, lr, options, named)), parameters


def test_a_step_has_the_base_rate_times_its_factor():
    steps, parameters = stepper("SGD")
    assert steps.step([torch.ones(3), torch.zeros(2)], 0.5) == pytest.approx(0.05)
    assert torch.allclose(parameters["a"], torch.full((3,), 0.95)) and torch.equal(parameters["b"], torch.ones(2))
    assert steps.step([torch.ones(3), torch.zeros(2)], 1.0) == pytest.approx(0.1)
    assert parameters["a"].grad is None


def test_a_parameter_without_a_gradient_stays_weight_decay_included():
    steps, parameters = stepper("SGD", weight_decay=0.5)
    steps.step([torch.zeros(3), None], 1.0)
    assert torch.allclose(parameters["a"], torch.full((3,), 0.95)) and torch.equal(parameters["b"], torch.ones(2))


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_a_step_that_overflows_leaves_the_optimizer_as_it_was(bad):
    steps, parameters = stepper()
    steps.step([torch.ones(3), torch.ones(2)], 1.0)
    before, kept = repr(steps.state_dict()), {name: p.detach().clone() for name, p in parameters.items()}
    assert steps.step([torch.full((3,), bad), torch.ones(2)], 1.0) is None
    with torch.no_grad():
        for name, value in kept.items():
            parameters[name].copy_(value)
    assert repr(steps.state_dict()) == before
    assert steps.step([torch.ones(3), torch.ones(2)], 1.0) == pytest.approx(0.1)


def test_moments_that_overflow_count_too():
    steps, _ = stepper("Adam")
    # the square of the gradient overflows, the step itself would be finite
    assert steps.step([torch.full((3,), 1e30), torch.ones(2)], 1.0) is None


def test_another_stepper_continues_bit_for_bit_and_forgetting_starts_anew():
    steps, parameters = stepper()
    gradient = [torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.1, 0.2])]
    steps.step(gradient, 0.7)
    other, others = stepper()
    other.load_state_dict(steps.state_dict())
    with torch.no_grad():
        for name, parameter in others.items():
            parameter.copy_(parameters[name])
    for one in (steps, other):
        one.step(gradient, 1.0)
    assert all(torch.equal(parameters[name], others[name]) for name in parameters)
    steps.forget()
    assert steps.state_dict()["state"] == {}


def test_the_signature_is_that_of_the_settings_whatever_the_last_steps_length():
    steps, _ = stepper("SGD", momentum=0.9)
    before = steps.signature()
    steps.step([torch.ones(3), torch.ones(2)], 0.3)
    assert steps.signature() == before and before.startswith("SGD") and "'lr': 0.1" in before
    assert stepper("SGD", lr=0.2, momentum=0.9)[0].signature() != before


def test_a_class_is_what_its_name_is():
    (by_name, first), (by_class, second) = stepper("SGD", momentum=0.5), stepper(torch.optim.SGD, momentum=0.5)
    assert by_name.signature() == by_class.signature()
    assert by_class.step([torch.ones(3), torch.ones(2)], 0.5) == by_name.step([torch.ones(3), torch.ones(2)], 0.5)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("optimizer", "options", "key", "message"),
    [
        ("Adamm", {}, "optimizer", "torch.optim has no 'Adamm'"),
        ("Optimizer2", {}, "optimizer", "torch.optim has no"),
        (3, {}, "optimizer", "torch.optim has no 3"),
        ("lr_scheduler", {}, "optimizer", "torch.optim has no"),
        ("LBFGS", {}, "optimizer", "LBFGS does not fit"),
        ("SparseAdam", {}, "optimizer", "SparseAdam does not fit"),
        ("Adam", {"betas": 2}, "optimizer_options", "Adam refuses {'betas': 2}"),
        ("Adam", {"beta": 2}, "optimizer_options", "Adam refuses {'beta': 2}"),
        ("SGD", {"momentum": -1}, "optimizer_options", "SGD refuses {'momentum': -1}"),
        (lambda named: named, {}, "optimizer", "must be a name or make a torch.optim.Optimizer, got a list"),
    ],
)
def test_what_is_not_an_optimizer_for_single_steps_is_refused(optimizer, options, key, message):
    with pytest.raises(GrataError) as caught:
        stepper(optimizer, **options)
    assert caught.value.key == key and caught.value.message.startswith(message)


def test_a_function_can_make_groups_of_their_own_rates():
    def make(named):
        groups = [{"params": [parameter], "lr": 0.1 * (index + 1)} for index, (_, parameter) in enumerate(named)]
        return torch.optim.SGD(groups)

    steps, parameters = stepper(make)
    assert steps.step([torch.ones(3), torch.ones(2)], 0.5) == pytest.approx(0.05)
    assert torch.allclose(parameters["a"], torch.tensor(0.95)) and torch.allclose(parameters["b"], torch.tensor(0.9))
