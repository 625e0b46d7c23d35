import copy
import os
import re

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    ComprehensiveSRStorage,
    ExplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    RLELossless,
    SegmentationStorage,
)

from grata.data import ScanReader, discover, write_dicom_seg
from grata.errors import GrataError

SEGMENTS = [
    {"value": 1, "label": "Hippocampus", "category": ["91723000", "SCT", "Anatomical Structure"],
     "type": ["5366008", "SCT", "Hippocampus"]}
]  # fmt: skip


def only_fault(folder, **selection):
    found = discover(folder, **selection)
    assert not found.cases
    (fault,) = found.faults
    return fault


def without_patient(scans, text):
    return not any(word in text.lower() for word in scans.patient)


def test_two_series_in_one_folder_and_one_over_two_folders(tmp_path, scans):
    scans.save(scans.series("axial", "one"), tmp_path / "flat")
    scans.save(scans.series("axial", "two"), tmp_path / "flat")
    spread = scans.series("sagittal", "three")
    scans.save(spread[::2], tmp_path / "a" / "b")
    scans.save(spread[1::2], tmp_path / "c")
    found = discover(tmp_path)
    assert not found.faults
    assert [len(case["image"]) for case in found.cases] == [6, 6, 6]
    for case in found.cases:
        assert re.fullmatch(r"mr-series007-[0-9a-f]{8}", case["case"])
        assert case["format"] == "dicom" and case["site"] == "unknown" and "label" not in case
        headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in case["image"]]
        assert [header.InstanceNumber for header in headers] == [1, 2, 3, 4, 5, 6]


def test_dicom_is_recognized_by_content_and_results_are_ignored(tmp_path, scans):
    for dataset, path in zip(scans.series(), "abcdef", strict=True):
        dataset.save_as(tmp_path / path, enforce_file_format=True)
    (tmp_path / "README.txt").write_text("notes")
    (tmp_path / ".hidden.dcm").write_bytes(b"junk")
    (tmp_path / "._a").write_bytes(b"junk")
    result = scans.series(series="result")[0]
    result.SOPClassUID, result.Modality = SegmentationStorage, "SEG"
    scans.save([result], tmp_path / "result")
    report = scans.series(series="report")[0]
    report.SOPClassUID, report.Modality = ComprehensiveSRStorage, "SR"
    for keyword in ("Rows", "Columns", "PixelData"):
        del report[keyword]
    scans.save([report], tmp_path / "report")
    directory = pydicom.Dataset()
    directory.file_meta = pydicom.dataset.FileMetaDataset()
    directory.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    directory.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    directory.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    pydicom.dcmwrite(tmp_path / "DICOMDIR", directory, enforce_file_format=True)
    found = discover(tmp_path)
    assert not found.faults
    assert [len(case["image"]) for case in found.cases] == [6]


def test_selection_by_modality_and_description(tmp_path, scans):
    computed = scans.series("axial", "ct")
    for dataset in computed:
        dataset.Modality, dataset.SeriesDescription = "CT", "Thorax of Mustermann"
    scans.save(scans.series("axial", "mr"), tmp_path)
    scans.save(computed, tmp_path)
    scans.nifti(tmp_path / "x.nii.gz")

    def ids(**selection):
        return [case["case"][:2] for case in discover(tmp_path, **selection).cases]

    assert ids() == ["ct", "mr", "x"]
    assert ids(modality="mr") == ["mr", "x"]
    assert ids(description="mprage") == ids(description="T1*POST") == ["mr", "x"]
    with pytest.raises(GrataError, match=r"modality: .*modality 'PT'.*1 of modality CT.*1 of modality MR") as caught:
        discover(tmp_path, modality="PT")
    assert without_patient(scans, str(caught.value))


def test_a_description_that_names_the_patient_is_offered_as_a_pattern_that_can_be_given(tmp_path, scans):
    series = scans.series("axial", "one")
    for dataset in series:
        dataset.PatientName, dataset.SeriesDescription = "Mueller^Anna", "T1 MUELLER post"
    scans.save(series, tmp_path)
    with pytest.raises(GrataError) as caught:
        discover(tmp_path, description="T2")
    assert "descriptions: T1 * post)" in str(caught.value) and "UELLER" not in str(caught.value)
    assert len(discover(tmp_path, description="T1 * post").cases) == 1


def test_a_fault_in_a_series_that_is_not_selected_does_not_matter(tmp_path, scans):
    other = scans.series("axial", "other", 2)
    for dataset in other:
        dataset.SeriesDescription = "T2"
    other[1].ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    scans.save(other + scans.series("axial", "good"), tmp_path)
    assert len(discover(tmp_path).faults) == 1
    assert not discover(tmp_path, description="MPRAGE").faults


def drop(datasets, index):
    del datasets[index]


def repeat(datasets):
    twin = copy.deepcopy(datasets[2])
    twin.SOPInstanceUID = "1.2.3.4"
    datasets.append(twin)


def set_one(keyword, value):
    def change(datasets):
        setattr(datasets[1], keyword, value)

    return change


def set_all(keyword, value):
    def change(datasets):
        for dataset in datasets:
            setattr(dataset, keyword, value)

    return change


def shift_one(datasets):
    datasets[3].ImagePositionPatient = [*datasets[3].ImagePositionPatient[:2], 24.9]


def shift_by_half(datasets):
    x, y, z = datasets[3].ImagePositionPatient
    datasets[3].ImagePositionPatient = [x, y, z + 1.25]


def tilt(datasets):
    for k, dataset in enumerate(datasets):
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y + 0.6 * k, z]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda datasets: drop(datasets, 2), r"a slice is missing between 19\.50 mm and 24\.50 mm.* 2\.50 mm"),
        (lambda datasets: (drop(datasets, 2), drop(datasets, 2)), r"2 slices are missing between 19\.50 mm and 27\.00"),
        (set_all("SpacingBetweenSlices", 1.25), "slices are missing: .* 2.50 mm apart, but the header says 1.25 mm"),
        (repeat, "duplicate slices: 1 of 7"),
        (shift_one, "spacing is not uniform"),
        (shift_by_half, r"spacing is not uniform: 3\.75 mm between 22\.00 mm and 25\.75 mm .* instead of 2\.50 mm"),
        (tilt, "shifted against each other"),
        (set_one("ImageOrientationPatient", [0, 1, 0, 0, 0, -1]), r"mixed orientations \(5 like the first, 1 others\)"),
        (set_one("PixelSpacing", [1, 1]), "different pixel spacings"),
        (set_one("Rows", 4), "different sizes"),
        (set_one("FrameOfReferenceUID", "1.2.3"), "different frames of reference"),
        (set_one("ImagePositionPatient", None), "lack the position"),
        (set_all("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), "not a pair of perpendicular unit vectors"),
        (set_all("PixelSpacing", [0, 0]), "not positive"),
        (set_all("SamplesPerPixel", 3), "colour image"),
        (lambda datasets: datasets[0].__delitem__("PixelData"), "no pixel data"),
        (lambda datasets: datasets.__delitem__(slice(1, None)), "single slice"),
    ],
)
def test_faulty_series(tmp_path, scans, change, message):
    datasets = scans.series()
    change(datasets)
    scans.save(datasets, tmp_path / "Mustermann_Erika" / "1961-08-24 KH-4711")
    fault = only_fault(tmp_path)
    assert re.search(message, fault.message), fault.message
    assert "[removed]" in fault.message
    assert without_patient(scans, fault.message + fault.case)
    assert fault.case.startswith("mr-series007-")


def test_rounded_headers_are_not_a_fault(tmp_path, scans):
    datasets = scans.series("oblique")
    for k, dataset in enumerate(datasets):
        dataset.ImageOrientationPatient = [round(float(c), 4 + k % 2) for c in dataset.ImageOrientationPatient]
        dataset.ImagePositionPatient = [round(float(c), 3) for c in dataset.ImagePositionPatient]
    scans.save(datasets, tmp_path)
    assert len(discover(tmp_path).cases) == 1


@pytest.mark.parametrize("kept", [0, 100, 300, 700, 900, 1000, 1100, 1200])
def test_a_broken_file_makes_the_series_around_it_incomplete(tmp_path, scans, kept):
    paths = scans.save(scans.series(), tmp_path / "KH-4711", shuffle=False)
    # The last slice: without it the rest would still look like a good series.
    paths[-1].write_bytes(paths[-1].read_bytes()[:kept])
    fault = only_fault(tmp_path)
    assert re.search("0 bytes|truncated|damaged|lack the position|no pixel data", fault.message)
    assert without_patient(scans, fault.message)


def test_a_file_without_extension_that_is_empty_is_missed(tmp_path, scans):
    for dataset, name in zip(scans.series(), "abcdef", strict=True):
        dataset.save_as(tmp_path / name, enforce_file_format=True)
    (tmp_path / "f").write_bytes(b"")
    assert "0 bytes" in only_fault(tmp_path).message


def test_a_broken_file_beside_two_series_is_named_and_the_series_stay(tmp_path, scans):
    scans.save(scans.series("axial", "one") + scans.series("axial", "two"), tmp_path)
    (tmp_path / "Mustermann.dcm").write_bytes(b"garbage")
    found = discover(tmp_path)
    assert len(found.cases) == 2
    message = found.faults[0].message
    assert "no. 13 of 13 by name" in message and "2 series" in message and "Mustermann" not in message


def test_missing_decoder_is_reported(tmp_path, scans, monkeypatch):
    datasets = scans.series()
    for dataset in datasets:
        dataset.compress(RLELossless)
    scans.save(datasets, tmp_path)
    monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.is_available", False)
    assert "no decoder for its transfer syntax (RLE Lossless)" in only_fault(tmp_path).message


def test_multiframe_with_a_missing_or_double_frame(tmp_path, scans):
    for name, change in (("missing", lambda frames: frames.pop(2)), ("double", lambda frames: frames)):
        dataset = scans.enhanced()
        frames = dataset.PerFrameFunctionalGroupsSequence
        positions = [frame.PlanePositionSequence[0] for frame in frames]
        change(frames)
        if name == "double":
            positions[0].ImagePositionPatient = positions[1].ImagePositionPatient
        dataset.NumberOfFrames = len(frames)
        dataset.PixelData = dataset.PixelData[: len(frames) * 160]
        scans.save([dataset], tmp_path / name)
        assert ("missing" if name == "missing" else "duplicate") in only_fault(tmp_path / name).message


def test_nifti_ids_are_as_short_as_they_can_be(tmp_path, scans):
    for name in ("images/a.nii.gz", "images/b.nii", "x/c.nii.gz", "images/y/c.nii.gz", "d.nii", "d.nii.gz"):
        scans.nifti(tmp_path / name)
    ids = {case["case"]: os.path.relpath(case["image"], tmp_path) for case in discover(tmp_path).cases}
    assert ids.pop("a") == "images/a.nii.gz" and ids.pop("b") == "images/b.nii"
    assert ids.pop("x-c") == "x/c.nii.gz" and ids.pop("y-c") == "images/y/c.nii.gz"
    assert sorted(re.sub("[0-9a-f]{8}$", "#", name) for name in ids) == ["d-#", "d-#"]


@pytest.mark.parametrize("digits", [3, 4, 6])
def test_rounded_direction_cosines_are_made_perpendicular(tmp_path, scans, digits):
    datasets = scans.series("oblique")
    for dataset in datasets:
        dataset.ImageOrientationPatient = [round(float(c), digits) for c in dataset.ImageOrientationPatient]
    scans.save(datasets, tmp_path / "scans")
    (case,) = discover(tmp_path / "scans").cases
    volume = ScanReader().get_data(case["image"])
    axes = volume[1]["affine"][:3, :3] / np.linalg.norm(volume[1]["affine"][:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(volume[1]["affine"], scans.affine("oblique"), atol=3 * 10.0**-digits)
    write_dicom_seg(np.ones((10, 8, 6), np.uint8), case, SEGMENTS, tmp_path / "seg.dcm")
    label = scans.nifti(tmp_path / "truth" / f"{case['case']}.nii.gz", (10, 8, 6), volume[1]["affine"])
    assert discover(tmp_path / "scans", labels_dir=tmp_path / "truth").cases[0]["label"] == str(label)


def test_distances_that_add_up_are_not_uniform(tmp_path, scans):
    datasets = scans.series("axial", slices=60)
    height = 0.0
    for k, dataset in enumerate(datasets):
        dataset.ImagePositionPatient = [-30, -42, height]
        height += 2.5 if k < 30 else 2.524
    scans.save(datasets, tmp_path)
    assert "not uniform" in only_fault(tmp_path).message


def test_a_gap_in_the_place_of_the_spacing_is_not_a_missing_slice(tmp_path, scans):
    datasets = scans.series()
    for dataset in datasets:
        dataset.SliceThickness, dataset.SpacingBetweenSlices = 2.0, 0.5
    scans.save(datasets, tmp_path)
    assert len(discover(tmp_path).cases) == 1


@pytest.mark.parametrize("modality", ["../../MR", "", "M R"])
def test_a_modality_never_leads_out_of_the_output_folder(tmp_path, scans, modality):
    datasets = scans.series()
    for dataset in datasets:
        dataset.Modality = modality
    scans.save(datasets, tmp_path)
    (case,) = discover(tmp_path).cases
    assert re.fullmatch(r"(mr|dicom)-series007-[0-9a-f]{8}", case["case"])


def test_a_folder_of_broken_files_is_named_without_its_patient(tmp_path):
    folder = tmp_path / "Mustermann_Erika_19610824"
    folder.mkdir()
    (folder / "Mustermann.dcm").write_bytes(b"garbage")
    message = only_fault(tmp_path).message
    assert "Mustermann" not in message and "1961" not in message and "no. 1 of 1 by name" in message


def test_a_truncated_header_that_names_the_patient_hides_the_name(tmp_path, scans):
    (dataset,) = scans.series(slices=1)
    for keyword in ("Rows", "Columns", "PixelData"):
        del dataset[keyword]
    (path,) = scans.save([dataset], tmp_path / "Erika Mustermann")
    path.rename(path.with_name("KH-4711.dcm"))
    message = only_fault(tmp_path).message
    assert "truncated" in message and without_patient(scans, message)


def test_what_is_neither_file_nor_folder_is_ignored(tmp_path, scans):
    os.mkfifo(tmp_path / "pipe")
    scans.nifti(tmp_path / "a.nii.gz")
    found = discover(tmp_path)
    assert [case["case"] for case in found.cases] == ["a"] and not found.notes
    os.mkfifo(tmp_path / "b.nii.gz")
    (tmp_path / "c.dcm").symlink_to("/dev/null")
    found = discover(tmp_path)
    assert [case["case"] for case in found.cases] == ["a"]
    assert found.notes == [
        "There are 2 pipes, sockets or devices with the name of a scan, which a run does not read. Copy the scan there "
        "as a file."
    ]


def test_segmentations_of_an_earlier_run_are_not_scans(tmp_path, scans):
    scans.nifti(tmp_path / "a.nii.gz")
    for folder in (tmp_path, tmp_path / "results"):
        scans.nifti(folder / "segmentations" / "a.nii.gz")
        (folder / "journal.jsonl").touch()
    scans.nifti(tmp_path / "somebody" / "segmentations" / "b.nii.gz")
    assert [case["case"] for case in discover(tmp_path).cases] == ["a", "b"]


@pytest.mark.parametrize(
    ("qform", "message"),
    [(np.diag([1.0, 1, 2, 1]), "left and right are exchanged"), (np.diag([-1.0, 1, 1, 1]), "differ by 6.0 mm")],
)
def test_a_qform_that_contradicts_the_sform_is_refused(tmp_path, scans, qform, message):
    image = nibabel.load(scans.nifti(tmp_path / "a.nii.gz"))
    affine = image.affine.copy()
    if message.startswith("differ"):
        affine[2, 3], qform = 6, np.diag([-1.0, 1, 2, 1])
    image.set_qform(qform, code=1)
    image.set_sform(affine, code=1)
    nibabel.save(image, tmp_path / "a.nii.gz")
    assert message in only_fault(tmp_path).message


def test_another_space_in_the_sform_is_not_a_contradiction(tmp_path, scans):
    image = nibabel.load(scans.nifti(tmp_path / "a.nii.gz"))
    affine = image.affine.copy()
    affine[:3, 3] += 20
    image.set_sform(affine, code=4)
    nibabel.save(image, tmp_path / "a.nii.gz")
    assert len(discover(tmp_path).cases) == 1


def test_other_units_and_complex_values_are_refused(tmp_path, scans):
    image = nibabel.load(scans.nifti(tmp_path / "a.nii.gz"))
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "a.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 4), np.complex64), np.eye(4)), tmp_path / "b.nii.gz")
    messages = [fault.message for fault in discover(tmp_path).faults]
    assert "micron" in messages[0] and "complex" in messages[1]


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("Images/a.nii.gz", "Labels/a.nii.gz"),
        ("A.NII.GZ", "A_seg.NII.GZ"),
        ("p/a.nii.gz", "p/a_SEG.nii.gz"),
        ("p/a.nii.gz", "p/a-label.nii.gz"),
        ("p/a.nii.gz", "p/a_mask.nii.gz"),
        ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"),
        ("images/a.nii.gz", "labels/a.nii.gz"),
        ("imagesTr/a.nii.gz", "labelsTr/a.nii"),
        ("site/images/sub/a.nii.gz", "site/labels/sub/a.nii.gz"),
        ("site/images/sub/a.nii.gz", "site/labels/a.nii.gz"),
        ("p/a.nii.gz", "p/a_seg.nii.gz"),
        ("p/a.nii", "p/a_label.nii.gz"),
    ],
)
def test_labels_are_matched_by_name(tmp_path, scans, image, label):
    scans.nifti(tmp_path / image)
    scans.nifti(tmp_path / label)
    (case,) = discover(tmp_path, site="Vanderbilt").cases
    assert case["case"].lower().removesuffix("_0000") == "a"
    assert case == {
        "case": case["case"], "image": str(tmp_path / image), "label": str(tmp_path / label), "site": "Vanderbilt",
        "format": "nifti",
    }  # fmt: skip


@pytest.mark.parametrize("given", ["images", "./images/", "images/../images", "link/images"])
def test_labels_beside_the_folder_that_is_given(tmp_path, scans, monkeypatch, given):
    scans.nifti(tmp_path / "images" / "a.nii.gz")
    scans.nifti(tmp_path / "labels" / "a.nii.gz")
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    (case,) = discover(given).cases
    assert os.path.samefile(case["label"], "labels/a.nii.gz")
    monkeypatch.chdir(tmp_path / "images")
    assert "label" in discover(".").cases[0]


def test_numbers_that_begin_with_zero_are_not_channels(tmp_path, scans):
    for number in range(3):
        for name in (
            f"images/case_{number:04d}",
            f"labels/case_{number:04d}",
            f"b/x_{number:04d}",
            f"b/x_{number:04d}_seg",
        ):
            scans.nifti(tmp_path / f"{name}.nii.gz")
    cases = discover(tmp_path).cases
    assert len(cases) == 6 and all("label" in case for case in cases)


def test_a_label_in_the_folder_of_its_image_is_not_lost_to_others_of_that_name(tmp_path, scans):
    for name in ("images/x/t1", "images/y/t1", "images/z/t1", "labels/x/t1"):
        scans.nifti(tmp_path / f"{name}.nii.gz")
    assert ["label" in case for case in discover(tmp_path).cases] == [True, False, False]


def test_a_name_that_is_not_utf8_can_be_used(tmp_path, scans):
    path = scans.nifti(tmp_path / "a.nii.gz")
    os.rename(path, os.path.join(os.fsencode(tmp_path), b"M\xfcller.nii.gz"))
    (tmp_path / "empty.nii.gz").touch()
    found = discover(tmp_path)
    (case,) = found.cases
    case["case"].encode()
    assert ScanReader().get_data([case["image"]])[0].shape == (9, 8, 7)


def test_an_invalid_quaternion_is_a_fault_of_its_file(tmp_path, scans):
    scans.nifti(tmp_path / "good.nii.gz")
    image = nibabel.load(scans.nifti(tmp_path / "bad.nii.gz"))
    image.set_sform(image.affine, code=1)
    image.header["quatern_b"] = image.header["quatern_c"] = 0.9
    image.to_filename(tmp_path / "bad.nii.gz")
    found = discover(tmp_path)
    assert [case["case"] for case in found.cases] == ["good"]
    assert "invalid qform" in found.faults[0].message


@pytest.mark.parametrize("kept", range(440, 640, 8))
def test_a_header_cut_short_never_names_the_patient(tmp_path, scans, kept):
    path = scans.save(scans.series(), tmp_path / "Mustermann_Erika")[0]
    cut = tmp_path / "alone" / "Mustermann_Erika"
    cut.mkdir(parents=True)
    (cut / "Erika.dcm").write_bytes(path.read_bytes()[:kept])
    found = discover(tmp_path / "alone")
    assert found.faults and without_patient(scans, "".join(f.message for f in found.faults))


def test_a_label_of_two_images_name_belongs_to_neither(tmp_path, scans):
    for name in ("images/s1/a", "images/s2/a", "labels/a"):
        scans.nifti(tmp_path / f"{name}.nii.gz")
    assert not any("label" in case for case in discover(tmp_path).cases)
    scans.nifti(tmp_path / "labels" / "s1" / "a.nii.gz")
    first, _ = discover(tmp_path).cases
    assert first["label"].endswith("labels/s1/a.nii.gz")


def test_labels_dir_by_the_names_of_the_cases(tmp_path, scans):
    for name in ("p1", "p2"):
        scans.nifti(tmp_path / "scans" / name / "T1.nii.gz")
        scans.nifti(tmp_path / "truth" / f"{name}-T1.nii.gz")
    found = discover(tmp_path / "scans", labels_dir=tmp_path / "truth").cases
    assert [case["label"] for case in found] == [str(tmp_path / "truth" / f"{n}-T1.nii.gz") for n in ("p1", "p2")]


def test_labels_dir(tmp_path, scans):
    scans.nifti(tmp_path / "scans" / "a.nii.gz")
    scans.nifti(tmp_path / "scans" / "b.nii.gz")
    scans.nifti(tmp_path / "truth" / "a.nii.gz")
    first, second = discover(tmp_path / "scans", labels_dir=tmp_path / "truth").cases
    assert first["label"] == str(tmp_path / "truth" / "a.nii.gz") and "label" not in second
    (tmp_path / "empty").mkdir()
    with pytest.raises(GrataError, match="labels_dir: no label map in"):
        discover(tmp_path / "scans", labels_dir=tmp_path / "empty")
    with pytest.raises(GrataError, match="labels_dir: .*does not exist"):
        discover(tmp_path / "scans", labels_dir=tmp_path / "nowhere")


def test_label_of_a_dicom_series(tmp_path, scans):
    scans.save(scans.series("coronal"), tmp_path / "scans")
    (case,) = discover(tmp_path / "scans").cases
    path = scans.nifti(tmp_path / "truth" / f"{case['case']}.nii.gz", (10, 8, 6), scans.affine("coronal"))
    (case,) = discover(tmp_path / "scans", labels_dir=tmp_path / "truth").cases
    assert case["label"] == str(path)
    scans.nifti(path, (10, 8, 6), scans.affine("axial"))
    assert "affine" in only_fault(tmp_path / "scans", labels_dir=tmp_path / "truth").message


@pytest.mark.parametrize(
    ("shape", "shift", "message"), [((9, 8, 6), 0, "shape 9 × 8 × 6"), ((9, 8, 7), 0.5, "displaces it by 0.50 mm")]
)
def test_label_on_another_grid(tmp_path, scans, shape, shift, message):
    affine = np.diag([-1.0, 1.0, 2.0, 1.0])
    scans.nifti(tmp_path / "images" / "a.nii.gz", affine=affine)
    affine[0, 3] = shift
    scans.nifti(tmp_path / "labels" / "a.nii.gz", shape, affine)
    scans.nifti(tmp_path / "images" / "b.nii.gz")
    found = discover(tmp_path)
    assert [case["case"] for case in found.cases] == ["b"]
    assert found.faults[0].case == "a" and message in found.faults[0].message


def test_faulty_nifti(tmp_path, scans):
    scans.nifti(tmp_path / "flat.nii.gz", (9, 8))
    scans.nifti(tmp_path / "slice.nii.gz", (9, 8, 1))
    (tmp_path / "empty.nii.gz").write_bytes(b"")
    (tmp_path / "garbage.nii").write_bytes(b"garbage" * 100)
    whole = scans.nifti(tmp_path / "headless.nii.gz")
    whole.write_bytes(whole.read_bytes()[:40])
    image = nibabel.load(scans.nifti(tmp_path / "nowhere.nii.gz"))
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    nibabel.save(image, tmp_path / "nowhere.nii.gz")
    contradictory = nibabel.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4))
    contradictory.header["pixdim"][1:4] = 3
    contradictory.to_filename(tmp_path / "contradictory.nii.gz")
    found = discover(tmp_path)
    messages = {fault.case: fault.message for fault in found.faults}
    assert not found.cases
    assert "2D (9 × 8 voxels)" in messages["flat"] and "2D (9 × 8 × 1 voxels)" in messages["slice"]
    assert "empty" in messages["empty"]
    assert "cannot be read" in messages["garbage"] and "cannot be read" in messages["headless"]
    assert "no orientation" in messages["nowhere"]
    assert "contradicts itself" in messages["contradictory"]
    assert not any(str(tmp_path) in message for message in messages.values())
    assert [case["case"] for case in discover(tmp_path, spatial_dims=2).cases] == ["flat", "slice"]


def test_folder_that_cannot_be_used(tmp_path, scans, monkeypatch):
    with pytest.raises(GrataError, match="dataset_dir: .*does not exist"):
        discover(tmp_path / "nowhere")
    with pytest.raises(GrataError, match="dataset_dir: .*holds no NIfTI file and no DICOM image"):
        discover(tmp_path)
    scans.nifti(tmp_path / "a.nii.gz")
    locked = tmp_path / "locked"
    locked.mkdir()
    scan_folder = os.scandir

    def refuse(path="."):
        if os.fspath(path) == str(locked):
            raise PermissionError(13, "Permission denied", str(locked))
        return scan_folder(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = discover(tmp_path)
    assert len(found.cases) == 1
    assert "no. 2 of 2 by name]' cannot be read" in found.faults[0].message
    with pytest.raises(GrataError, match="cannot be read"):
        discover(locked)


def test_links_that_lead_back_up_end(tmp_path, scans):
    scans.nifti(tmp_path / "a" / "x.nii.gz")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert len(discover(tmp_path).cases) == 1
