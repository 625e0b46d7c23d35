import pytest
import torch
from torch import nn

from grata.errors import GrataError
from grata.normalization import collect_affine_parameters, normalization_layers

LAYERS = [
    nn.BatchNorm1d(4),
    nn.BatchNorm2d(4),
    nn.BatchNorm3d(4),
    nn.SyncBatchNorm(4),
    nn.InstanceNorm1d(4, affine=True),
    nn.InstanceNorm2d(4, affine=True),
    nn.InstanceNorm3d(4, affine=True),
    nn.GroupNorm(2, 4),
    nn.LayerNorm(4),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_every_normalization_layer_gives_its_weight_and_bias(layer):
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sequential(layer))
    parameters = collect_affine_parameters(network)
    assert set(parameters) == {"1.0.weight", "1.0.bias"}
    assert parameters["1.0.weight"] is layer.weight
    assert set(parameters) <= set(network.state_dict())


def test_a_subclass_and_a_scripted_layer_are_found_too():
    class MyNorm(nn.BatchNorm3d):
        pass

    assert [kind for _, kind, _ in normalization_layers(nn.Sequential(MyNorm(2)))] == ["BatchNorm3d"]
    scripted = torch.jit.script(nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2)))
    assert list(collect_affine_parameters(scripted)) == ["1.weight", "1.bias"]


@pytest.mark.parametrize(
    ("network", "found"),
    [
        (nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()), "1 Conv2d"),
        (nn.Sequential(nn.InstanceNorm3d(4), nn.InstanceNorm3d(4)), "2 InstanceNorm3d without affine"),
    ],
)
def test_a_network_with_nothing_to_adapt_is_refused_naming_what_was_found(network, found):
    with pytest.raises(GrataError, match=found):
        collect_affine_parameters(network)


def test_a_parameter_that_two_layers_share_appears_once():
    network = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    network[1].weight = network[0].weight
    assert list(collect_affine_parameters(network)) == ["0.weight", "0.bias", "1.bias"]
