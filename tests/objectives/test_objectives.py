import math

import pytest
import torch

from grata.errors import GrataError
from grata.objectives import consistency_loss, entropy_loss
from grata.objectives.entropy import entropy_map
from grata.predictions import activate

SHAPES = [(2, 3, 4, 5), (1, 2, 3, 4, 5)]


@pytest.mark.parametrize("shape", SHAPES)
def test_entropies_equal_their_formulas(shape):
    torch.manual_seed(0)
    logits = torch.randn(shape, dtype=torch.float64) * 3
    p = 1 / (1 + torch.exp(-logits))
    torch.testing.assert_close(entropy_loss(logits, "sigmoid"), (-(p * (p + 1e-6).log()).sum(1)).mean())
    full = -(p * p.log() + (1 - p) * (1 - p).log())
    torch.testing.assert_close(entropy_loss(logits, "sigmoid", "binary"), full.sum(1).mean())
    q = torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)
    torch.testing.assert_close(entropy_loss(logits, "softmax"), (-(q * q.log()).sum(1)).mean())


def test_entropy_is_highest_for_equal_and_zero_for_certain_classes():
    even, sure = torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)
    sure[:, 1] = 200.0
    assert entropy_loss(even, "softmax").item() == pytest.approx(math.log(4), rel=1e-6)
    assert entropy_loss(even, "sigmoid", "binary").item() == pytest.approx(4 * math.log(2), rel=1e-6)
    assert entropy_loss(sure, "softmax").item() == 0
    assert entropy_map(even, "softmax").shape == (1, 2, 2)


def test_entropy_and_its_gradient_stay_finite_at_extreme_logits():
    for activation, kind in (("sigmoid", "plogp"), ("sigmoid", "binary"), ("softmax", "plogp")):
        logits = torch.tensor([[[[-1e4, 1e4, 0.0]], [[1e4, -1e4, 0.0]]]], requires_grad=True)
        entropy_loss(logits, activation, kind).backward()
        assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_consistency_equals_cross_entropy_and_is_least_at_the_pseudo_label(activation):
    torch.manual_seed(1)
    logits, target_logits = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    target = activate(target_logits, activation)
    p = activate(logits, activation)
    if activation == "sigmoid":
        expected = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    else:
        expected = -(target * p.log()).sum(1).mean()
    torch.testing.assert_close(consistency_loss(logits, target, activation), expected)
    assert consistency_loss(target_logits, target, activation) < consistency_loss(logits, target, activation)


def test_no_gradient_flows_through_the_pseudo_label():
    target = torch.rand(1, 2, 3, 3, requires_grad=True)
    consistency_loss(torch.randn(1, 2, 3, 3, requires_grad=True), target, "sigmoid").backward()
    assert target.grad is None


def test_unknown_names_are_refused():
    logits = torch.zeros(1, 2, 3)
    with pytest.raises(GrataError, match="plogp, binary"):
        entropy_loss(logits, "sigmoid", "renyi")
    with pytest.raises(GrataError, match="^entropy: binary is for activation sigmoid only"):
        entropy_loss(logits, "softmax", "binary")
