"""Named weights are copied, written, moved and compared, and come back to the last bit."""

import hashlib

import pytest
import torch
from torch import nn

from grata.errors import GrataError
from grata.networks.parameters import (
    collect_all_parameters,
    copied,
    digest,
    distance,
    in_place,
    moved,
    network_digest,
    shapes,
    write,
)


@pytest.fixture
def network():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))
    made.register_parameter("steps", nn.Parameter(torch.tensor(3), requires_grad=False))
    made.branches = nn.ModuleDict({"rotation": nn.Linear(3, 4)})
    return made


@pytest.fixture
def parameters(network):
    return collect_all_parameters(network)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_floating_point_parameters_outside_the_branches_are_collected(parameters):
    assert list(parameters) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert shapes(parameters) == {"0.weight": (3, 1, 3, 3), "0.bias": (3,), "1.weight": (3,), "1.bias": (3,)}


def test_a_network_without_parameters_is_refused():
    with pytest.raises(GrataError, match="ReLU has no parameters to adapt"):
        collect_all_parameters(nn.ReLU())


def test_a_copy_shares_nothing_and_is_in_no_graph(parameters):
    copies = copied(parameters)
    assert equal(copies, parameters) and not any(copy.requires_grad for copy in copies.values())
    with torch.no_grad():
        parameters["1.bias"].add_(1)
    assert torch.equal(copies["1.bias"], torch.zeros(3))


def test_values_are_written_in_place(parameters):
    places = {name: parameter.data_ptr() for name, parameter in parameters.items()}
    values = {name: torch.rand_like(parameter) for name, parameter in parameters.items()}
    write(parameters, values)
    assert equal(values, parameters) and places == {name: p.data_ptr() for name, p in parameters.items()}


@pytest.mark.parametrize("fails", [False, True])
def test_values_are_in_place_for_a_block_and_then_exactly_those_before(parameters, fails):
    before, values = copied(parameters), {name: torch.rand_like(p) for name, p in parameters.items()}
    try:
        with in_place(parameters, values):
            assert equal(values, parameters)
            with torch.no_grad():
                parameters["1.bias"].add_(7)
            if fails:
                raise ValueError
    except ValueError:
        assert fails
    assert equal(before, parameters)


@pytest.mark.parametrize("fails", [False, True])
def test_a_move_along_a_direction_ends_exactly_where_it_began(parameters, fails):
    before = copied(parameters)
    # added and subtracted again, 1/3 would leave a rounding error
    direction = [None, *(torch.full_like(p, 1 / 3) for p in list(parameters.values())[1:])]
    try:
        with moved(parameters, direction, -0.7):
            assert torch.equal(parameters["0.weight"], before["0.weight"])
            for name in ("0.bias", "1.weight", "1.bias"):
                assert torch.allclose(parameters[name], before[name] - 0.7 / 3) and not equal(before, parameters)
            if fails:
                raise ValueError
    except ValueError:
        assert fails
    assert equal(before, parameters)


def test_a_direction_of_another_length_is_refused_and_changes_nothing(parameters):
    before = copied(parameters)
    with pytest.raises(ValueError), moved(parameters, [torch.ones(3, 1, 3, 3)], 1.0):
        pass
    assert equal(before, parameters)


def test_the_distance_is_that_of_all_values_as_one_vector(parameters):
    source = copied(parameters)
    write(parameters, {name: value + torch.randn(value.shape) for name, value in source.items()})
    a, b = (torch.cat([v.detach().flatten().double() for v in w.values()]) for w in (parameters, source))
    found = distance(parameters, source)
    assert found["l2"] == pytest.approx(float((a - b).norm()))
    assert found["relative"] == pytest.approx(float((a - b).norm() / b.norm()))
    assert distance(source, source) == {"l2": 0.0, "relative": 0.0}


def test_the_distance_from_a_source_of_zeros_is_finite():
    assert distance({"a": torch.ones(4)}, {"a": torch.zeros(4)})["l2"] == 2.0
    assert distance({"a": torch.zeros(4)}, {"a": torch.zeros(4)}) == {"l2": 0.0, "relative": 0.0}


def test_the_digest_is_the_one_that_states_on_disk_hold():
    weights = {"a": torch.tensor([1.0, -0.0]), "b": torch.tensor([[2]], dtype=torch.int64)}
    expected = hashlib.sha256(b"a\x00\x00\x80?\x00\x00\x00\x80" + b"b\x02" + 7 * b"\x00").hexdigest()
    assert digest(weights) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_digest_knows_each_bit_and_name_but_not_the_layout(dtype):
    weights = {"a": torch.rand(2, 3, 4, 5).to(dtype), "b": torch.rand(3).to(dtype)}
    same = {"a": weights["a"].to(memory_format=torch.channels_last), "b": nn.Parameter(weights["b"].clone())}
    assert digest(same) == digest(weights)
    changed = copied(weights)
    changed["b"].view(torch.uint8)[0] ^= 1
    others = [changed, {"a": weights["a"], "c": weights["b"]}, dict(reversed(weights.items()))]
    assert len({digest(w) for w in (weights, *others)}) == 4


def test_running_statistics_are_weights_but_counters_are_not(make_network):
    made = make_network().eval()
    digest = network_digest(made)
    for name, buffer in made.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.add_(1)
    assert network_digest(made) == digest
    next(buffer for name, buffer in made.named_buffers() if name.endswith("running_mean")).add_(1)
    assert network_digest(made) != digest


def test_neither_order_nor_memory_format_changes_a_digest(make_network):
    made = make_network().eval()
    digest = network_digest(made)
    assert network_digest(made.to(memory_format=torch.channels_last)) == digest
    reordered = torch.nn.Module()
    reordered.state_dict = lambda: dict(reversed(made.state_dict().items()))
    assert network_digest(reordered) == digest


def test_a_tensor_of_another_name_or_shape_changes_a_digest():
    a, b = torch.nn.Linear(2, 3, bias=False), torch.nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        a.weight.copy_(torch.arange(6).view(3, 2))
        b.weight.copy_(torch.arange(6).view(2, 3))
    assert len({network_digest(n) for n in (a, b, torch.nn.Sequential(a))}) == 3
