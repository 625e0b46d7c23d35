"""From signals to a verdict: each rule alone, and which prediction is used."""

import dataclasses
import math

import pytest
import torch

from grata.quality import (
    Expected,
    Judgement,
    Measures,
    Thresholds,
    decide,
    image_features,
    thumbnail,
    verdict_in_words,
    worst,
)

SHAPE = {"components": [1.0], "largest": [1.0], "holes": [0.0], "border": [0.0], "centre_0": [0.5], "centre_1": [0.5]}


def signals(voxels=100.0, self_dice=0.95, share=0.1):
    return {"voxels": [voxels], "self_dice": [self_dice], "confidence": [0.9], "share": [share], **SHAPE}


def measures(adapted=None, source=None, agreement=0.9, views=math.nan, distances=(0.5,)):
    return Measures(
        segments=("organ",),
        adapted=adapted or signals(),
        source=source or signals(),
        agreement_source=[agreement],
        agreement_views=views,
        compactness=0.1,
        distances=list(distances),
        image={},
        thumbnail=[],
    )


def of(*args, adapts=True, **kwargs):
    return decide(measures(*args, **kwargs), Thresholds(), adapts=adapts)


def test_what_nothing_speaks_against_is_used():
    found = of()
    assert (found.used, found.verdict, found.reasons, found.harmful) == ("adapted", "ok", (), False)


HARM = {
    "less sure": ({"adapted": signals(self_dice=0.90)}, "organ it is less sure than the source network"),
    "views disagree": ({"views": 0.7}, "mirrored or turned views of the image disagree"),
    "three times as large": ({"adapted": signals(voxels=301)}, "organ has 3.0 times the size"),
    "a third": ({"adapted": signals(voxels=33)}, "organ has 0.3 times the size"),
    "gone": ({"adapted": signals(voxels=0)}, "organ is gone, though the source network is sure of it"),
    "elsewhere": ({"agreement": 0.49, "views": 0.98}, "organ has a Dice of 0.49 with the source prediction"),
    "from nothing": ({"source": signals(voxels=0)}, "where the source network outlines nothing"),
}


@pytest.mark.parametrize("harm", HARM)
def test_where_adaptation_harms_the_source_is_used(harm):
    given, reason = HARM[harm]
    found = of(**given)
    assert found.used == "source" and found.harmful and any(reason in text for text in found.reasons)
    # a little less sureness does not show that the network does not bear adaptation
    assert found.grave is (harm != "less sure") and not found.keeps
    # where both are the same for all purposes, and where nothing was adapted, there is no harm
    for same in (of(**given | {"agreement": 0.997}), of(**given, adapts=False)):
        assert same.used == "adapted" and not same.harmful and same.keeps


@pytest.mark.parametrize(
    ("views", "agreement", "used"), [(0.89, 0.79, "source"), (0.9, 0.79, "adapted"), (0.89, 0.8, "adapted")]
)
def test_a_large_change_needs_views_that_agree_well(views, agreement, used):
    found = of(views=views, agreement=agreement)
    assert found.used == used and found.grave is (used == "source")
    assert used == "adapted" or "changes the prediction much" in found.reasons[0]
    # of a network that is known, what is expected decides
    assert decide(measures(views=views, agreement=agreement), Thresholds(), Known(0.9, 0.9)).used == "adapted"


@pytest.mark.parametrize(
    ("views", "agreement", "used"),
    [
        (0.99, 0.79, "source"),
        (math.nan, 0.79, "source"),
        (0.89, 0.95, "source"),
        (0.9, 0.8, "adapted"),
        (math.nan, 0.8, "adapted"),
    ],
)
def test_of_a_network_that_was_just_harmed_little_is_trusted(views, agreement, used):
    found = decide(measures(views=views, agreement=agreement), Thresholds(), suspect=True)
    assert found.used == used and found.grave is (used == "source" and agreement < 0.8)
    assert used == "adapted" or "it has just harmed another image" in found.reasons[0]
    # of a network that is known, what is expected decides
    known = decide(measures(views=views, agreement=agreement), Thresholds(), Known(0.9, 0.9), suspect=True)
    assert known.used == "adapted"


def test_a_source_that_is_not_sure_itself_may_be_changed_much():
    unsure = signals(self_dice=0.79)
    assert of(signals(voxels=500), unsure).used == "adapted"
    assert of(signals(voxels=500), signals(self_dice=0.81)).used == "source"
    assert of(source=unsure, agreement=0.3, views=0.98).used == "adapted"
    assert of(agreement=0.5, views=0.98).used == "adapted"


def test_a_prediction_that_was_not_compared_with_views_is_not_held_against_it():
    assert of(views=math.nan).used == "adapted" and of(views=0.75).used == "adapted"


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ({"adapted": signals(self_dice=0.74), "source": signals(self_dice=0.7)}, "review"),
        ({"adapted": signals(voxels=0), "source": signals(voxels=0)}, "review"),
        ({"distances": [8.1]}, "reject"),
        ({"distances": [16.0, 0.1]}, "reject"),
        ({"distances": [7.9]}, "ok"),
        ({"distances": []}, "ok"),
    ],
)
def test_what_is_reviewed_and_what_is_rejected(given, verdict):
    found = of(**given)
    assert found.verdict == verdict and bool(found.reasons) is (verdict != "ok")
    assert found.used == ("neither" if verdict == "reject" else "adapted")


class Known:
    """A calibration that expects what it is told."""

    typical, ranges, least_gain = 0.9, ((0.05, 0.2),), -0.01

    def __init__(self, adapted, source=0.9, familiarity=1.0):
        self.adapted, self.source, self.familiarity = adapted, source, familiarity

    def expected(self, measures, source=False):
        dice = self.source if source else self.adapted
        return Expected(dice, dice - 0.1, dice + 0.1, [dice], ["image/mean_0"], self.familiarity)


@pytest.mark.parametrize(
    ("adapted", "source", "used", "verdict"),
    [
        (0.90, 0.90, "adapted", "ok"),
        (0.885, 0.89, "adapted", "ok"),
        (0.85, 0.89, "source", "ok"),
        (0.80, 0.90, "source", "ok"),
        (0.615, 0.62, "adapted", "review"),
        (0.50, 0.62, "source", "review"),
        (0.40, 0.40, "neither", "reject"),
        (0.20, 0.44, "neither", "reject"),
        (0.20, 0.90, "source", "ok"),
    ],
)
def test_of_a_network_that_is_known_the_better_expectation_counts(adapted, source, used, verdict):
    found = decide(measures(), Thresholds(), Known(adapted, source))
    assert (found.used, found.verdict) == (used, verdict)
    assert found.expected.dice == (source if found.harmful else adapted)
    assert found.harmful is (source - adapted > 0.01)


@pytest.mark.parametrize(("adapted", "used"), [(0.93, "adapted"), (0.91, "source"), (0.9, "source"), (0.85, "source")])
def test_a_gain_counts_from_what_was_a_gain_on_source_images(adapted, used):
    known = Known(adapted)
    known.least_gain = 0.02
    found = decide(measures(), Thresholds(), known)
    assert found.used == used and not found.grave
    assert used == "adapted" or ("too little to be relied on" in found.reasons[0]) == (adapted >= 0.9)


@pytest.mark.parametrize(
    ("adapted", "source", "used"), [(0.6, 0.5, "adapted"), (0.5, 0.5, "adapted"), (0.5, 0.52, "source")]
)
def test_what_adaptation_finds_and_the_source_misses_goes_by_the_expected_dice(adapted, source, used):
    for theirs, mine in ((0, 100), (10, 100), (100, 10)):
        given = measures(signals(voxels=mine), signals(voxels=theirs))
        assert decide(given, Thresholds(), Known(adapted, source)).used == used
        assert decide(given, Thresholds()).used == "source"
    # but not where mirrored images tell another story
    assert decide(measures(views=0.7), Thresholds(), Known(0.9, 0.5)).used == "source"


def test_what_is_strange_is_named_where_it_counts():
    found = decide(measures(), Thresholds(), Known(0.5, 0.5, familiarity=0.6))
    assert "least like the source images: image/mean_0" in found.reasons[0]
    assert "least like" not in decide(measures(), Thresholds(), Known(0.5, 0.5)).reasons[0]


@pytest.mark.parametrize(("share", "verdict"), [(0.024, "review"), (0.026, "ok"), (0.39, "ok"), (0.41, "review")])
def test_a_segment_larger_or_smaller_than_in_any_source_image_is_reviewed(share, verdict):
    found = decide(measures(adapted=signals(share=share)), Thresholds(), Known(0.9))
    assert found.verdict == verdict and all("organ fills" in reason for reason in found.reasons)


@pytest.mark.parametrize("adapts", [True, False])
@pytest.mark.parametrize("calibration", [None, Known(0.9)], ids=["unknown", "known"])
@pytest.mark.parametrize(("share", "verdict"), [(0.049, "review"), (0.05, "ok"), (0.2, "ok"), (0.21, "review")])
def test_a_segment_outside_of_a_given_range_is_reviewed(share, verdict, calibration, adapts):
    """The range that was given counts as it is, also where the source images have another one."""
    given = measures(adapted=signals(share=share), source=signals(share=share))
    found = decide(given, Thresholds(), calibration, adapts, ranges=[(0.05, 0.2)])
    assert found.verdict == verdict
    assert verdict == "ok" or any("5 to 20 % plausible" in reason for reason in found.reasons)


def test_ratio_and_distance_of_measures():
    assert measures(signals(voxels=50)).ratios == [0.5]
    assert measures(source=signals(voxels=0)).ratios == [math.inf]
    assert measures(signals(voxels=0), signals(voxels=0)).ratios == [1.0]
    assert measures(distances=[1, 2]).distance == 1.5 and math.isnan(measures(distances=[]).distance)


def test_a_judgement_is_plain_values_and_comes_back_from_them():
    found = Judgement("reject", "neither", ("a", "b"), {"expected_dice": 0.25}, True)
    assert Judgement.of(found.as_dict()) == dataclasses.replace(found)
    assert verdict_in_words(found) == "verdict reject, expected Dice 0.25"
    assert verdict_in_words(Judgement("ok", "source")) == "verdict ok, source prediction"
    assert [worst(list(v)) for v in ((), ("ok", "review"), ("reject", "ok"), ("unjudged", "ok"))] == [
        "unjudged", "review", "reject", "ok",
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [(1, 20, 24), (3, 20, 24), (1, 12, 14, 16), (1, 1, 9)], ids=str)
def test_what_an_image_looks_like(shape):
    x = torch.rand(*shape, generator=torch.Generator().manual_seed(0))
    found = image_features(x)
    plain = x.double().flatten(1)
    for number, channel in enumerate(plain):
        assert found[f"mean_{number}"] == pytest.approx(channel.mean().item(), rel=1e-5)
        assert found[f"std_{number}"] == pytest.approx(channel.std().log().item(), abs=1e-4)
    assert ("colour" in found) is (shape[0] > 1)
    for constant in (torch.zeros(shape), torch.ones(shape)):
        assert all(map(math.isfinite, image_features(constant).values()))
    # how bright and how strong an image is does not change where bright and dark lie in it
    small = thumbnail(x)
    torch.testing.assert_close(thumbnail(3 * x + 7), small, atol=1e-3, rtol=1e-3)
    assert small.mean().item() == pytest.approx(0, abs=1e-5)
