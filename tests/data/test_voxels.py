"""The size after resampling is checked before any memory is taken for it."""

import pytest
import torch
from monai.data import Dataset, MetaTensor
from monai.inferers import SimpleInferer, SliceInferer, SlidingWindowInferer
from monai.transforms import Compose, Identityd, Spacingd

from grata.bundles.sizes import check_sizes
from grata.data import CheckVoxelsd, count_windows
from grata.errors import GrataError


def item(shape, *spacing):
    return {"image": MetaTensor(torch.rand(1, *shape), affine=torch.diag(torch.tensor([*spacing, 1.0]))), "case": "a"}


LARGE = [
    (item((20, 20, 20), 30.0, 30.0, 30.0), [1.0, 1.0, 1.0], "600 × 600 × 600 voxels of 1 × 1 × 1 mm"),
    (item((4, 4, 4), 1e6, 1.0, 1.0), 1.0, "4000000 × 4 × 4 voxels"),
    (item((8, 8, 8), 1.0, 1.0, 1.0), [0.001, 1.0, -1.0], "8000 × 8 × 8 voxels of 0.001 × 1 × -1 mm"),
    (item((10, 9), 100.0, 100.0), [0.5, 0.5], "2000 × 1800 voxels of 0.5 × 0.5 mm"),
]


@pytest.mark.parametrize("data, pixdim, words", LARGE)
def test_what_would_become_too_large_is_a_fault_with_its_sizes(data, pixdim, words):
    with pytest.raises(GrataError) as caught:
        CheckVoxelsd("image", pixdim, 100_000)(data)
    for word in ("Case 'a' (image)", words, "max_voxels (100000)", "raise max_voxels"):
        assert word in str(caught.value)
    assert CheckVoxelsd("image", pixdim, None)(data)["image"] is data["image"]
    assert CheckVoxelsd("image", pixdim, "null")(data)["image"] is data["image"]


@pytest.mark.parametrize("spacing", [0.001, 0.02, 1e-12])
@pytest.mark.parametrize("most", [100_000, None])
def test_a_volume_of_which_nothing_would_be_left_is_a_fault(spacing, most):
    with pytest.raises(GrataError, match=r"Case 'a' \(image\) has 35 × 51 × 35 voxels.*nothing of it would be left"):
        CheckVoxelsd("image", 1.0, most)(item((35, 51, 35), spacing, spacing, spacing))


def test_what_becomes_smaller_or_keeps_its_size_passes():
    for pixdim in ([2.0, 2.0, 2.0], [-1.0, 0.0, 0.0], 1.0, [2.0]):
        CheckVoxelsd("image", pixdim, 1000)(item((10, 10, 10), 1.0, 1.0, 1.0))


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "many", True])
def test_the_bound_is_a_whole_number(wrong):
    with pytest.raises(GrataError, match="max_voxels"):
        CheckVoxelsd("image", 1.0, wrong)


@pytest.mark.parametrize("data, pixdim, words", LARGE[:3])
def test_any_bundle_that_resamples_gets_the_check(data, pixdim, words, monkeypatch):
    spacing = Spacingd("image", pixdim if isinstance(pixdim, list) else [pixdim] * 3)
    preprocessing = Compose([Compose([Identityd("image"), spacing]), Identityd("image")])
    check_sizes(preprocessing, 100_000)
    check_sizes(preprocessing, 100_000)
    assert [type(one).__name__ for one in preprocessing.transforms[0].transforms] == [
        "Identityd", "CheckVoxelsd", "Spacingd",
    ]  # fmt: skip
    with pytest.raises(RuntimeError) as caught:
        Dataset([data], preprocessing)[0]
    causes = [caught.value.__cause__, caught.value.__cause__.__cause__]
    assert any(isinstance(cause, GrataError) and words in str(cause) for cause in causes)


def test_a_bundle_that_resamples_nothing_is_left_alone():
    for preprocessing in (None, Identityd("image"), Compose([Identityd("image")])):
        check_sizes(preprocessing, 1)


LONG = item((12, 12, 12), 3000.0, 0.5, 0.5)


@pytest.mark.parametrize(
    "inferer, words",
    [
        (SlidingWindowInferer([48, 64, 48]), "36000 × 6 × 6 voxels of 1 × 1 × 1 mm, 36000 × 64 × 48 with the padding"),
        (SlidingWindowInferer(96), "36000 × 96 × 96 with the padding"),
        (SlidingWindowInferer([-1, 64, 0]), ""),
        (SliceInferer(roi_size=[96, 96], spatial_dim=0), "36000 × 96 × 96 with the padding"),
        (SimpleInferer(), ""),
    ],
)
def test_a_thin_volume_counts_as_wide_as_the_windows_to_which_it_is_padded(inferer, words):
    check = CheckVoxelsd("image", 1.0, 100_000_000)
    count_windows(Compose([Identityd("image"), Compose([check])]), inferer)
    if not words:
        assert check(LONG)["image"] is LONG["image"]
        return
    with pytest.raises(GrataError) as caught:
        check(LONG)
    assert words in str(caught.value)
    own = CheckVoxelsd("image", 1.0, 100_000_000, window=[1, 1, 1])
    count_windows(own, inferer)
    assert own(LONG)["image"] is LONG["image"]
