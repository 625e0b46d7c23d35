"""Scans that a bundle was not made for, by what it declares of its training images."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml
from monai.transforms import Compose, LoadImaged

from grata.data import CompareScand, ScanReader, discover
from grata.data.expected import differences_from_training
from grata.errors import GrataError

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
DECLARED = {
    folder.name: yaml.safe_load((folder / "configs" / "adapt.yaml").read_text(encoding="utf-8"))["expected"]
    for folder in sorted(BUNDLES.iterdir())
}
HIPPOCAMPUS = DECLARED["hippocampus_mri_segmentation"]


def compare(case, expected):
    load = LoadImaged(keys="image", reader=ScanReader, ensure_channel_first=True, image_only=True)
    return Compose([load, CompareScand("image", expected)])(case)


@pytest.mark.parametrize("bundle", DECLARED)
def test_the_samples_of_a_bundle_are_what_it_was_made_for(bundle):
    dims = 3 if "spacing" in DECLARED[bundle] else 2
    cases = discover(BUNDLES / bundle / "sample_scans", spatial_dims=dims).cases
    assert len(cases) >= 2
    for case in cases:
        compared = compare(case, DECLARED[bundle])
        assert compared["unexpected"] == "" and not {"modality", "image_type"} & compared.keys()


@pytest.mark.parametrize(
    ("shape", "spacing", "words"),
    [
        ((35, 51, 3), (1, 1, 1), "extent"),
        ((35, 51, 3), (1, 1, 12), "voxels of 1 × 1 × 12 mm"),
        ((3, 36, 44), (5, 1, 1), "5 mm"),
        ((35, 50, 4), (1, 1, 10), "10 mm"),
        ((182, 218, 182), (1, 1, 1), "extent of 182 × 182 × 218 mm"),
        ((256, 256, 176), (0.98, 0.98, 1), "extent"),
        ((512, 512, 22), (0.43, 0.43, 6.5), "6.5 mm"),
        ((512, 512, 300), (0.7, 0.7, 1.0), "extent"),
        ((10, 12, 15), (1, 1, 1), "10 × 12 × 15 voxels"),
        ((300, 320, 400), (0.12, 0.12, 0.12), "0.12 × 0.12 × 0.12 mm"),
    ],
)
def test_scouts_thick_slices_and_whole_heads_are_not_the_hippocampus_region(shape, spacing, words):
    assert words in "; ".join(differences_from_training(HIPPOCAMPUS, shape, spacing))


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((35, 51, 38), (1, 1, 1)), ((46, 40, 58), (0.9, 1.1, 1)), ((51, 38, 35), (1, 1.2, 1)), ((60, 80, 60), (0.6,) * 3)],
)
def test_regions_of_other_scanners_are_the_hippocampus_region(shape, spacing):
    assert differences_from_training(HIPPOCAMPUS, shape, spacing, "MR", "ORIGINAL\\PRIMARY\\M\\NORM\\DIS2D") == []


@pytest.mark.parametrize("image_type", ["DERIVED\\SECONDARY\\AXIAL", "ORIGINAL\\PRIMARY\\M_FFE\\M\\FFE", "", None])
@pytest.mark.parametrize("modality", ["MR", "DICOM", None])
def test_what_a_header_may_say_of_a_fitting_scan(modality, image_type):
    assert differences_from_training(HIPPOCAMPUS, (35, 51, 38), (1, 1, 1), modality, image_type) == []


def ct(dataset):
    dataset.Modality = "CT"


def pet(dataset):
    dataset.Modality = "PT"


def adc(dataset):
    dataset.ImageType = ["DERIVED", "PRIMARY", "DIFFUSION", "ADC", "NORM"]


def phase(dataset):
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "P", "ND"]


def phase_map(dataset):
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "PHASE MAP", "P", "FFE"]


def phase_by_component(dataset):
    dataset.ComplexImageComponent = "PHASE"


def projection(dataset):
    dataset.ImageType = ["DERIVED", "SECONDARY", "PROJECTION IMAGE", "MIP"]


@pytest.mark.parametrize("change", [ct, pet, adc, phase, phase_map, phase_by_component, projection])
def test_what_the_header_of_a_series_says_it_is(tmp_path, scans, change):
    expected = {key: HIPPOCAMPUS[key] for key in ("modality", "other_image_types")}
    datasets = scans.series()
    scans.save(datasets, tmp_path / "right")
    for dataset in datasets:
        change(dataset)
    scans.save(datasets, tmp_path / "other")
    for folder, flagged in (("right", False), ("other", True)):
        (case,) = discover(tmp_path / folder).cases
        found = compare(case, expected)["unexpected"]
        assert bool(found) is flagged
    assert ("modality" in found) is (change in (ct, pet))


@pytest.mark.parametrize(
    ("shape", "spacing", "axis"),
    [
        ((10, 192, 192), (10, 1.2, 1.2), "first"),
        ((192, 10, 192), (1.2, 8, 1.2), "second"),
        ((10, 192, 192), (1, 1, 1), "first"),  # the size of the voxels is lost
        ((192, 192, 10), (1.2, 1.2, 10), ""),
        ((192, 192, 10), (1, 1, 1), ""),
        ((12, 192, 100), (1.2, 1.2, 10), ""),  # thick slices say more than few
        ((192, 192, 120), (1, 1, 1.2), ""),  # no axis stands out
        ((192, 192), (1, 1), ""),
    ],
)
def test_slices_along_another_axis_are_named(shape, spacing, axis):
    (found,) = differences_from_training({"slice_axis": "third"}, shape, spacing) or [""]
    assert (f"along the {axis} axis" in found) is bool(axis)
    heart = DECLARED["cardiac_cine_mri_segmentation"]
    assert ("slices lie" in "; ".join(differences_from_training(heart, shape, spacing))) is bool(axis)


def test_pictures_are_compared_by_their_pixels():
    for bundle in ("fundus_optic_disc_cup_segmentation", "retinal_vessel_segmentation"):
        for size, flagged in (((60, 80), True), ((480, 400), False), ((1000, 960), False), ((4000, 6000), True)):
            assert bool(differences_from_training(DECLARED[bundle], size, (1, 1))) is flagged
        assert differences_from_training(DECLARED[bundle], (512, 512, 9), (1, 1, 1))


def test_a_nifti_file_is_compared_by_its_grid(tmp_path, scans):
    for name, shape, size, flagged in (
        ("a", (35, 51, 38), 1, False),
        ("b", (35, 51, 3), 1, True),
        ("c", (9, 9, 9), 5, True),
    ):
        path = scans.nifti(tmp_path / f"{name}.nii.gz", shape, np.diag([-size, size, size, 1.0]))
        assert nibabel.load(path).shape == shape
        (case,) = discover(tmp_path, cases_file=None).cases
        assert bool(compare(case, HIPPOCAMPUS)["unexpected"]) is flagged
        path.unlink()


def test_nothing_is_compared_without_a_declaration():
    for expected in (None, {}):
        compared = CompareScand("image", expected)({"image": np.zeros((1, 2, 2, 2)), "modality": "CT"})
        assert compared["unexpected"] == ""


@pytest.mark.parametrize(
    ("expected", "key"),
    [
        ({"modalities": ["MR"]}, "expected#modalities"),
        ({"modality": "MR"}, "expected#modality"),
        ({"spacing": [1, 1, 1]}, "expected#spacing"),
        ({"extent": [[2, 1]]}, "expected#extent"),
        ({"size": [["a", "b"]]}, "expected#size"),
        ({"tolerance": 0.5}, "expected#tolerance"),
        ({"slice_axis": 3}, "expected#slice_axis"),
        (["MR"], "expected"),
    ],
)
def test_a_declaration_of_another_form_is_refused(expected, key):
    with pytest.raises(GrataError) as error:
        CompareScand("image", expected)
    assert error.value.key == key
