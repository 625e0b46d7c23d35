"""What nnU-Net's fingerprint says of the training images."""

import json

import pytest

from grata.nnunet.expected import difference_from_training, training_images


def image(shape, spacing):
    return {"shape_after_cropping_and_before_resampling": shape, "spacing": spacing}


def test_volumes_are_compared_by_voxels_and_extent(tmp_path):
    fingerprint = {"spacings": [[5, 0.8, 0.8], [6, 0.7, 0.7]], "shapes_after_crop": [[20, 300, 300], [24, 320, 310]]}
    (tmp_path / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    expected = training_images(tmp_path)
    assert difference_from_training(expected, image([22, 310, 310], [5.5, 0.75, 0.75])) == ""
    assert difference_from_training(expected, image([310, 22, 310], [0.75, 5.5, 0.75])) == ""
    for shape, spacing in (
        ([3, 310, 310], [5, 0.8, 0.8]),
        ([22, 310, 310], [20, 0.8, 0.8]),
        ([500, 512, 512], [1, 1, 1]),
    ):
        assert "training images" in difference_from_training(expected, image(shape, spacing))


def test_pictures_are_compared_by_their_size(tmp_path):
    fingerprint = {"spacings": [[999, 1, 1]] * 2, "shapes_after_crop": [[1, 64, 72], [1, 80, 72]]}
    (tmp_path / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    expected = training_images(tmp_path)
    for shape, flagged in (([1, 64, 64], False), ([1, 128, 200], False), ([1, 1000, 2000], True)):
        assert bool(difference_from_training(expected, image(shape, [999, 1, 1]))) is flagged


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"spacings": [["a"]], "shapes_after_crop": []}'])
def test_without_a_fingerprint_nothing_is_compared(tmp_path, content):
    if content is not None:
        (tmp_path / "dataset_fingerprint.json").write_text(content)
    assert training_images(tmp_path) == {}
    assert difference_from_training({}, image([1, 2, 3], [9, 9, 9])) == ""
