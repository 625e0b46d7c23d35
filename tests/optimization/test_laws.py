import math

import pytest
import torch

from grata.errors import GrataError
from grata.optimization import LAWS, cosine_similarity, gradient_norm, learning_rate_factor


def test_the_cosine_is_over_all_parameters_as_one_vector():
    a = [torch.tensor([3.0, 0.0]), torch.tensor([[0.0], [4.0]])]
    b = [torch.tensor([0.0, 1.0]), torch.tensor([[0.0], [1.0]])]
    assert gradient_norm(a) == 5.0
    assert cosine_similarity(a, b) == pytest.approx(4 / (5 * math.sqrt(2)))
    assert cosine_similarity(a, [-3 * g for g in a]) == pytest.approx(-1)
    assert cosine_similarity(a, [torch.zeros_like(g) for g in a]) == 0


def test_the_cosine_does_not_depend_on_the_length_of_the_gradients():
    torch.manual_seed(0)
    a, b = ([torch.randn(5), torch.randn(3, 2)] for _ in range(2))
    tiny = [g * 1e-12 for g in a]
    assert cosine_similarity(a, b, eps=0) == pytest.approx(cosine_similarity(tiny, b, eps=0), rel=1e-6)


@pytest.mark.parametrize(
    ("law", "at_conflict", "at_zero", "at_agreement"),
    [
        ("quadratic", 0, 0.25, 1),
        ("linear", 0, 0.5, 1),
        ("softplus", math.log(1 + math.exp(-1)), math.log(2), math.log(1 + math.e)),
        ("constant", 1, 1, 1),
    ],
)
def test_laws_at_conflict_right_angle_and_agreement(law, at_conflict, at_zero, at_agreement):
    values = [learning_rate_factor(law, c) for c in (-1.0, 0.0, 1.0)]
    assert values == pytest.approx([at_conflict, at_zero, at_agreement])


@pytest.mark.parametrize("law", LAWS)
def test_no_law_falls_as_the_gradients_agree_more(law):
    values = [learning_rate_factor(law, c / 10) for c in range(-10, 11)]
    assert all(b >= a for a, b in zip(values, values[1:]))


def test_an_unknown_law_is_refused():
    with pytest.raises(GrataError, match="quadratic"):
        learning_rate_factor("cubic", 0.0)
