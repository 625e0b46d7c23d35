"""Gradients equal those of torch, also where float16 alone would lose them."""

import copy

import pytest
import torch
from torch import nn

from grata.errors import GrataError
from grata.optimization import add_gradients, cloned, gradient_of, load_optimizer


@pytest.fixture
def parameters():
    return [nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor(3.0)), nn.Parameter(torch.zeros(2))]


def loss_of(parameters):
    return (parameters[0] ** 2).sum() * parameters[1]


@pytest.mark.parametrize("half_precision", [False, True])
def test_a_gradient_for_each_parameter_and_none_where_the_loss_does_not_depend_on_it(parameters, half_precision):
    first, second, third = gradient_of(loss_of(parameters), parameters, half_precision)
    assert torch.equal(first, torch.tensor([6.0, 12.0])) and second == 5.0 and third is None
    assert all(parameter.grad is None for parameter in parameters)


@pytest.mark.parametrize("loss", [torch.tensor(1.0), nn.Parameter(torch.tensor(1.0)) * 2])
def test_a_loss_that_depends_on_no_parameter_is_refused(loss, parameters):
    with pytest.raises(GrataError, match="does not depend on any adapted parameter"):
        gradient_of(loss, parameters)


def test_a_mean_over_many_voxels_keeps_its_gradient_in_half_precision():
    parameter, voxels = nn.Parameter(torch.tensor(1.0)), 2**28

    def loss():
        # 1/voxels, the gradient at each voxel, is below the smallest number of float16
        return (parameter * torch.ones(4096)).half().float().sum() / voxels

    (plain,) = gradient_of(loss(), [parameter])
    (scaled,) = gradient_of(loss(), [parameter], half_precision=True)
    assert plain.item() == 0.0 and scaled.item() == pytest.approx(4096 / voxels)


@pytest.mark.parametrize("size", [1.0, 1e2, 1e4])
def test_a_scale_that_overflows_is_lowered_until_it_does_not(size):
    parameter = nn.Parameter(torch.tensor(1.0))
    (gradient,) = gradient_of((parameter.half() * size).float(), [parameter], half_precision=True)
    assert gradient.item() == pytest.approx(size, rel=1e-3)


def test_a_gradient_that_is_not_finite_at_any_scale_is_given_back_as_it_is():
    parameter = nn.Parameter(torch.tensor(0.0))
    (gradient,) = gradient_of(parameter.sqrt(), [parameter], half_precision=True)
    assert not torch.isfinite(gradient)


def test_none_counts_as_zero_in_a_sum():
    a, b = torch.tensor([1.0]), torch.tensor([2.0])
    assert add_gradients([a, None, a, None], [b, b, None, None]) == [torch.tensor([3.0]), b, a, None]


def stepped(kind, steps=3, **options):
    parameters = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2))]
    optimizer = kind(parameters, lr=0.1, **options)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return optimizer, parameters


OPTIMIZERS = [(torch.optim.Adam, {"amsgrad": True}), (torch.optim.SGD, {"momentum": 0.9}), (torch.optim.Adagrad, {})]


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
def test_a_copied_state_equals_a_deep_copy_and_shares_no_tensor(kind, options):
    optimizer, _ = stepped(kind, **options)
    state = optimizer.state_dict()
    found, expected = cloned(state), copy.deepcopy(state)
    assert repr(found) == repr(expected)
    tensors = [value for values in found["state"].values() for value in values.values() if torch.is_tensor(value)]
    for tensor in tensors:
        tensor.fill_(7)
    assert tensors and repr(optimizer.state_dict()) == repr(expected)


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
def test_an_optimizer_continues_from_a_state_that_stays_as_it_was(kind, options):
    optimizer, parameters = stepped(kind, **options)
    state, values = cloned(optimizer.state_dict()), [parameter.detach().clone() for parameter in parameters]
    kept = repr(state)
    other, others = stepped(kind, steps=1, **options)
    load_optimizer(other, state)
    with torch.no_grad():
        for parameter, value in zip(others, values, strict=True):
            parameter.copy_(value)
    for made, those in ((optimizer, parameters), (other, others)):
        for parameter in those:
            parameter.grad = torch.full_like(parameter, 0.3)
        made.step()
    assert all(torch.equal(a, b) for a, b in zip(parameters, others, strict=True)) and repr(state) == kept


def test_float32_moments_of_half_precision_parameters_stay_float32():
    parameter = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    moment = torch.tensor([1.0 + 2**-20, 2.0])
    state = {"state": {0: {"momentum_buffer": moment}}, "param_groups": optimizer.state_dict()["param_groups"]}
    load_optimizer(optimizer, state)
    loaded = optimizer.state[parameter]["momentum_buffer"]
    assert loaded.dtype is torch.float32 and torch.equal(loaded, moment) and loaded.data_ptr() != moment.data_ptr()
