import math

import numpy as np
import pytest

from grata.benchmark.statistics import holm, mean_and_interval, rank_correlation, signed_rank


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1, never falling
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    corrected = holm([math.nan, 0.02, 0.03])
    assert math.isnan(corrected[0]) and corrected[1:] == pytest.approx([0.04, 0.04])
    assert holm([]) == []


def test_interval_of_a_large_sample_is_that_of_its_standard_error():
    values = np.random.default_rng(0).normal(0.8, 0.1, 400)
    mean, low, high = mean_and_interval([values])
    error = 1.96 * values.std() / 20
    assert mean == values.mean()
    assert (mean - low, high - mean) == (pytest.approx(error, rel=0.1), pytest.approx(error, rel=0.1))
    assert mean_and_interval([values]) == (mean, low, high)


def test_sites_weigh_equally_and_are_resampled_within_themselves():
    mean, low, high = mean_and_interval([np.full(100, 0.9), np.full(2, 0.5)])
    assert (mean, low, high) == pytest.approx((0.7, 0.7, 0.7))


def test_few_values():
    assert all(map(math.isnan, mean_and_interval([])))
    assert all(map(math.isnan, mean_and_interval([np.array([])])))
    mean, low, high = mean_and_interval([np.array([0.5])])
    assert mean == 0.5 and math.isnan(low) and math.isnan(high)


def test_signed_rank():
    # all eight differences on one side: p = 2/2⁸
    assert signed_rank(np.arange(1, 9) / 100) == pytest.approx(2 / 256)
    assert signed_rank(np.zeros(5)) == 1.0
    assert math.isnan(signed_rank(np.array([])))


def test_rank_correlation():
    a = np.array([0.1, 0.2, 0.3, math.nan])
    assert rank_correlation(a, a**3) == pytest.approx(1.0)
    assert rank_correlation(a, -a) == pytest.approx(-1.0)
    assert math.isnan(rank_correlation(a, np.ones(4)))
    assert math.isnan(rank_correlation(a[:2], a[:2]))
