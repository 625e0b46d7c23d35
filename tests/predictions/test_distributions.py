"""Distributions, divergences, entropies and confidence equal torch's own distributions, for both activations."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Categorical
from torch.distributions import kl_divergence as expected_divergence

from grata.errors import GrataError
from grata.predictions import (
    NothingKept,
    kept_mean,
    kept_share,
    kl_divergence,
    log_distributions,
    logits_of,
    maximal_entropy,
    symmetric_divergence,
    voxel_entropy,
)
from grata.predictions.probabilities import confidence

SHAPES = [(2, 3, 4, 5), (1, 2, 3, 4, 5), (2, 1, 6, 7)]
ACTIVATIONS = ["softmax", "sigmoid"]


def logits(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def distribution(x, activation):
    return Categorical(logits=x.movedim(1, -1)) if activation == "softmax" else Bernoulli(logits=x)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_log_probabilities_sum_to_one_over_the_outcomes(shape, activation):
    log_p = log_distributions(logits(shape), activation)
    groups = 1 if activation == "softmax" else shape[1]
    assert log_p.shape == (shape[0], groups, shape[1] if activation == "softmax" else 2, *shape[2:])
    assert torch.allclose(log_p.exp().sum(2), torch.ones(()).double())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_divergence_and_entropy(shape, activation):
    x, y = logits(shape), logits(shape, 1)
    p, q = distribution(x, activation), distribution(y, activation)
    there, back = expected_divergence(p, q), expected_divergence(q, p)
    entropy = p.entropy()
    if activation == "softmax":
        there, back, entropy = there[:, None], back[:, None], entropy[:, None]
    found = kl_divergence(log_distributions(x, activation), log_distributions(y, activation))
    assert torch.allclose(found, there) and found.min() >= -1e-12
    assert torch.allclose(voxel_entropy(x, activation), entropy)
    assert voxel_entropy(x, activation).max() <= maximal_entropy(shape[1], activation) + 1e-12
    values = [z.softmax(1) if activation == "softmax" else z.sigmoid() for z in (x, y)]
    assert torch.allclose(symmetric_divergence(*values, activation), 0.5 * (there + back).sum(1), atol=1e-9)


@pytest.mark.parametrize(
    ("channels", "activation", "value"), [(5, "softmax", math.log(5)), (5, "sigmoid", math.log(2))]
)
def test_the_highest_entropy_is_that_of_a_uniform_distribution(channels, activation, value):
    assert maximal_entropy(channels, activation) == value
    assert voxel_entropy(torch.zeros(1, channels, 2), activation).max().item() == pytest.approx(value)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("size", [50.0, 1e4])
def test_certain_predictions_give_finite_values(activation, size):
    x = torch.tensor([[[size, -size], [-size, size]]])
    p = x.softmax(1) if activation == "softmax" else x.sigmoid()
    assert torch.isfinite(symmetric_divergence(p, p.flip(1), activation)).all()
    assert torch.isfinite(logits_of(p, activation)).all()


def test_an_unknown_activation_is_refused():
    with pytest.raises(GrataError, match="^activation: must be one of sigmoid, softmax, got 'tanh'"):
        log_distributions(torch.zeros(1, 2, 3), "tanh")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_logits_of_probabilities_lead_back_to_them(shape, activation):
    x = logits(shape)
    p = x.softmax(1) if activation == "softmax" else x.sigmoid()
    again = logits_of(p, activation)
    assert torch.allclose(again.softmax(1) if activation == "softmax" else again.sigmoid(), p)


def test_confidence_is_that_of_the_decision():
    p = torch.tensor([[[0.2, 0.5], [0.3, 0.5], [0.5, 0.0]]])
    assert torch.equal(confidence(p, "softmax"), torch.tensor([[[0.5, 0.5]]]))
    assert torch.equal(confidence(p, "sigmoid"), torch.tensor([[[0.8, 0.5], [0.7, 0.5], [0.5, 1.0]]]))


def test_the_mean_of_what_a_filter_keeps():
    values = torch.tensor([1.0, torch.nan, 3.0, torch.inf], requires_grad=True)
    kept = torch.tensor([True, False, True, False])
    mean = kept_mean(values, kept)
    mean.backward()
    assert mean.item() == 2.0 and values.grad.tolist() == [0.5, 0.0, 0.5, 0.0] and kept_share(kept) == 0.5
    with pytest.raises(NothingKept):
        kept_share(torch.zeros(3, dtype=torch.bool))
