"""The meaning of a network's output is read from the bundle's own transforms."""

import pytest
from monai.apps.pathology.transforms.post.dictionary import HoVerNetInstanceMapPostProcessingd
from monai.transforms import (
    Activations,
    Activationsd,
    AsDiscreted,
    Compose,
    EnsureTyped,
    Lambdad,
    NormalizeIntensityd,
    ScaleIntensityd,
    ScaleIntensityRanged,
)

from grata.bundles import find_head, is_unit_range


@pytest.mark.parametrize(
    ("transforms", "activation"),
    [
        ([Activationsd("pred", softmax=True), AsDiscreted("pred", argmax=True)], "softmax"),
        ([EnsureTyped("pred"), Activationsd("pred", sigmoid=True), AsDiscreted("pred", threshold=0.5)], "sigmoid"),
        # Each key has its own activation.
        ([Activationsd(["label", "pred"], sigmoid=[False, True], softmax=[True, False])], "sigmoid"),
        ([Compose([Compose([Activationsd("pred", sigmoid=True)])])], "sigmoid"),
        ([Activations(softmax=True)], "softmax"),
        # Logits and their softmax have the same argmax.
        ([AsDiscreted("pred", argmax=True)], "softmax"),
        # An activation takes precedence over an argmax before it.
        ([AsDiscreted("pred", argmax=[True]), Activationsd("pred", sigmoid=True)], "sigmoid"),
        # A threshold may apply to logits or to probabilities.
        ([AsDiscreted("pred", threshold=0.5)], None),
        ([AsDiscreted("label", argmax=True), Activationsd("label", softmax=True)], None),
        ([Lambdad("pred", lambda x: x)], None),
    ],
)
def test_the_activation_is_that_of_the_predictions(transforms, activation):
    head = find_head(Compose(transforms))
    assert head.activation == activation
    assert bool(head.source) == (activation is not None)


def test_without_postprocessing_nothing_is_known():
    assert find_head(None).activation is None


def test_a_hovernet_is_adapted_by_its_nuclear_prediction():
    head = find_head(Compose([HoVerNetInstanceMapPostProcessingd()]))
    assert (head.activation, head.output) == ("softmax", "nucleus_prediction")


@pytest.mark.parametrize(
    ("transforms", "unit"),
    [
        ([ScaleIntensityRanged("image", -57, 164, 0.0, 1.0, clip=True)], True),
        # Without clip, values outside the range stay outside.
        ([ScaleIntensityRanged("image", -57, 164, 0.0, 1.0, clip=False)], False),
        ([ScaleIntensityRanged("image", -57, 164, -1.0, 1.0, clip=True)], False),
        ([ScaleIntensityd("image")], True),
        ([ScaleIntensityd("image", minv=-1.0, maxv=1.0)], False),
        ([ScaleIntensityd("image", minv=None, maxv=None, factor=0.1)], False),
        # The last change of intensity decides.
        ([ScaleIntensityd("image"), NormalizeIntensityd("image")], False),
        ([NormalizeIntensityd("image"), Compose([ScaleIntensityd("image")])], True),
        ([ScaleIntensityd("label")], False),
        ([], False),
    ],
)
def test_the_scale_of_images_is_that_of_their_last_scaling(transforms, unit):
    assert is_unit_range(Compose(transforms)) is unit
