"""Agreement of views against values computed by hand."""

import math

import pytest
import torch

from grata.predictions import view_agreement


def maps(*values):
    """Return a map of one sample and one channel with a pixel for each value."""
    return torch.tensor(values, dtype=torch.float32).reshape(1, 1, -1)


CASES = {
    "equal": ([maps(0.2, 0.9), maps(0.2, 0.9)], 1.0),
    "nothing in common": ([maps(1.0, 0.0), maps(0.0, 1.0)], 0.0),
    "both empty": ([maps(0.0, 0.0), maps(0.0, 0.0)], 1.0),
    "soft Dice": ([maps(0.5, 1.0), maps(1.0, 0.0)], 2 * 0.5 / (1.25 + 1.0)),
    "mean over the three pairs": ([maps(1.0), maps(1.0), maps(0.5)], (1 + 2 * (2 * 0.5 / 1.25)) / 3),
}


@pytest.mark.parametrize(("predictions", "expected"), CASES.values(), ids=CASES)
def test_agreement_is_the_mean_soft_dice_over_pairs(predictions, expected):
    assert view_agreement(predictions) == pytest.approx(expected, abs=1e-6)


def test_background_is_left_out():
    background, object_ = maps(1.0, 1.0), (maps(1.0, 0.0), maps(0.0, 1.0))
    predictions = [torch.cat([background, o], 1) for o in object_]
    assert view_agreement(predictions, background=True) == 0
    assert view_agreement(predictions) == pytest.approx(0.5)


def test_the_agreement_of_one_view_is_nan():
    assert math.isnan(view_agreement([maps(0.5)]))
