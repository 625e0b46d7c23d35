import pytest
import torch
from monai.data import MetaTensor

from grata.data import CheckExtentd, CheckLabeld, CheckScand
from grata.errors import GrataError


def image(*shape):
    values = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    return MetaTensor(values, meta={"filename_or_obj": "scans/a.nii.gz"})


@pytest.mark.parametrize(("shape", "spatial_dims"), [((1, 4, 5, 6), 3), ((2, 4, 5), 2)])
def test_a_good_scan_passes_unchanged(shape, spatial_dims):
    scan = image(*shape)
    checked = CheckScand("image", channels=shape[0], spatial_dims=spatial_dims)({"image": scan, "other": 1})
    assert checked["image"] is scan and checked["other"] == 1


@pytest.mark.parametrize("shape", [(1, 4, 5), (1, 4, 5, 1), (1, 2, 3, 4, 5)])
def test_wrong_number_of_dimensions(shape):
    with pytest.raises(GrataError, match=r"a\.nii\.gz.*needs 3D"):
        CheckScand("image")({"image": image(*shape)})


def test_wrong_number_of_channels():
    with pytest.raises(GrataError, match="has 4 channels, but this bundle needs 1"):
        CheckScand("image")({"image": image(4, 3, 3, 3)})


def test_not_finite():
    scan = image(1, 4, 4, 4)
    scan[0, 0, 0, :2] = torch.tensor([float("nan"), float("inf")])
    with pytest.raises(GrataError, match="2 NaN or infinite values among 64"):
        CheckScand("image")({"image": scan})


def test_constant():
    with pytest.raises(GrataError, match=r"Case 'c7'.*same value \(0\)"):
        CheckScand("image")({"image": image(1, 3, 3, 3) * 0, "case": "c7"})


def test_a_dicom_file_is_not_named():
    scan = image(1, 3, 3, 3) * 0
    scan.meta["filename_or_obj"] = "/Mustermann/Mustermann.dcm"
    with pytest.raises(GrataError) as caught:
        CheckScand("image")({"image": scan})
    assert "Mustermann" not in str(caught.value)


def label(values):
    return MetaTensor(torch.tensor(values)[None], meta={"filename_or_obj": "labels/a.nii.gz"})


def test_a_good_label_passes_unchanged_and_a_missing_one_too():
    check = CheckLabeld("label", values=[1, 2], allow_missing_keys=True)
    good = label([[0.0, 1.0], [2.0, 0.0]])
    assert check({"label": good})["label"] is good
    assert check({"image": 1}) == {"image": 1}


@pytest.mark.parametrize(
    ("values", "found"),
    [([0.0, 3.0], "3"), ([0.3, 1.0], "0.3"), ([float("nan"), 1.0], "nan"), ([65537.0, 0.0], "65537")],
)
def test_a_label_with_other_values_is_named(values, found):
    with pytest.raises(GrataError, match=rf"a\.nii\.gz' holds the values {found}, but the classes .* are 0, 1, 2"):
        CheckLabeld("label", values=[1, 2])({"label": label([values])})


@pytest.mark.parametrize("sizes", [(1, 1), (40, 100), (0, 0), (31, 60)])
def test_a_picture_that_shows_nothing_of_its_kind_is_refused(sizes):
    check = CheckExtentd("image", "field of view", smallest=32, aspect=2)
    with pytest.raises(GrataError, match=r"Case 'x' \(image\) shows no field of view"):
        check({"image": torch.zeros(3, *sizes), "case": "x"})
    data = {"image": torch.zeros(3, 40, 80), "case": "x"}
    assert check(data) == data
