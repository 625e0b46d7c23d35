import copy

import pytest
import torch

from grata.errors import GrataError
from grata.methods import PTBN, Source


def test_source_predicts_as_the_network_did(make_network):
    network = make_network(3)
    x = torch.rand(2, 1, 8, 8, 8)
    expected = copy.deepcopy(network).eval()(x)
    method = Source(network)
    assert method.adapt(x).flags == ()
    assert torch.equal(method.network(x), expected)


def test_ptbn_predicts_as_a_network_in_training_mode_and_learns_nothing(make_network):
    network = make_network(3)
    x = torch.rand(2, 1, 8, 8, 8)
    before = copy.deepcopy(network.state_dict())
    expected = copy.deepcopy(network).train()(x)
    method = PTBN(network)
    method.adapt(x)
    torch.testing.assert_close(method.network(x), expected)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert method.parameter_change()["l2"] == 0
    method.restore()
    network.eval()
    assert not torch.allclose(method.network(x), expected)


def test_ptbn_refuses_a_network_without_running_statistics(make_network):
    with pytest.raises(GrataError, match="InstanceNorm2d"):
        PTBN(make_network(2, "instance"))
