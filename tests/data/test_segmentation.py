import hashlib
import time

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest

from grata.data import ScanReader, discover, write_dicom_seg, write_nifti
from grata.errors import GrataError

STRUCTURE = ["91723000", "SCT", "Anatomical Structure"]
HIPPOCAMPUS = ["5366008", "SCT", "Hippocampus"]
SEGMENTS = [
    {"value": 1, "label": "Anterior hippocampus", "category": STRUCTURE, "type": HIPPOCAMPUS,
     "modifier": ["255549009", "SCT", "Anterior"]},
    {"value": 2, "label": "Posterior hippocampus", "category": STRUCTURE, "type": HIPPOCAMPUS,
     "modifier": ["255551008", "SCT", "Posterior"], "anatomic_region": ["12738006", "SCT", "Brain"]},
]  # fmt: skip


def read(case):
    reader = ScanReader()
    return reader.get_data(reader.read(case["image"]))


def some_labels(shape=(10, 8, 6)):
    labels = np.zeros(shape, dtype=np.uint8)
    labels[1:4, 2:7, 0:3] = 1
    labels[4:9, 5:6, 2:5] = 2
    return labels


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(params=["axial", "sagittal", "coronal", "oblique", "enhanced oblique"])
def dicom_case(request, tmp_path, scans):
    kind, *rest = request.param.split()
    scans.save([scans.enhanced(*rest)] if rest else scans.series(kind), tmp_path / "in")
    (case,) = discover(tmp_path / "in").cases
    return case


def test_dicom_seg_lies_on_its_source(tmp_path, dicom_case):
    labels = some_labels()
    path = tmp_path / "seg.dcm"
    write_dicom_seg(labels, dicom_case, SEGMENTS, path)
    segmentation = highdicom.seg.segread(path)
    volume = segmentation.get_volume(combine_segments=True)
    _, meta = read(dicom_case)
    for value in (0, 1, 2):
        indices = np.argwhere(labels == value)
        expected = (meta["affine"] @ np.c_[indices, np.ones(len(indices))].T)[:3].T
        found = nibabel.affines.apply_affine(volume.get_affine("RAS"), np.argwhere(volume.array == value))
        if value:
            distances = np.linalg.norm(found[:, None] - expected[None], axis=-1)
            assert len(found) == len(expected)
            assert distances.min(axis=0).max() < 1e-3 and distances.min(axis=1).max() < 1e-3

    # Every frame refers to the source slice at its own position.
    sources = {}
    for file in dicom_case["image"]:
        header = pydicom.dcmread(file, stop_before_pixels=True)
        for number, frame in enumerate(header.get("PerFrameFunctionalGroupsSequence", []), 1):
            sources[header.SOPInstanceUID, number] = frame.PlanePositionSequence[0].ImagePositionPatient
        sources[header.SOPInstanceUID, None] = header.get("ImagePositionPatient")
    assert segmentation.NumberOfFrames == 6
    for frame in segmentation.PerFrameFunctionalGroupsSequence:
        source = frame.DerivationImageSequence[0].SourceImageSequence[0]
        expected = sources[source.ReferencedSOPInstanceUID, source.get("ReferencedFrameNumber")]
        found = frame.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(np.array(found, float), np.array(expected, float), atol=1e-3)
    assert segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID == header.SeriesInstanceUID
    assert segmentation.FrameOfReferenceUID == header.FrameOfReferenceUID
    assert segmentation.PatientID == header.PatientID and segmentation.StudyInstanceUID == header.StudyInstanceUID


def test_dicom_seg_has_real_codes(tmp_path, dicom_case):
    write_dicom_seg(some_labels(), dicom_case, SEGMENTS, tmp_path / "seg.dcm", ("GraTa", "9.9"))
    segmentation = highdicom.seg.segread(tmp_path / "seg.dcm")
    first, second = segmentation.SegmentSequence
    assert (first.SegmentLabel, second.SegmentLabel) == ("Anterior hippocampus", "Posterior hippocampus")
    code = second.SegmentedPropertyTypeCodeSequence[0]
    modifier = code.SegmentedPropertyTypeModifierCodeSequence[0]
    assert (code.CodeValue, modifier.CodeValue, modifier.CodeMeaning) == ("5366008", "255551008", "Posterior")
    assert second.AnatomicRegionSequence[0].CodeMeaning == "Brain"
    assert second.SegmentAlgorithmName == "GraTa" and segmentation.SoftwareVersions == "9.9"
    assert segmentation.SegmentationType == "BINARY"


def test_the_same_labels_give_the_same_bytes_at_another_time(tmp_path, scans, monkeypatch):
    scans.save(scans.series(), tmp_path / "in")
    (case,) = discover(tmp_path / "in").cases
    for name in ("a", "b"):
        write_dicom_seg(some_labels(), case, SEGMENTS, tmp_path / f"{name}.dcm")
        write_nifti(some_labels(), case, tmp_path / f"{name}.nii.gz")
        time.sleep(1.1)
    assert digest(tmp_path / "a.dcm") == digest(tmp_path / "b.dcm")
    assert digest(tmp_path / "a.nii.gz") == digest(tmp_path / "b.nii.gz")
    write_dicom_seg(np.roll(some_labels(), 1), case, SEGMENTS, tmp_path / "c.dcm")
    uids = [pydicom.dcmread(tmp_path / f"{name}.dcm").SOPInstanceUID for name in "ac"]
    assert uids[0] != uids[1]


def test_an_empty_segmentation_is_a_valid_file(tmp_path, dicom_case):
    write_dicom_seg(np.zeros((10, 8, 6), np.uint8), dicom_case, SEGMENTS, tmp_path / "seg.dcm")
    volume = highdicom.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True)
    assert not volume.array.any()


def test_a_source_that_lacks_type_2_attributes_will_do(tmp_path, scans):
    datasets = scans.series()
    for dataset in datasets:
        for keyword in ("PatientBirthDate", "AccessionNumber", "StudyDate", "StudyTime", "StudyID", "SeriesNumber"):
            del dataset[keyword]
        dataset.PatientSex = "W"
    scans.save(datasets, tmp_path / "in")
    (case,) = discover(tmp_path / "in").cases
    write_dicom_seg(some_labels(), case, SEGMENTS, tmp_path / "seg.dcm")
    assert highdicom.seg.segread(tmp_path / "seg.dcm").ContentDate == "19000101"


def thickness_empty(datasets):
    for dataset in datasets:
        dataset.SliceThickness = None


def thickness_absent(datasets):
    for dataset in datasets:
        del dataset.SliceThickness


def odd_dates(datasets):
    for dataset in datasets:
        dataset.PatientBirthDate, dataset.StudyDate = "1961", "00000000"


def japanese(datasets):
    for dataset in datasets:
        dataset.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
        dataset.PatientName = "Yamada^Tarou=山田^太郎=やまだ^たろう"


def korean(datasets):
    for dataset in datasets:
        dataset.SpecificCharacterSet = ["", "ISO 2022 IR 149"]
        dataset.PatientName = "Hong^Gildong=洪^吉洞=홍^길동"


def spacing_zero(datasets):
    for dataset in datasets:
        dataset.SpacingBetweenSlices = 0


def spacing_wrong(datasets):
    for dataset in datasets:
        dataset.SpacingBetweenSlices = 7


def spacing_is_the_gap(datasets):
    for dataset in datasets:
        dataset.SliceThickness, dataset.SpacingBetweenSlices = 2.0, 0.5


def impossible_day(datasets):
    for dataset in datasets:
        dataset.ContentDate = "20170230"


def cosines_differ_in_the_last_digit(datasets):
    datasets[1].ImageOrientationPatient = [1, 1e-5, 0, -1e-5, 1, 0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "change",
    [
        *(thickness_empty, thickness_absent, odd_dates, impossible_day, japanese, korean),
        *(spacing_zero, spacing_wrong, spacing_is_the_gap, cosines_differ_in_the_last_digit),
    ],
)
def test_headers_as_they_are_found_make_a_file_that_can_be_read(tmp_path, scans, change):
    datasets = scans.series()
    change(datasets)
    scans.save(datasets, tmp_path / "in")
    (case,) = discover(tmp_path / "in").cases
    write_dicom_seg(some_labels(), case, SEGMENTS, tmp_path / "seg.dcm")
    segmentation = highdicom.seg.segread(tmp_path / "seg.dcm")
    volume = segmentation.get_volume(combine_segments=True)
    assert int((volume.array > 0).sum()) == int((some_labels() > 0).sum())
    np.testing.assert_allclose(sorted(volume.spacing), [0.9, 1.1, 2.5], atol=1e-3)
    if change in (japanese, korean):
        source = pydicom.dcmread(case["image"][0]).PatientName
        assert segmentation.PatientName.ideographic == source.ideographic != ""


@pytest.mark.parametrize("per_frame", [False, True])
def test_rounded_cosines_of_an_enhanced_object_are_read_and_written_alike(tmp_path, scans, per_frame):
    dataset = scans.enhanced("oblique")
    shared = dataset.SharedFunctionalGroupsSequence[0]
    cosines = list(shared.PlaneOrientationSequence[0].ImageOrientationPatient)
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [round(float(c), 3) for c in cosines]
    if per_frame:
        for number, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            orientation = pydicom.Dataset()
            orientation.ImageOrientationPatient = [round(float(c), 4 + number % 2) for c in cosines]
            frame.PlaneOrientationSequence = [orientation]
        del shared.PlaneOrientationSequence
    scans.save([dataset], tmp_path / "in")
    (case,) = discover(tmp_path / "in").cases
    affine = read(case)[1]["affine"]
    write_dicom_seg(some_labels(), case, SEGMENTS, tmp_path / "seg.dcm")
    volume = highdicom.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True)
    found = nibabel.affines.apply_affine(volume.get_affine("RAS"), np.argwhere(volume.array == 1)).mean(0)
    expected = nibabel.affines.apply_affine(affine, np.argwhere(some_labels() == 1)).mean(0)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_measures_that_each_frame_gives_for_itself(tmp_path, scans):
    dataset = scans.enhanced("oblique")
    shared = dataset.SharedFunctionalGroupsSequence[0]
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        frame.PixelMeasuresSequence, frame.PlaneOrientationSequence = (
            shared.PixelMeasuresSequence,
            shared.PlaneOrientationSequence,
        )
    dataset.SharedFunctionalGroupsSequence = [pydicom.Dataset()]
    scans.save([dataset], tmp_path / "in")
    (case,) = discover(tmp_path / "in").cases
    write_dicom_seg(some_labels(), case, SEGMENTS, tmp_path / "seg.dcm")
    assert highdicom.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True).array.any()


def test_nothing_of_the_patient_is_warned_of_or_logged(tmp_path, scans, capfd, caplog, recwarn):
    datasets = scans.series()
    for dataset in datasets:
        dataset.PatientName = "MUSTERMANN ERIKA"
    scans.save(datasets, tmp_path / "in")
    recwarn.clear()
    capfd.readouterr()
    (case,) = discover(tmp_path / "in").cases
    read(case)
    write_dicom_seg(some_labels(), case, SEGMENTS, tmp_path / "seg.dcm")
    shown = "".join(capfd.readouterr()) + caplog.text + "".join(str(warning.message) for warning in recwarn)
    assert "mustermann" not in shown.lower()


def test_what_cannot_be_written_is_refused(tmp_path, scans):
    datasets = scans.series()
    for dataset in datasets:
        del dataset.StudyInstanceUID
    scans.save(datasets, tmp_path / "in")
    (case,) = discover(tmp_path / "in").cases
    with pytest.raises(GrataError, match="No DICOM SEG can be made"):
        write_dicom_seg(some_labels(), case, SEGMENTS, tmp_path / "seg.dcm")
    with pytest.raises(ValueError, match="shape"):
        write_dicom_seg(some_labels((8, 10, 6)), case, SEGMENTS, tmp_path / "seg.dcm")
    with pytest.raises(ValueError, match=r"label values \[2\]"):
        write_dicom_seg(some_labels(), case, SEGMENTS[:1], tmp_path / "seg.dcm")
    with pytest.raises(ValueError, match="integers"):
        write_nifti(some_labels() / 2, case, tmp_path / "seg.nii.gz")
    with pytest.raises(GrataError, match="gone"):
        write_nifti(some_labels(), case, tmp_path / "gone" / "seg.nii.gz")
    assert not list(tmp_path.glob("seg*")) and not list(tmp_path.glob(".*seg*"))


def test_nifti_of_a_dicom_case_lies_where_the_reader_puts_the_scan(tmp_path, dicom_case):
    write_nifti(some_labels(), dicom_case, tmp_path / "seg.nii.gz")
    image = nibabel.load(tmp_path / "seg.nii.gz")
    np.testing.assert_allclose(image.affine, read(dicom_case)[1]["affine"], atol=1e-4)
    np.testing.assert_array_equal(np.asarray(image.dataobj), some_labels())
    assert image.header["sform_code"] == image.header["qform_code"] == 1


def oblique_affine(flip):
    a, b = np.deg2rad(20), np.deg2rad(-8)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return nibabel.affines.from_matvec(turn @ np.diag([flip * 0.8, 1.1, 1.3]), [12.5, -33, 7])


@pytest.mark.parametrize("codes", [(1, 4), (2, 0), (0, 3), (1, 1)])
@pytest.mark.parametrize("affine", [np.diag([-1.0, 1, 2, 1]), oblique_affine(1), oblique_affine(-1)])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_nifti_keeps_the_geometry_of_its_scan_and_none_of_its_text(tmp_path, affine, codes, kind):
    scan = kind(np.random.default_rng(0).normal(size=(10, 8, 6)).astype(np.float32), affine)
    scan.set_sform(affine, code=codes[0])
    scan.set_qform(affine, code=codes[1])
    scan.header["descrip"], scan.header["aux_file"], scan.header["intent_name"] = b"Erika", b"Erika", b"Erika"
    scan.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Erika Mustermann"))
    scan.header.set_xyzt_units("mm", "sec")
    (tmp_path / "in").mkdir()
    nibabel.save(scan, tmp_path / "in" / "a.nii.gz")
    (case,) = discover(tmp_path / "in").cases
    write_nifti(some_labels(), case, tmp_path / "seg.nii")
    written = nibabel.load(tmp_path / "seg.nii")
    original = nibabel.load(case["image"])
    np.testing.assert_array_equal(written.affine, original.affine)
    for field in ("sform_code", "qform_code", "pixdim", "xyzt_units", "srow_x", "quatern_b", "qoffset_z"):
        np.testing.assert_array_equal(written.header[field], original.header[field])
    assert written.get_data_dtype() == np.uint8 and type(written) is type(original)
    np.testing.assert_array_equal(np.asarray(written.dataobj), some_labels())
    assert b"Erika" not in (tmp_path / "seg.nii").read_bytes()
