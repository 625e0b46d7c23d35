"""ResUNet's decoder without gradients, compared with the plain one."""

import copy

import pytest
import torch
from torch import nn

from grata.errors import GrataError
from grata.methods import GraTa
from grata.networks import ResUNet
from grata.normalization import BatchStatistics, channel_affine


@pytest.fixture(scope="module")
def network():
    """Make a network in channels last whose normalization layers differ from their start values."""
    torch.manual_seed(0)
    network = ResUNet(out_channels=3, depth=18).eval().to(memory_format=torch.channels_last)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return network


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (2, 3, 96, 64)])
@pytest.mark.parametrize("mix", [None, 1.0, 0.5, 0.0])
def test_logits_are_those_of_the_plain_decoder(network, mix, shape):
    network = copy.deepcopy(network)
    if mix is not None:
        BatchStatistics(network, mix).attach()
    x = torch.rand(shape)
    plain = network(x).detach()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with torch.no_grad():
        folded = network(x)
    assert folded.shape == plain.shape
    assert not torch.equal(folded, plain)  # The computation is another one.
    torch.testing.assert_close(folded, plain, rtol=1e-4, atol=2e-5)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_a_network_in_training_updates_its_statistics_as_ever(network):
    twins = [copy.deepcopy(network).train() for _ in range(2)]
    x = torch.rand(2, 3, 64, 64)
    plain = twins[0](x).detach()
    with torch.no_grad():
        torch.testing.assert_close(twins[1](x), plain, rtol=1e-4, atol=2e-5)
    for (name, a), b in zip(twins[0].state_dict().items(), twins[1].state_dict().values()):
        torch.testing.assert_close(a, b, msg=name)


@pytest.mark.parametrize("layer", ["decoder.1.norm", "decoder.1"])
def test_a_hook_in_the_decoder_is_still_called(network, layer):
    network, seen = copy.deepcopy(network), []
    network.get_submodule(layer).register_forward_hook(lambda module, x, y: seen.append(y.shape))
    with torch.no_grad():
        network(torch.rand(1, 3, 64, 64))
    assert seen == [(1, 256, 8, 8)]


def test_channel_affine_is_what_the_layer_does(network):
    layer, x = copy.deepcopy(network.decoder[0].norm), torch.randn(2, 256, 4, 4) * 3
    scale, shift = channel_affine(layer, x)
    torch.testing.assert_close(x * scale[:, None, None] + shift[:, None, None], layer(x))
    assert channel_affine(layer.train(), x) is None
    assert channel_affine(nn.InstanceNorm2d(256), x) is None


def test_a_step_is_the_same_in_both_memory_formats():
    torch.manual_seed(0)
    network = ResUNet(out_channels=2, depth=18).eval()
    x = torch.rand(1, 3, 128, 128)
    outcomes = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        twin = copy.deepcopy(network).to(memory_format=memory_format)
        method = GraTa(twin, activation="sigmoid", lr=1e-4)
        record = method.adapt(x)
        with torch.no_grad():
            outcomes.append((record, twin(x).sigmoid()))
    (plain, expected), (fast, found) = outcomes
    assert fast.auxiliary_loss == pytest.approx(plain.auxiliary_loss, rel=1e-5)
    assert fast.loss == pytest.approx(plain.loss, rel=1e-4)
    assert fast.cosine == pytest.approx(plain.cosine, abs=2e-3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("shape", [(63, 65), (100, 90), (33, 64), (31, 32), (0, 64)])
def test_a_size_that_the_network_does_not_take_is_refused_with_and_without_gradients(network, shape):
    x = torch.rand(1, 3, *shape).to(memory_format=torch.channels_last)
    with pytest.raises(GrataError, match=f"multiples of 32, got {shape[0]}×{shape[1]}"):
        network(x)
    with torch.no_grad(), pytest.raises(GrataError, match="multiples of 32"):
        network(x)
