import math

import numpy as np
import pytest
from scipy.ndimage import binary_erosion, distance_transform_edt

from grata.benchmark.metrics import calibration_error, score
from grata.bundles.regions import make_regions
from grata.errors import GrataError

SEGMENTS = [{"value": 1, "label": "Disc", "includes": [2]}, {"value": 2, "label": "Cup"}]
REGIONS = make_regions(SEGMENTS)


def square(shape, low, high):
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = 1
    return mask


def of(prediction, label, spacing=None, **options):
    regions = make_regions([{"value": 1, "label": "It"}])
    spacing = spacing or [1.0] * label.ndim
    probabilities = prediction[None].astype(np.float32)
    return score(prediction, probabilities, label, regions, spacing, **options)


def by_scipy(prediction, label, spacing):
    """Return distances from distance transforms, which MONAI 1.6 does not use."""
    surfaces = [mask & ~binary_erosion(mask) for mask in (prediction.astype(bool), label.astype(bool))]
    to_label, to_prediction = (distance_transform_edt(~surfaces[1 - i], sampling=spacing)[surfaces[i]] for i in (0, 1))
    return {
        "assd": np.concatenate([to_label, to_prediction]).mean(),
        "asd_pred_to_label": to_label.mean(),
        "hd95": max(np.percentile(to_label, 95), np.percentile(to_prediction, 95)),
    }


@pytest.mark.parametrize(("shape", "spacing"), [((40, 50), (1.0, 1.0)), ((20, 24, 18), (0.8, 1.0, 2.5))])
def test_distances_against_an_independent_computation(shape, spacing):
    generator = np.random.default_rng(0)
    grid = np.indices(shape)
    for _ in range(3):
        masks = []
        for _ in range(2):
            centre = [generator.uniform(0.35, 0.65) * n for n in shape]
            radius = generator.uniform(0.15, 0.3) * min(shape)
            masks.append((sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) < radius**2).astype(np.uint8))
        scores = of(*masks, spacing)
        for metric, value in by_scipy(*masks, spacing).items():
            assert scores[f"{metric}/It"] == pytest.approx(value, rel=1e-5), metric
        both = (masks[0] & masks[1]).sum()
        assert scores["dice/It"] == pytest.approx(2 * both / (masks[0].sum() + masks[1].sum()), rel=1e-6)


def test_a_shifted_square():
    label, prediction = square((30, 30), (5, 5), (15, 15)), square((30, 30), (5, 8), (15, 18))
    scores = of(prediction, label)
    assert scores["dice/It"] == pytest.approx(0.7)
    assert scores["hd95/It"] == 3.0
    doubled = of(prediction, label, [1.0, 2.0])
    assert doubled["hd95/It"] > scores["hd95/It"]


def test_directed_and_symmetric_distance_are_not_the_same():
    """Half of a structure was found: its surface is close to the label's, but not the other way round."""
    label, prediction = square((40, 40), (5, 5), (35, 35)), square((40, 40), (5, 5), (35, 12))
    scores = of(prediction, label)
    assert scores["asd_pred_to_label/It"] < 3 < scores["assd/It"]


@pytest.mark.parametrize(
    ("found", "real", "nan", "reference"),
    [
        (False, False, (math.nan, math.nan), (1.0, 100.0)),
        (True, False, (0.0, math.inf), (0.0, 100.0)),
        (False, True, (0.0, math.inf), (0.0, 100.0)),
    ],
)
def test_empty_masks(found, real, nan, reference):
    full, none = square((20, 20), (5, 5), (9, 9)), np.zeros((20, 20), np.uint8)
    for empty, (dice, distance) in (("nan", nan), ("reference", reference)):
        scores = of(full if found else none, full if real else none, empty=empty)
        np.testing.assert_equal(scores["dice/It"], dice)
        for metric in ("assd", "hd95", "asd_pred_to_label"):
            np.testing.assert_equal(scores[f"{metric}/It"], distance)
        np.testing.assert_equal(scores["dice/mean"], dice)


def test_regions_contain_what_they_include_and_means_leave_out_missing_structures():
    label = square((20, 20), (4, 4), (14, 14)) + square((20, 20), (6, 6), (10, 10))
    disc_alone = np.minimum(label, 1)
    probabilities = np.stack([label > 0, label > 1]).astype(np.float32)
    scores = score(label, probabilities, label, REGIONS, [1.0, 1.0])
    assert scores["dice/Disc"] == scores["dice/Cup"] == scores["dice/mean"] == 1.0
    scores = score(disc_alone, probabilities, label, REGIONS, [1.0, 1.0])
    assert (scores["dice/Disc"], scores["dice/Cup"], scores["dice/mean"]) == (1.0, 0.0, 0.5)
    scores = score(disc_alone, probabilities, disc_alone, REGIONS, [1.0, 1.0])
    assert math.isnan(scores["dice/Cup"]) and scores["dice/mean"] == 1.0
    scores = score(label, probabilities, disc_alone, REGIONS, [1.0, 1.0], scored=["Disc"])
    assert scores["dice/mean"] == 1.0 and "dice/Cup" not in scores


def test_calibration_error_by_hand():
    probability = np.array([0.05, 0.05, 0.95, 0.95, 0.95, 0.95])
    label = np.array([0, 1, 1, 1, 1, 0], bool)
    assert calibration_error(probability, label) == pytest.approx((2 * abs(0.05 - 0.5) + 4 * abs(0.95 - 0.75)) / 6)
    assert calibration_error(label.astype(float), label) == 0.0


def test_probability_of_a_region_by_channel_and_by_class():
    label = square((12, 12), (2, 2), (8, 8)) + square((12, 12), (4, 4), (6, 6))
    sigmoid = np.stack([label > 0, label > 1]).astype(np.float32)
    softmax = np.stack([label == value for value in range(3)]).astype(np.float32)
    for probabilities in (sigmoid, softmax):
        scores = score(label, probabilities, label, REGIONS, [1.0, 1.0])
        assert scores["ece/Disc"] == scores["ece/Cup"] == 0.0
    with pytest.raises(GrataError, match="1 channels"):
        score(label, sigmoid[:1], label, REGIONS, [1.0, 1.0])


def test_refused():
    with pytest.raises(GrataError, match="values 7"):
        of(square((9, 9), (1, 1), (4, 4)), 7 * square((9, 9), (1, 1), (4, 4)))
    with pytest.raises(GrataError, match="shape"):
        of(np.zeros((9, 9), np.uint8), np.zeros((9, 8), np.uint8))
    with pytest.raises(GrataError, match="not all different"):
        make_regions([{"value": 1, "label": "Kidney"}, {"value": 2, "label": "Kidney"}])
