import itk
import nibabel
import numpy as np
import pydicom
import pytest
from monai.data import DataLoader, MetaTensor
from monai.transforms import LoadImage, LoadImaged, Orientation
from pydicom.pixels import get_decoder
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from grata.data import ScanReader, discover
from grata.errors import GrataError

load = LoadImage(reader=ScanReader, ensure_channel_first=True)


@pytest.mark.parametrize("orientation", ["axial", "sagittal", "coronal", "oblique"])
def test_series_has_the_affine_of_the_standard_and_of_gdcm(tmp_path, scans, orientation):
    scans.save(scans.series(orientation), tmp_path)
    (case,) = discover(tmp_path).cases
    image = load(case["image"])
    assert image.shape == (1, 10, 8, 6)
    np.testing.assert_allclose(image.affine, scans.affine(orientation), atol=1e-4)
    np.testing.assert_array_equal(image[0], scans.voxels().transpose(2, 1, 0))

    names = itk.GDCMSeriesFileNames.New(Directory=str(tmp_path))
    reference = itk.imread(names.GetFileNames(names.GetSeriesUIDs()[0]), itk.F)
    np.testing.assert_array_equal(image[0], itk.array_from_image(reference).T)
    for index in ((0, 0, 0), (9, 7, 5), (3, 0, 5)):
        point = np.array(reference.TransformIndexToPhysicalPoint(index))
        np.testing.assert_allclose((image.affine.numpy() @ [*index, 1.0])[:3], point * [-1, -1, 1], atol=1e-3)


@pytest.mark.parametrize("orientation", ["axial", "oblique"])
def test_enhanced_multiframe_is_sorted_and_rescaled_frame_by_frame(tmp_path, scans, orientation):
    scans.save([scans.enhanced(orientation)], tmp_path)
    (case,) = discover(tmp_path).cases
    image = load(case["image"])
    np.testing.assert_allclose(image.affine, scans.affine(orientation), atol=1e-4)
    slopes = np.arange(1, 7)[:, None, None]
    np.testing.assert_allclose(image[0], (scans.voxels() * slopes).transpose(2, 1, 0))


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_compressed_series_gives_the_values_of_the_uncompressed_one(tmp_path, scans, syntax):
    datasets = scans.series(size=(40, 50))
    for dataset in datasets:
        dataset.compress(syntax)
    scans.save(datasets, tmp_path)
    (case,) = discover(tmp_path).cases
    np.testing.assert_array_equal(load(case["image"])[0], scans.voxels(size=(40, 50)).transpose(2, 1, 0))


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLossless, JPEGBaseline8Bit, JPEGExtended12Bit])
def test_older_jpeg_that_nothing_here_can_encode_has_a_decoder(syntax):
    assert get_decoder(syntax).is_available


def test_slope_and_intercept_are_applied_slice_by_slice(tmp_path, scans):
    datasets = scans.series()
    for k, dataset in enumerate(datasets):
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.5 * (k + 1), -10
    scans.save(datasets, tmp_path)
    (case,) = discover(tmp_path).cases
    expected = scans.voxels() * 0.5 * np.arange(1, 7)[:, None, None] - 10
    np.testing.assert_allclose(load(case["image"])[0], expected.transpose(2, 1, 0), rtol=1e-6)


@pytest.mark.parametrize("enhanced", [False, True])
def test_values_of_monochrome1_are_not_turned_around(tmp_path, scans, enhanced):
    datasets = [scans.enhanced()] if enhanced else scans.series()
    for dataset in datasets:
        dataset.PhotometricInterpretation = "MONOCHROME1"
    scans.save(datasets, tmp_path)
    slopes = np.arange(1, 7)[:, None, None] if enhanced else 1
    (case,) = discover(tmp_path).cases
    np.testing.assert_allclose(load(case["image"])[0], (scans.voxels() * slopes).transpose(2, 1, 0))


def test_a_file_that_no_longer_exists_is_named_by_its_place_and_not_by_its_name(tmp_path, scans):
    paths = scans.save(scans.series(), tmp_path, shuffle=False)
    gone = paths[2].with_name("mustermann.dcm")
    paths[2].rename(gone)
    (case,) = discover(tmp_path).cases
    gone.unlink()
    with pytest.raises(GrataError, match="File 3 of 6 of the DICOM series") as refused:
        ScanReader().get_data(case["image"])
    assert "mustermann" not in str(refused.value)


def test_metadata_collate_and_hold_nothing_of_the_patient(tmp_path, scans):
    scans.save(scans.series(), tmp_path / "dicom")
    path = scans.nifti(tmp_path / "nifti" / "a.nii.gz")
    image = nibabel.load(path)
    image.header["descrip"] = b"Erika Mustermann"
    nibabel.save(image, path)
    cases = discover(tmp_path).cases
    assert len(cases) == 2
    for case in cases:
        batch = next(iter(DataLoader([LoadImaged("image", reader=ScanReader)(case)], batch_size=1)))
        assert isinstance(batch["image"], MetaTensor)
        meta = {key: value for key, value in batch["image"].meta.items() if key != "filename_or_obj"}
        assert not any(word in repr(meta).lower() for word in scans.patient)


@pytest.mark.parametrize("axes", ["RAS", "LAS", "PIR"])
def test_nifti_is_read_as_stored(tmp_path, scans, axes):
    affine = nibabel.orientations.inv_ornt_aff(
        nibabel.orientations.ornt_transform(
            nibabel.orientations.axcodes2ornt(axes), nibabel.orientations.axcodes2ornt("RAS")
        ),
        (9, 8, 7),
    )
    path = scans.nifti(tmp_path / "a.nii.gz", affine=np.linalg.inv(affine))
    image = load(str(path))
    reference = nibabel.load(path)
    np.testing.assert_allclose(image.affine, reference.affine)
    np.testing.assert_array_equal(image[0], reference.get_fdata(dtype=np.float32))
    turned = Orientation("RAS", labels=None)(image)
    np.testing.assert_array_equal(turned[0], nibabel.as_closest_canonical(reference).get_fdata(dtype=np.float32))


def test_nifti_channels_come_first(tmp_path, scans):
    assert load(str(scans.nifti(tmp_path / "a.nii", (9, 8, 7, 2)))).shape == (2, 9, 8, 7)


def test_an_incomplete_series_is_refused_although_monai_has_readers_that_take_it(tmp_path, scans):
    paths = scans.save([d for k, d in enumerate(scans.series()) if k != 2], tmp_path)
    with pytest.raises(GrataError, match="a slice is missing") as caught:
        load([str(path) for path in paths])
    assert not any(word in str(caught.value).lower() for word in scans.patient)


def test_damaged_pixel_data_names_the_file_and_not_the_patient(tmp_path, scans, caplog, recwarn):
    datasets = scans.series()
    for dataset in datasets:
        dataset.compress(RLELossless)
    paths = scans.save(datasets, tmp_path, shuffle=False)
    damaged = tmp_path / "MUSTERMANN_3.dcm"
    paths[3].rename(damaged)
    damaged.write_bytes(damaged.read_bytes()[:-80])
    with pytest.raises(GrataError, match=r"\[removed\]_3\.dcm.*cannot be decoded") as caught:
        load([str(path) for path in (*paths[:3], damaged, *paths[4:])])
    shown = str(caught.value) + caplog.text + "".join(str(warning.message) for warning in recwarn)
    assert not any(word in shown.lower() for word in scans.patient)


def test_truncated_nifti_is_refused(tmp_path, scans):
    path = scans.nifti(tmp_path / "a.nii.gz", (30, 30, 30))
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(GrataError, match=r"a\.nii\.gz.*truncated"):
        load(str(path))


def test_files_of_two_series_are_not_merged(tmp_path, scans):
    paths = scans.save(scans.series("axial", "one", 3) + scans.series("axial", "two", 3), tmp_path)
    with pytest.raises(GrataError, match="several series"):
        load([str(path) for path in paths])


def test_what_is_not_an_image_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("no image")
    with pytest.raises(GrataError, match="is not a DICOM image"):
        load(str(path))
    assert pydicom.misc.is_dicom(path) is False
