"""Cleaning of label maps by what anatomy says."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from grata import GrataError
from grata.bundles import CleanRegionsd

NESTED = [{"value": 1, "label": "Disc", "includes": [2]}, {"value": 2, "label": "Cup"}]
BESIDE = [{"value": 1, "label": "Ventricle"}, {"value": 2, "label": "Myocardium"}]


def clean(picture, segments, **settings):
    """Clean a map that is written as lines of digits."""
    labels = torch.tensor([[[int(value) for value in line] for line in picture]], dtype=torch.float32)
    result = CleanRegionsd("pred", segments, **settings)({"pred": labels})["pred"]
    return ["".join(str(int(value)) for value in line) for line in result[0]]


def test_nothing_is_done_unless_asked_for():
    picture = ["10011", "00000", "01110", "01010", "01110"]
    assert clean(picture, BESIDE) == picture


def test_the_largest_component_of_each_structure_stays():
    assert clean(["10011", "00011", "22000", "22002"], BESIDE, keep_largest=True) == [
        "00011",
        "00011",
        "22000",
        "22000",
    ]


def test_of_named_structures_alone():
    picture = ["10011", "00011", "22000", "22002"]
    assert clean(picture, BESIDE, keep_largest=["Myocardium"]) == ["10011", "00011", "22000", "22000"]
    assert clean(picture, BESIDE, keep_largest="Ventricle") == ["00011", "00011", "22000", "22002"]


def test_a_cup_outside_the_disc_goes_with_its_piece_and_one_inside_becomes_disc():
    picture = ["1111100", "1221100", "1221202", "1111100", "1111100"]
    assert clean(picture, NESTED, keep_largest=True) == ["1111100", "1221100", "1221100", "1111100", "1111100"]


def test_holes_are_background_or_the_outer_structure():
    picture = ["1111111", "1222221", "1210121", "1222221", "1111011", "1111111"]
    assert clean(picture, NESTED, fill_holes=True) == [
        "1111111",
        "1222221",
        "1222221",
        "1222221",
        "1111111",
        "1111111",
    ]
    # What opens to the outside is no hole.
    assert clean(["111", "101", "101"], NESTED, fill_holes=True) == ["111", "101", "101"]


def test_what_lies_in_a_hole_and_is_left_out_is_filled_too():
    picture = ["1111111", "1000001", "1022001", "1000001", "1111111", "1111111"]
    assert clean(picture, NESTED, keep_largest=True, fill_holes=True) == [
        "1111111",
        "1111111",
        "1122111",
        *["1111111"] * 3,
    ]
    assert clean(picture, NESTED, keep_largest=["Disc"], fill_holes=["Disc"])[1] == "1111111"


def test_a_ring_does_not_fill_what_it_encloses():
    picture = ["22222", "21112", "21012", "21112", "22222"]
    assert clean(picture, BESIDE, fill_holes=True) == ["22222", "21112", "21112", "21112", "22222"]
    assert clean(picture, BESIDE, fill_holes=["Myocardium"]) == picture


def test_small_components_are_left_out():
    picture = ["10110", "00000", "01111", "00000"]
    assert clean(picture, BESIDE, smallest=2) == ["00110", "00000", "01111", "00000"]
    assert clean(picture, BESIDE, smallest=5) == ["00000"] * 4


def test_a_volume_against_an_independent_computation():
    generator = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(generator.normal(size=(24, 20, 8)), 1.5)
    labels = np.where(smooth > 0.02, 1, np.where(smooth < -0.03, 2, 0)).astype(np.uint8)
    affine = np.diag([1.5, 1.5, 8, 1.0])
    item = {"pred": MetaTensor(labels[None], affine=affine)}
    found = CleanRegionsd("pred", BESIDE, keep_largest=True, smallest=3)(item)["pred"]
    expected = np.zeros_like(labels)
    for value in (1, 2):
        parts, count = ndimage.label(labels == value, structure=np.ones((3, 3, 3)))
        sizes = ndimage.sum_labels(labels == value, parts, range(1, count + 1))
        expected[parts == 1 + int(np.argmax(sizes))] = value
    assert np.array_equal(found[0].numpy(), expected)
    assert isinstance(found, MetaTensor) and np.allclose(found.affine, affine)
    assert found.dtype == item["pred"].dtype and np.array_equal(item["pred"][0].numpy(), labels)


def test_an_empty_map_and_a_missing_key():
    empty = {"pred": torch.zeros(1, 4, 4)}
    transform = CleanRegionsd(["pred", "source_pred"], NESTED, True, True, 3, allow_missing_keys=True)
    cleaned = transform(empty)
    assert not cleaned["pred"].any() and cleaned.keys() == {"pred"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_largest": ["Cub"]}, "keep_largest: there is no segment 'Cub'; there are Disc, Cup."),
        ({"fill_holes": 3}, "fill_holes: must be true, false or a list of segments, got 3."),
        ({"smallest": -1}, "smallest: "),
    ],
)
def test_refused(settings, message):
    with pytest.raises(GrataError) as caught:
        CleanRegionsd("pred", NESTED, **settings)
    assert str(caught.value).startswith(message)
