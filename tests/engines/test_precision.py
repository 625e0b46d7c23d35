"""Prediction under autocast."""

import pytest
import torch

from grata.engines import AutocastInferer
from grata.errors import GrataError


def test_the_network_computes_in_the_dtype_and_gives_float32(make_network):
    network, seen = make_network().eval(), []
    network.register_forward_hook(lambda module, x, y: seen.append(y.dtype))
    x = torch.rand(1, 1, 16, 16)
    with torch.no_grad():
        half, full = AutocastInferer("bfloat16")(x, network), AutocastInferer(None)(x, network)
    assert seen == [torch.bfloat16, torch.float32]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0.05, atol=0.05)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(GrataError, match="inferer#dtype: .*bfloat16"):
        AutocastInferer("int8")
