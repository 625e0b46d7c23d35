import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from grata.errors import GrataError
from grata.report import MEAN_CLASS, case_scores, read_scores, summarise_scores, write_scores

CLASSES = {1: "anterior", 2: "posterior"}
METRICS = ("dice", "hd95", "assd")


def blobs(seed: int, shape: tuple[int, ...], threshold: float = 0.02) -> np.ndarray:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return (field > threshold).astype(np.uint8) + (field > 3 * threshold)


def reference_distances(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...]) -> tuple[float, float]:
    """Return HD95 and ASSD from distance transforms of the surfaces (MONAI uses a tree of neighbours)."""
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (a, b)]
    to_other = [
        ndimage.distance_transform_edt(~surfaces[1 - side], sampling=spacing)[surfaces[side]] for side in (0, 1)
    ]
    return max(np.percentile(d, 95) for d in to_other), float(np.concatenate(to_other).mean())


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((20, 24), (1.0, 1.0)),
        ((20, 24), (0.3, 2.5)),
        ((14, 18, 12), (1.0, 1.0, 1.0)),
        ((14, 18, 12), (0.7, 1.3, 5.0)),
    ],
)
def test_scores_agree_with_an_independent_computation(shape, spacing):
    prediction, label = blobs(0, shape), blobs(1, shape)
    for value, row in zip(CLASSES, case_scores(prediction, label, CLASSES, spacing), strict=True):
        a, b = prediction == value, label == value
        hd95, assd = reference_distances(a, b, spacing)
        assert row["class"] == CLASSES[value]
        assert row["dice"] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()), abs=1e-6)
        assert row["hd95"] == pytest.approx(hd95, rel=1e-5)
        assert row["assd"] == pytest.approx(assd, rel=1e-5)


def test_two_points_are_as_far_apart_as_the_spacing_says():
    prediction, label = np.zeros((2, 9, 9, 9), int)
    prediction[4, 4, 2] = label[4, 4, 6] = 1
    (row,) = case_scores(prediction, label, {1: "organ"}, (1.0, 1.0, 2.5))
    assert row == {"class": "organ", "dice": 0.0, "hd95": 10.0, "assd": 10.0, "unit": "mm"}


def test_scores_are_symmetric_perfect_for_equal_maps_and_blind_to_turning_the_grid():
    a, b = blobs(2, (10, 12, 14)), blobs(3, (10, 12, 14))
    spacing = (1.0, 2.0, 3.0)
    forwards = case_scores(a, b, CLASSES, spacing)
    swapped = case_scores(b, a, CLASSES, spacing)
    turned = case_scores(a.transpose(2, 0, 1)[::-1].copy(), b.transpose(2, 0, 1)[::-1].copy(), CLASSES, (3.0, 1.0, 2.0))
    for one, other in zip(forwards * 2, swapped + turned, strict=True):
        assert [one[key] for key in METRICS] == pytest.approx([other[key] for key in METRICS], rel=1e-6)
    assert [list(row.values())[1:] for row in case_scores(a, a, CLASSES, spacing)] == [[1.0, 0.0, 0.0, "mm"]] * 2


def test_distances_on_a_picture_are_in_pixels():
    prediction, label = np.zeros((2, 9, 9), int)
    prediction[4, 2] = label[4, 6] = 1
    (row,) = case_scores(prediction, label, {1: "organ"}, None)
    assert row == {"class": "organ", "dice": 0.0, "hd95": 4.0, "assd": 4.0, "unit": "px"}


def test_a_class_that_includes_others_is_scored_as_their_union():
    a, b = blobs(6, (20, 20)), blobs(7, (20, 20))
    disc, cup = case_scores(a, b, {1: "disc", 2: "cup"}, None, includes={1: (2,)})
    (union,) = case_scores(a > 0, b > 0, {1: "disc"}, None)
    assert disc == union != cup
    assert cup == case_scores(a, b, {1: "rim", 2: "cup"}, None)[1]
    # A label map may lack the part: here the cup, which belongs to the disc.
    assert case_scores(a, (a > 0).astype(int), {1: "disc", 2: "cup"}, None, includes={1: (2,)})[0]["dice"] == 1.0


@pytest.mark.parametrize("convert", [np.float32, np.uint16, np.int64, torch.as_tensor])
def test_any_kind_of_label_map_is_taken(convert):
    a, b = blobs(4, (12, 12)), blobs(5, (12, 12))
    assert case_scores(convert(a), convert(b), CLASSES, (1, 1)) == case_scores(a, b, CLASSES, (1, 1))


def test_absent_structures(recwarn):
    empty, full = np.zeros((6, 6, 6), int), np.ones((6, 6, 6), int)
    (both,) = case_scores(empty, empty, {1: "organ"}, (1, 1, 1))
    assert all(math.isnan(both[key]) for key in ("dice", "hd95", "assd"))
    for prediction, label in ((empty, full), (full, empty)):
        (row,) = case_scores(prediction, label, {1: "organ"}, (1, 1, 1))
        assert row == {"class": "organ", "dice": 0.0, "hd95": math.inf, "assd": math.inf, "unit": "mm"}
    assert not recwarn


@pytest.mark.parametrize(
    ("prediction", "label", "spacing", "message"),
    [
        (np.zeros((4, 4)), np.full((4, 4), 7), (1, 1), "The label holds the values 7,"),
        (np.array([[0.5, 3]]), np.zeros((1, 2)), (1, 1), "The segmentation holds the values 0.5, 3,"),
        (np.zeros((4, 4)), np.zeros((4, 5)), (1, 1), r"shape \(4, 5\), but the segmentation \(4, 4\)"),
        (np.zeros((4, 4)), np.zeros((4, 4)), (1, 1, 1), "spacing"),
        (np.zeros((4, 4)), np.zeros((4, 4)), (1, 0), "spacing"),
    ],
)
def test_what_cannot_be_scored_is_refused(prediction, label, spacing, message):
    with pytest.raises(GrataError, match=message):
        case_scores(prediction, label, CLASSES, spacing)


def row(case, dice, variant="source", name="organ", hd95=1.0, assd=0.5, site="A", unit="mm"):
    distances = {"hd95": hd95, "assd": assd, "unit": unit}
    return {"case": case, "site": site, "variant": variant, "class": name, "dice": dice, **distances}


def test_scores_survive_the_file(tmp_path):
    rows = [row("b, 2", 0.123456789), row("a", math.nan, hd95=math.inf, assd=math.nan, site="", unit="px")]
    path = tmp_path / "scores.csv"
    write_scores(rows, path)
    assert path.read_text() == (
        'case,site,variant,class,dice,hd95,assd,unit\n"b, 2",A,source,organ,0.123457,1.000000,0.500000,mm\n'
        "a,,source,organ,nan,inf,nan,px\n"
    )
    first, second = read_scores(path)
    assert first == row("b, 2", 0.123457)
    assert second["case"] == "a" and math.isnan(second["dice"]) and second["hd95"] == math.inf
    write_scores(read_scores(path), tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == path.read_bytes()


def test_a_failed_write_leaves_the_older_table(tmp_path):
    path = tmp_path / "scores.csv"
    write_scores([row("a", 0.5)], path)
    before = path.read_bytes()
    with pytest.raises(KeyError):
        write_scores([row("a", 0.6), {"case": "b"}], path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "text", ["", "case,dice\na,1\n", "case,site,variant,class,dice,hd95,assd,unit\na,b,c,d,high,1,1,mm\n"]
)
def test_a_file_that_is_not_a_score_table_is_refused(tmp_path, text):
    path = tmp_path / "scores.csv"
    path.write_text(text)
    with pytest.raises(GrataError, match="scores.csv"):
        read_scores(path)
    with pytest.raises(GrataError, match="missing.csv"):
        read_scores(tmp_path / "missing.csv")


def test_interval_agrees_with_a_plain_bootstrap_and_repeats():
    dice = np.random.default_rng(1).beta(8, 2, size=30)
    rows = [row(f"c{index}", value) for index, value in enumerate(dice)]
    summary = summarise_scores(rows, seed=3)[0]
    rng = np.random.default_rng(99)
    means = [rng.choice(dice, len(dice)).mean() for _ in range(10_000)]
    assert summary["dice"] == pytest.approx(dice.mean())
    assert summary["dice_low"] == pytest.approx(np.percentile(means, 2.5), abs=2e-3)
    assert summary["dice_high"] == pytest.approx(np.percentile(means, 97.5), abs=2e-3)
    assert repr(summarise_scores(rows, seed=3)) == repr(summarise_scores(rows, seed=3))
    assert summarise_scores(rows, seed=4)[0]["dice_low"] != summary["dice_low"]


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        summary = summarise_scores([row(str(case), value) for case, value in enumerate(rng.uniform(0.4, 1.0, 25))])[0]
        covered += summary["dice_low"] <= 0.7 <= summary["dice_high"]
    assert 87 <= covered <= 100


def test_interval_needs_two_cases_and_depends_on_its_own_cases_alone():
    single = summarise_scores([row("a", 0.8)])[0]
    assert single["dice"] == 0.8 and math.isnan(single["dice_low"]) and math.isnan(single["dice_high"])
    rows = [row("a", 0.8), row("b", 0.9), row("c", 0.5)]
    alone = summarise_scores(rows)[0]
    beside = summarise_scores([row("x", 0.1, site="B"), row("y", 0.2, site="B"), *rows])[2]
    assert repr(alone) == repr(beside)


def test_differences_are_taken_within_a_case():
    rows = [row("a", 0.5), row("b", 0.9), row("only", 0.7)]
    rows += [row("b", 0.95, "grata"), row("a", 0.6, "grata"), row("new", 0.1, "grata")]
    source, _, adapted, _ = summarise_scores(rows)
    assert source["pairs"] == 0 and math.isnan(source["difference"])
    assert adapted["cases"] == 3 and adapted["pairs"] == 2
    assert adapted["difference"] == pytest.approx(0.075)
    assert (adapted["difference_low"], adapted["difference_high"]) == pytest.approx((0.05, 0.1))


def test_missing_structures_in_the_means():
    nothing = {"hd95": math.nan, "assd": math.nan}
    missed = {"hd95": math.inf, "assd": math.inf}
    rows = [
        row("a", 0.8, name="disc", hd95=2.0, assd=1.0),
        row("b", 0.6, name="disc", hd95=4.0, assd=3.0),
        row("a", math.nan, name="cup", **nothing),
        row("b", 0.0, name="cup", **missed),
    ]
    disc, cup, mean = summarise_scores(rows)
    assert (disc["dice"], disc["hd95"], disc["assd"], disc["distances_left_out"]) == (pytest.approx(0.7), 3.0, 2.0, 0)
    assert (cup["cases"], cup["dice"], cup["distances_left_out"]) == (2, 0.0, 2)
    assert math.isnan(cup["hd95"]) and math.isnan(cup["assd"])
    assert mean["class"] == MEAN_CLASS
    assert (mean["dice"], mean["hd95"], mean["distances_left_out"]) == (pytest.approx((0.8 + 0.3) / 2), 2.0, 1)


def test_distances_in_different_units_are_not_averaged():
    alike = summarise_scores([row("a", 0.8, unit="px"), row("b", 0.6, unit="px", hd95=3.0)])[0]
    assert (alike["unit"], alike["hd95"], alike["distances_left_out"]) == ("px", 2.0, 0)
    mixed = summarise_scores([row("a", 0.8, unit="px"), row("b", 0.6)])[0]
    assert mixed["unit"] == "" and math.isnan(mixed["hd95"]) and mixed["distances_left_out"] == 2
    assert mixed["dice"] == pytest.approx(0.7)


def test_a_case_cannot_be_counted_twice():
    with pytest.raises(GrataError, match="Case a has two scores"):
        summarise_scores([row("a", 0.5), row("a", 0.6)])
