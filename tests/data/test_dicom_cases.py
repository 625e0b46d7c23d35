import copy
import re
import struct

import numpy as np
import pydicom
import pytest
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import (
    BasicTextSRStorage,
    CTImageStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    ImplicitVRLittleEndian,
    RawDataStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from grata.data import ScanReader, discover, write_dicom_seg
from grata.errors import GrataError

PRIVATE = "1.3.46.670589.11.0.0.12.2"
DIGITAL_X_RAY, MAMMOGRAPHY, ULTRASOUND = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("1.1", "1.2", "6.1"))
SEGMENTS = [
    {"value": 1, "label": "Hippocampus", "category": ["91723000", "SCT", "Anatomical Structure"],
     "type": ["5366008", "SCT", "Hippocampus"]}
]  # fmt: skip


def other(scans, index=0, **values):
    """Return another image of the series, with its own UID and other values; None removes an element."""
    dataset = scans.series()[index]
    dataset.SOPInstanceUID = generate_uid()
    for keyword, value in values.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def volume(scans, number, **values):
    """Return a volume of the series with its own UIDs and other values."""
    datasets = scans.series()
    for index, dataset in enumerate(datasets):
        dataset.SOPInstanceUID = generate_uid(entropy_srcs=[str(number), str(index)])
        dataset.PixelData = (scans.voxels()[index] + number).tobytes()
        for keyword, value in values.items():
            setattr(dataset, keyword, value)
    return datasets


NOWHERE = {"ImagePositionPatient": None, "ImageOrientationPatient": None}


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ({"SOPClassUID": RawDataStorage, "PixelData": None}, "1 object without an image was passed over (1 Raw"),
        ({"SOPClassUID": PRIVATE, "PixelData": None}, "1 object without an image was passed over (1 private SOP"),
        ({"SOPClassUID": PRIVATE}, "1 image that is not a scan was passed over (1 private SOP class)."),
        ({"SOPClassUID": BasicTextSRStorage, "PixelData": None, "Rows": None}, "(1 Basic Text SR Storage)"),
        ({"SOPClassUID": GrayscaleSoftcopyPresentationStateStorage, "PixelData": None, "Modality": "PR"}, "1 object"),
        ({"SOPClassUID": SecondaryCaptureImageStorage, **NOWHERE}, "1 image that is not a scan was passed over"),
        (
            {"SOPClassUID": SecondaryCaptureImageStorage, "SamplesPerPixel": 3, "SeriesInstanceUID": "1.2.3"},
            "1 image that is not a scan was passed over (1 Secondary Capture Image Storage).",
        ),
        (
            {"SOPClassUID": CTImageStorage, "ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"], **NOWHERE},
            "1 image that is not a scan was passed over (1 CT Image Storage).",
        ),
        (
            {"SOPClassUID": CTImageStorage, "ImageType": ["DERIVED", "SECONDARY"], **NOWHERE, "PixelSpacing": None},
            "1 image that is not a scan was passed over (1 CT Image Storage).",
        ),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "1 localizer was passed over."),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "SeriesInstanceUID": "1.2.3"}, "1 localizer was"),
    ],
)  # fmt: skip
def test_what_is_no_scan_does_not_spoil_a_series(tmp_path, scans, values, note):
    scans.save([*scans.series(), other(scans, **values)], tmp_path)
    found = discover(tmp_path)
    assert not found.faults and len(found.cases) == 1 and len(found.cases[0]["image"]) == 6
    (said,) = found.notes
    assert note in said


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ({"SOPClassUID": RawDataStorage, "PixelData": None}, "2 objects without an image .*2 Raw Data Storage"),
        ({"SOPClassUID": SecondaryCaptureImageStorage, **NOWHERE}, "2 images that are not scans .*2 Secondary Capture"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "2 localizers"),
        ({"DirectoryRecordSequence": [], "PixelData": None}, "2 objects .*2 DICOMDIR.*copy those, too"),
    ],
)
def test_where_nothing_is_a_scan_the_error_says_what_is_there(tmp_path, scans, values, note):
    scans.save([other(scans, **values), other(scans, **values)], tmp_path)
    with pytest.raises(GrataError, match=f"dataset_dir: .* holds no scan that can be used. {note}"):
        discover(tmp_path)


def test_a_localizer_by_its_name_is_passed_over_and_a_volume_of_that_name_is_not(tmp_path, scans):
    planes = [copy.deepcopy(scans.series(name)[0]) for name in ("axial", "sagittal", "coronal")]
    for number, description in enumerate(["Localizer", "3-plane SCOUT", "survey"]):
        for index, image in enumerate(planes):
            image.SOPInstanceUID, image.SeriesInstanceUID = generate_uid(), f"1.2.3.{number}"
            image.SeriesDescription, image.InstanceNumber = description, index
        scans.save(planes, tmp_path / str(number))
    scans.save(volume(scans, 1, SeriesDescription="scout"), tmp_path)
    found = discover(tmp_path)
    assert len(found.cases) == 1 and not found.faults and found.notes == ["9 localizers were passed over."]


def test_a_truncated_image_is_never_taken_for_an_object_without_pixels(tmp_path, scans):
    for name, values in (
        ("image", {"PixelData": None}),
        ("enhanced", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4.1", "PixelData": None}),
        ("empty", {"PixelData": b""}),
    ):
        scans.save([*scans.series()[:5], other(scans, 5, **values)], tmp_path / name)
        found = discover(tmp_path / name)
        assert not found.cases and "no pixel data" in found.faults[0].message and not found.notes


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "it is a mosaic.*dcm2niix"),
        ({"ImageType": ["DERIVED", "PRIMARY", "VFRAME"]}, r"VFRAME.*dcm2niix"),
        ({"SOPClassUID": "1.3.12.2.1107.5.9.1"}, "private SOP class.*Export it in a standard form"),
        ({"SOPClassUID": DIGITAL_X_RAY, **NOWHERE}, "Digital X-Ray Image Storage.* are planar.*Convert them to PNG"),
        (
            {"SOPClassUID": DIGITAL_X_RAY, "ImageType": ["DERIVED", "SECONDARY"], **NOWHERE, "PixelSpacing": None},
            "are planar",
        ),
        ({"SOPClassUID": MAMMOGRAPHY, **NOWHERE}, "Mammography.* are planar.*Convert them to PNG"),
        ({"SOPClassUID": ULTRASOUND, "NumberOfFrames": 6, **NOWHERE}, "Ultrasound.* are planar"),
        ({"NumberOfFrames": 6}, "6 frames in one file, but not the position of each.*dcm2niix"),
        ({"SeriesInstanceUID": None}, "1 DICOM image .* without a Series Instance UID"),
        ({"ImagePositionPatient": None}, r"lack the position .*\(Image Position\)"),
        ({"ImageType": ["DERIVED", "SECONDARY"], **NOWHERE}, r"lack .*\(Image Position, Image Orientation\)"),
        ({"PixelSpacing": None}, r"lack the position .*\(Pixel Spacing\)"),
    ],
)
def test_what_cannot_be_a_volume_is_named_as_what_it_is(tmp_path, scans, values, message):
    scans.save([other(scans, **values)], tmp_path / "Mustermann")
    scans.save(scans.series("axial", "good"), tmp_path)
    found = discover(tmp_path)
    assert len(found.cases) == 1
    (fault,) = found.faults
    assert re.search(message, fault.message), fault.message
    assert "ustermann" not in fault.message


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"Rows": b"ab"}, "truncated"),
        ({"Rows": b"\0\0"}, "without rows or columns"),
        ({"Rows": b"\xff\xff", "Columns": b"\xff\xff"}, "truncated: its header announces 8589672450 bytes"),
        ({"NumberOfFrames": b"abc "}, "wrong values"),
        ({"NumberOfFrames": b"99999999"}, "99999999 frames"),
        ({"PixelSpacing": b"1\\1\\1 "}, r"garbled \(Pixel Spacing\)"),
        ({"ImagePositionPatient": b"1e308\\1e308\\1e308 "}, "farther away"),
        ({"ImagePositionPatient": b"nan\\1\\1 "}, "not a finite number"),
        ({"ImageOrientationPatient": b"abc "}, r"garbled \(Image Orientation\)"),
        ({"BitsAllocated": b"\x07\x00"}, "7 bits"),
        ({"RescaleSlope": b"abc "}, "wrong values"),
        ({"PhotometricInterpretation": b"\x1b[31m\xff"}, r"its pixels are [?A-Z0-9 ]+, but"),
    ],
)
def test_values_that_an_image_needs_and_that_are_odd_are_a_fault_of_their_series(tmp_path, scans, elements, message):
    save_odd(scans.series("axial", "odd"), tmp_path / "odd", elements)
    scans.save(scans.series("axial", "good"), tmp_path)
    found = discover(tmp_path)
    assert len(found.cases) == 1
    (fault,) = found.faults
    assert re.search(message, fault.message), fault.message


@pytest.mark.parametrize(
    "elements",
    [
        {"SeriesNumber": b"99999999999999999999"},
        {"SeriesNumber": b"-5"},
        {"SeriesNumber": b"abc "},
        {"SliceThickness": b"abc "},
        {"SliceThickness": b"nan "},
        {"SpacingBetweenSlices": b"1\\2 "},
        {"InstanceNumber": b"9e99"},
        {"EchoTime": b"abc "},
        {"SpecificCharacterSet": b"ISO_IR 999"},
        {"ImageType": b"\xff\xfe"},
    ],
)
def test_values_that_nobody_needs_may_be_odd(tmp_path, scans, elements):
    save_odd(scans.series(), tmp_path, elements)
    (case,) = discover(tmp_path).cases
    assert re.fullmatch(r"mr-series00[07]-[0-9a-f]{8}", case["case"])
    np.testing.assert_array_equal(ScanReader().get_data(case["image"])[0], scans.voxels().transpose(2, 1, 0))
    write_dicom_seg(np.ones((10, 8, 6), np.uint8), case, SEGMENTS, tmp_path / ".seg.dcm")


def save_odd(datasets, folder, elements):
    """Write a series in which elements have bytes that no library would write."""
    folder.mkdir(exist_ok=True)
    for number, dataset in enumerate(datasets):
        for keyword, value in elements.items():
            tag = Tag(keyword)
            dataset._dict[tag] = RawDataElement(tag, dictionary_VR(keyword), len(value), value, 0, False, True)
        dataset["PixelData"].VR = "OW"
        # As long as the encoding is said to be unchanged, raw elements are written as they are.
        dataset.set_original_encoding(False, True, "iso8859")
        dataset.save_as(folder / f"{number}.dcm", enforce_file_format=True)


def test_whatever_a_library_raises_for_a_series_stays_with_it(tmp_path, scans, monkeypatch):
    scans.save(scans.series("axial", "good"), tmp_path)
    scans.save(scans.series("sagittal", "bad"), tmp_path)
    from grata.data import dicom_cases

    geometry = dicom_cases.series_geometry
    for error in (
        KeyError("Mustermann"),
        RecursionError(),
        MemoryError(),
        np.linalg.LinAlgError("SVD"),
        ValueError("x"),
    ):

        def refuse(ordered, error=error):
            if ordered[0].attributes["Orientation"] == "sagittal":
                raise error
            return geometry(ordered)

        monkeypatch.setattr(dicom_cases, "series_geometry", refuse)
        found = discover(tmp_path)
        assert len(found.cases) == 1 and len(found.faults) == 1 and "ustermann" not in found.faults[0].message


@pytest.mark.parametrize(
    ("names", "empty", "usable"),
    [
        ("IM{:04d}", "VERSION", True),
        ("IM{:04d}", "LOCKFILE", True),
        ("IM{:04d}.dcm", "0001", True),
        ("{:04d}", "DICOMDIR", True),
        ("IM{:04d}", "IM0007", False),
        ("IM{:04d}.dcm", "IM0003a.dcm", False),
        ("1.2.840.{}", "1.2.840.9", False),
    ],
)
def test_an_empty_file_beside_slices_is_one_only_where_it_is_named_like_them(tmp_path, scans, names, empty, usable):
    for number, dataset in enumerate(scans.series()):
        dataset.save_as(tmp_path / names.format(number), enforce_file_format=True)
    (tmp_path / empty).touch()
    found = discover(tmp_path)
    assert len(found.cases) == usable and len(found.faults) == (not usable)
    assert found.notes == ["1 empty file was passed over."] * usable
    assert usable or "0 bytes" in found.faults[0].message


def test_the_gap_shows_whether_an_empty_file_between_slices_was_one(tmp_path, scans):
    for number, dataset in enumerate(scans.series()):
        dataset.save_as(tmp_path / f"{2 * number:04d}", enforce_file_format=True)
    (tmp_path / "0005").touch()
    found = discover(tmp_path)
    assert len(found.cases) == 1 and found.notes == ["1 empty file was passed over."]
    (tmp_path / "0004").write_bytes(b"")
    found = discover(tmp_path)
    assert not found.cases and "slice is missing" in found.faults[0].message


def identical(path):
    return path.read_bytes()


def without_preamble(path):
    return path.read_bytes()[132:]


def in_another_encoding(path):
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return saved(dataset, path)


def compressed(path):
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless, generate_instance_uid=False)
    return saved(dataset, path)


def saved(dataset, path):
    copied = path.with_name(".copy")
    dataset.save_as(copied, enforce_file_format=True)
    return copied.read_bytes()


@pytest.mark.parametrize("form", [identical, without_preamble, in_another_encoding, compressed])
@pytest.mark.parametrize("count", [1, 6])
def test_copies_count_once(tmp_path, scans, form, count):
    paths = scans.save(scans.series(), tmp_path / "export", shuffle=False)
    (tmp_path / "again").mkdir()
    for path in paths[:count]:
        (tmp_path / "again" / path.name).write_bytes(form(path))
    found = discover(tmp_path)
    assert not found.faults and len(found.cases[0]["image"]) == 6
    copies = (
        "1 copy of a file with the same content was" if count == 1 else "6 copies of files with the same content were"
    )
    assert found.notes == [f"{copies} passed over."]
    np.testing.assert_array_equal(ScanReader().get_data(found.cases[0]["image"])[0], scans.voxels().transpose(2, 1, 0))


def test_copies_of_an_enhanced_object_count_once(tmp_path, scans):
    (path,) = scans.save([scans.enhanced()], tmp_path)
    (tmp_path / "copy.dcm").write_bytes(path.read_bytes())
    found = discover(tmp_path)
    assert len(found.cases) == 1 and len(found.cases[0]["image"]) == 1 and len(found.notes) == 1


def other_pixels(datasets):
    datasets[2].PixelData = datasets[3].PixelData
    return "Pixel Data"


def other_value(datasets):
    datasets[2].EchoTime = 12
    return "Echo Time"


def other_position(datasets):
    datasets[2].ImagePositionPatient = datasets[3].ImagePositionPatient
    return r"Image Position \(Patient\)"


@pytest.mark.parametrize("change", [other_pixels, other_value, other_position])
def test_one_uid_of_different_content_is_refused_and_what_differs_is_named(tmp_path, scans, change):
    scans.save(scans.series(), tmp_path / "a", shuffle=False)
    changed = scans.series()
    differs = change(changed)
    scans.save(changed, tmp_path / "b", shuffle=False)
    found = discover(tmp_path)
    assert not found.cases
    assert re.search(f"2 of its files have the same SOP Instance UID, but differ in {differs}", found.faults[0].message)


SEVERAL = [
    ([{"EchoTime": 11}, {"EchoTime": 92.5}], ["EchoTime11", "EchoTime92.5"], "Echo Time 11, 92.5"),
    (
        [{"ImageType": ["ORIGINAL", "PRIMARY", kind, "ND"]} for kind in "MP"],
        ["ImageTypeM", "ImageTypeP"],
        "Image Type M, P",
    ),
    (
        [{"DiffusionBValue": 0.0}, {"DiffusionBValue": 1000.0}],
        ["DiffusionBValue0", "DiffusionBValue1000"],
        "b-value 0, 1000",
    ),
    (
        [{"TemporalPositionIdentifier": n, "TriggerTime": 40 * n} for n in (1, 2, 3)],
        [f"TemporalPositionIdentifier{n}" for n in (1, 2, 3)],
        "Temporal Position Identifier 1, 2, 3",
    ),
    ([{"TriggerTime": n} for n in (0, 40.5)], ["TriggerTime0", "TriggerTime40.5"], "Trigger Time 0, 40.5"),
    (
        [{"EchoTime": e, "AcquisitionNumber": n} for n in (1, 2) for e in (5, 15)],
        [f"EchoTime{e}-AcquisitionNumber{n}" for e in (15, 5) for n in (1, 2)],
        "Echo Time 5, 15; Acquisition Number 1, 2",
    ),
    ([{"FlipAngle": 3}, {"FlipAngle": 20}], ["FlipAngle20", "FlipAngle3"], "Flip Angle 3, 20"),
]  # fmt: skip


@pytest.mark.parametrize(("sets", "suffixes", "said"), SEVERAL)
def test_several_volumes_of_a_series_are_a_case_each(tmp_path, scans, sets, suffixes, said):
    scans.save([d for number, values in enumerate(sets) for d in volume(scans, number, **values)], tmp_path / "in")
    found = discover(tmp_path / "in")
    assert not found.faults
    assert [re.sub(r"^mr-series007-[0-9a-f]{8}-", "", case["case"]) for case in found.cases] == suffixes
    (note,) = found.notes
    assert said in note and "select" in note
    uids = set()
    for case in found.cases:
        array, meta = ScanReader().get_data(case["image"])
        np.testing.assert_allclose(meta["affine"], scans.affine("axial"), atol=1e-4)
        assert len(np.unique(array - scans.voxels().transpose(2, 1, 0))) == 1
        write_dicom_seg(np.ones(array.shape, np.uint8), case, SEGMENTS, tmp_path / "seg.dcm")
        segmentation = pydicom.dcmread(tmp_path / "seg.dcm")
        uids.add(segmentation.SOPInstanceUID)
        referenced = segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence
        expected = {pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in case["image"]}
        assert {item.ReferencedSOPInstanceUID for item in referenced} == expected
    assert len(uids) == len(sets)
    # The example of the note chooses one of them, under the same id.
    example = re.search("as in '(.*)'", note).group(1)
    chosen = discover(tmp_path / "in", select=example)
    assert len(chosen.cases) == 1 and chosen.cases[0] in found.cases and not chosen.notes


def test_a_note_names_what_tells_volumes_apart_and_not_what_tells_slices_apart(tmp_path, scans):
    datasets = [dataset for number in (1, 2) for dataset in volume(scans, number, EchoTime=10 * number)]
    for dataset in datasets:
        dataset.TriggerTime = 40 * abs(dataset.ImagePositionPatient[2])
    scans.save(datasets, tmp_path)
    found = discover(tmp_path)
    (note,) = found.notes
    assert len(found.cases) == 2 and "Echo Time 10, 20)" in note and "Trigger" not in note


def test_b_values_that_makers_keep_in_elements_of_their_own(tmp_path, scans):
    blocks = [
        (0x0019, "SIEMENS MR HEADER", 0x0C, "IS", lambda value: value),
        (0x2001, "Philips Imaging DD 001", 0x03, "FL", float),
        (0x0043, "GEMS_PARM_01", 0x39, "IS", lambda value: [value + 10**9, 8, 0, 0]),
        (0x0065, "Image Private Header", 0x09, "FD", float),
    ]
    for group, creator, element, kind, stored in blocks:
        datasets = []
        for value in (0, 1000):
            for dataset in volume(scans, value):
                dataset.private_block(group, creator, create=True).add_new(element, kind, stored(value))
                datasets.append(dataset)
        folder = tmp_path / creator
        scans.save(datasets, folder)
        found = discover(folder)
        assert [case["case"].split("-")[-1] for case in found.cases] == ["DiffusionBValue0", "DiffusionBValue1000"]


def test_stacks_of_several_orientations_are_a_case_each(tmp_path, scans):
    datasets = []
    for name in ("axial", "sagittal", "coronal"):
        for index, dataset in enumerate(scans.series(name)):
            dataset.SOPInstanceUID = generate_uid(entropy_srcs=[name, str(index)])
            datasets.append(dataset)
    scans.save(datasets, tmp_path)
    found = discover(tmp_path)
    assert [case["case"].split("-")[-1] for case in found.cases] == [
        "Orientationaxial", "Orientationcoronal", "Orientationsagittal",
    ]  # fmt: skip


def test_enhanced_objects_in_one_series_are_a_case_each(tmp_path, scans):
    datasets = [scans.enhanced() for _ in range(3)]
    for number, dataset in enumerate(datasets):
        dataset.SOPInstanceUID, dataset.InstanceNumber = generate_uid(), number
    scans.save(datasets, tmp_path)
    found = discover(tmp_path)
    assert [case["case"].split("-")[-1] for case in found.cases] == [f"InstanceNumber{n}" for n in range(3)]


def echoes(frame, number):
    group = pydicom.Dataset()
    group.EffectiveEchoTime = (11, 92.5)[number]
    frame.MREchoSequence = [group]
    return "Effective Echo Time 11, 92.5"


def b_values(frame, number):
    group = pydicom.Dataset()
    group.DiffusionBValue = (0.0, 1000.0)[number]
    frame.MRDiffusionSequence = [group]
    return "b-value 0, 1000"


def time_points(frame, number):
    frame.FrameContentSequence[0].TemporalPositionIndex = number + 1
    return "Temporal Position Index 1, 2"


@pytest.mark.parametrize("mark", [echoes, b_values, time_points])
def test_what_differs_in_an_enhanced_object_of_several_volumes_is_named(tmp_path, scans, mark):
    dataset = scans.enhanced()
    frames = [*dataset.PerFrameFunctionalGroupsSequence, *copy.deepcopy(list(dataset.PerFrameFunctionalGroupsSequence))]
    said = [mark(frame, number // 6) for number, frame in enumerate(frames)]
    dataset.PerFrameFunctionalGroupsSequence, dataset.NumberOfFrames = frames, 12
    dataset.PixelData = dataset.PixelData * 2
    scans.save([dataset], tmp_path)
    (fault,) = discover(tmp_path).faults
    assert "duplicate slices" in fault.message and said[0] in fault.message and "dcm2niix" in fault.message


def missing_in_one(datasets):
    del datasets[8]


def missing_at_the_end_of_one(datasets):
    del datasets[11]


def truncated_in_one(datasets):
    datasets[8].PixelData = datasets[8].PixelData[:50]


@pytest.mark.parametrize("damage", [missing_in_one, missing_at_the_end_of_one, truncated_in_one])
def test_damage_in_one_of_several_volumes_is_a_fault_of_that_one(tmp_path, scans, damage):
    datasets = volume(scans, 0, EchoTime=11) + volume(scans, 1, EchoTime=92)
    damage(datasets)
    scans.save(datasets, tmp_path)
    found = discover(tmp_path)
    assert [case["case"].split("-")[-1] for case in found.cases] == ["EchoTime11"]
    assert [fault.case.split("-")[-1] for fault in found.faults] == ["EchoTime92"]


def interleaved(datasets):
    for number, dataset in enumerate(datasets):
        dataset.AcquisitionNumber = number % 2
    del datasets[3]


def slabs(datasets):
    for number, dataset in enumerate(datasets):
        dataset.AcquisitionNumber = number // 4
    del datasets[3]


def one_odd(datasets):
    odd = copy.deepcopy(datasets[2])
    odd.SOPInstanceUID, odd.AcquisitionNumber = "1.2.3", 9
    datasets.append(odd)


@pytest.mark.parametrize("damage", [interleaved, slabs, one_odd])
def test_a_damaged_volume_is_not_taken_for_several(tmp_path, scans, damage):
    datasets = scans.series(slices=8)
    damage(datasets)
    scans.save(datasets, tmp_path)
    found = discover(tmp_path)
    assert not found.cases and len(found.faults) == 1


def test_volumes_that_nothing_tells_apart_are_refused(tmp_path, scans):
    scans.save(volume(scans, 0) + volume(scans, 1), tmp_path)
    assert "duplicate slices" in discover(tmp_path).faults[0].message


@pytest.mark.parametrize(
    ("select", "count"),
    [
        ("EchoTime=11", 2),
        ("echo time = 11.0", 2),
        ("EchoTime=11,AcquisitionNumber=1", 1),
        (["EchoTime=11", "AcquisitionNumber=2"], 1),
        ({"EchoTime": [11, 92]}, 4),
        ("EchoTime=11,EchoTime=92", 4),
        ({"EchoTime": 92, "AcquisitionNumber": "1"}, 1),
        (None, 4),
        ("", 4),
    ],
)
def test_volumes_are_selected_by_their_values(tmp_path, scans, select, count):
    sets = [{"EchoTime": e, "AcquisitionNumber": n} for n in (1, 2) for e in (11, 92)]
    scans.save([d for number, values in enumerate(sets) for d in volume(scans, number, **values)], tmp_path)
    scans.nifti(tmp_path / "a.nii.gz")
    found = discover(tmp_path, select=select)
    assert not found.faults and len(found.cases) == count + 1
    ids = {case["case"] for case in discover(tmp_path).cases}
    assert {case["case"] for case in found.cases} <= ids


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ("EchoTime=12", "select: no DICOM image has .*Echo Time 11, 92"),
        ("EcoTime=11", "select: 'EcoTime' .*Did you mean EchoTime"),
        ("EchoTime", "select: must be like EchoTime=11"),
        ("PatientName=x", "select: 'PatientName' .*"),
        (["EchoTime=11", ""], "select: must be like"),
    ],
)
def test_a_selection_that_cannot_be_is_refused(tmp_path, scans, select, message):
    scans.save(volume(scans, 0, EchoTime=11) + volume(scans, 1, EchoTime=92), tmp_path)
    with pytest.raises(GrataError, match=message):
        discover(tmp_path, select=select)


def test_an_odd_image_can_be_left_out_by_a_selection(tmp_path, scans):
    odd = other(scans, 3, ImageType=["DERIVED", "SECONDARY", "MIP"])
    scans.save([*volume(scans, 0, ImageType=["ORIGINAL", "PRIMARY", "M"]), odd], tmp_path)
    (fault,) = discover(tmp_path).faults
    assert "Choose one of its volumes with select" in fault.message
    (case,) = discover(tmp_path, select="ImageType=ORIGINAL").cases
    assert len(case["image"]) == 6


def test_what_tells_volumes_apart_does_not_show_the_patient(tmp_path, scans):
    sets = [{"SequenceName": f"ep Mustermann {n}", "StackID": f"Erika{n}"} for n in (1, 2)]
    scans.save([d for number, values in enumerate(sets) for d in volume(scans, number, **values)], tmp_path)
    found = discover(tmp_path)
    assert len(found.cases) == 2
    shown = " ".join([*found.notes, *found.paths, *(case["case"] for case in found.cases)]).lower()
    assert not any(word in shown for word in scans.patient)


@pytest.mark.parametrize("count", [1, 2])
def test_values_that_a_viewer_inverts_are_used_as_stored_and_said_once(tmp_path, scans, count):
    for number in range(3):
        datasets = scans.series(series=f"series {number}")
        for dataset in datasets:
            dataset.PhotometricInterpretation = "MONOCHROME1" if number < count else "MONOCHROME2"
        scans.save(datasets, tmp_path / str(number))
    found = discover(tmp_path)
    (note,) = found.notes
    assert f"{count} DICOM scan{'s are' if count > 1 else ' is'} MONOCHROME1, which a viewer shows inverted" in note
    assert sum(case["case"] in note for case in found.cases) == count
    arrays = [ScanReader().get_data(case["image"])[0] for case in found.cases]
    assert all(np.array_equal(array, arrays[0]) for array in arrays)


@pytest.mark.parametrize(
    ("keyword", "first", "second", "shown", "choice"),
    [
        ("AcquisitionTime", "101112.5", "101122.5", "Acquisition Time in order 1, 2", "AcquisitionTime=2"),
        ("ContentTime", "235958", "101122", "Content Time in order 1, 2", "ContentTime=1"),
        ("AcquisitionDateTime", "20170503101112", "20170503101113", "DateTime in order 1, 2", "AcquisitionDateTime=2"),
        ("NominalPercentageOfCardiacPhase", 10, 50, "Cardiac Phase 10, 50", "NominalPercentageOfCardiacPhase=50"),
        ("ContrastBolusAgent", "Gadolinium, 5 ml", "", "none, Gadolinium 5 ml", "ContrastBolusAgent=none"),
        ("SequenceName", "fl3d/a", "fl3d/b", "fl3d/a, fl3d/b", "SequenceName=fl3d/b"),
    ],
)
def test_the_volumes_of_a_series_are_told_apart_and_can_be_chosen(
    tmp_path, scans, keyword, first, second, shown, choice
):
    scans.save([*volume(scans, 1, **{keyword: first}), *volume(scans, 2, **{keyword: second})], tmp_path)
    found = discover(tmp_path)
    (note,) = found.notes
    assert len(found.cases) == 2 and not found.faults and shown in note
    example = note.split("as in '")[1].removesuffix("'.")
    for select, number in ((example, None), (choice, 2)):
        (case,) = discover(tmp_path, select=select).cases
        if number:
            array, _ = ScanReader().get_data(case["image"])
            np.testing.assert_array_equal(array, scans.voxels().transpose(2, 1, 0) + number)
    said = " ".join([*found.notes, *(case["case"] for case in found.cases)])
    assert not any(time in said for time in ("1011", "2359", "20170503"))


@pytest.mark.parametrize(("keyword", "values"), [("EchoTime", (11, 92)), ("InversionTime", (200, 2500))])
def test_noise_in_what_scanners_measure_tells_nothing(tmp_path, scans, keyword, values):
    for number, value in enumerate(values):
        datasets = volume(scans, number)
        for index, dataset in enumerate(datasets):
            setattr(dataset, keyword, str(value + index * 1e-4))
        scans.save(datasets, tmp_path)
    found = discover(tmp_path)
    assert [case["case"].partition(keyword)[2] for case in found.cases] == sorted(map(str, values))
    assert len(discover(tmp_path, select=f"{keyword}={values[0]}").cases) == 1


@pytest.mark.parametrize(
    ("group", "keyword", "values", "shown"),
    [
        ("CTReconstructionSequence", "ConvolutionKernel", ("B30", "B70"), "Convolution Kernel B30, B70"),
        ("MRModifierSequence", "InversionTimes", ([200], [900]), "Inversion Times 200, 900"),
        ("FrameContentSequence", "FrameAcquisitionDateTime", ("20170503101112", "20170503101122"), "in order 1, 2"),
    ],
)
def test_what_the_frames_of_an_enhanced_object_differ_in_is_named(tmp_path, scans, group, keyword, values, shown):
    dataset = scans.enhanced()
    frames = list(dataset.PerFrameFunctionalGroupsSequence)
    both = []
    for value in values:
        for frame in copy.deepcopy(frames):
            item = frame[group][0] if group in frame else pydicom.Dataset()
            setattr(item, keyword, value)
            setattr(frame, group, [item])
            both.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = both
    dataset.NumberOfFrames, dataset.PixelData = 12, dataset.PixelData * 2
    scans.save([dataset], tmp_path)
    (fault,) = discover(tmp_path).faults
    assert shown in fault.message and "20170503" not in fault.message


@pytest.mark.parametrize(
    "orientation", [[1, 0.05, 0, -0.05, 1, 0], [1, 0, 0, 0, 2, 0], [0] * 6, ["nan", 0, 0, 0, 1, 0]]
)
@pytest.mark.parametrize("select", [None, "Orientation=axial"])
def test_damaged_orientations_never_make_a_volume_of_the_other_slices(tmp_path, scans, orientation, select):
    datasets = scans.series(slices=5)
    for dataset in datasets[2:]:
        dataset["ImageOrientationPatient"]._value = [str(value) for value in orientation]
    scans.save(datasets, tmp_path)
    found = discover(tmp_path, select=select)
    assert not found.cases and len(found.faults) == 1
    assert "5 files" in found.faults[0].message and "select," not in found.faults[0].message


@pytest.mark.parametrize(
    "keywords", [["PhotometricInterpretation"], ["SamplesPerPixel"], ["BitsStored", "HighBit"], ["PixelRepresentation"]]
)
def test_what_gives_pixels_their_meaning_is_missed_at_indexing(tmp_path, scans, keywords):
    datasets = scans.series()
    for keyword in keywords:
        delattr(datasets[3], keyword)
    scans.save(datasets, tmp_path)
    (fault,) = discover(tmp_path).faults
    assert f"its header lacks {pydicom.datadict.dictionary_description(keywords[0])}" in fault.message
    assert "uncompressed" not in fault.message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"RescaleSlope": "0", "RescaleIntercept": "0"}, "Rescale Slope is 0"),
        ({"RescaleSlope": "1e38", "RescaleIntercept": "0"}, "values would be infinite"),
        ({"RescaleSlope": "1", "RescaleIntercept": "-1e39"}, "values would be infinite"),
        ({"RescaleSlope": "inf", "RescaleIntercept": "0"}, "not a finite number"),
    ],
)
@pytest.mark.parametrize("enhanced", [False, True])
def test_a_scaling_that_leaves_no_values_is_refused(tmp_path, scans, values, message, enhanced):
    datasets = [scans.enhanced()] if enhanced else scans.series()
    scaled = datasets[0].PerFrameFunctionalGroupsSequence[2].PixelValueTransformationSequence[0] if enhanced else None
    for dataset in datasets if scaled is None else [scaled]:
        for keyword, value in values.items():
            setattr(dataset, keyword, value)
    scans.save(datasets, tmp_path)
    found = discover(tmp_path)
    assert not found.cases and message in found.faults[0].message


def csa(images):
    """Return Siemens's list of values with one entry, the number of images in a mosaic."""
    entry = b"NumberOfImagesInMosaic".ljust(64, b"\0") + struct.pack("<I4s3I", 1, b"US", 6, 6, 77)
    return b"SV10\4\3\2\1" + struct.pack("<2I", 1, 77) + entry + struct.pack("<4I", 8, 8, 77, 8) + images.ljust(8)


@pytest.mark.parametrize(
    ("number", "creator", "vr", "value", "mosaic"),
    [
        (0x0A, "SIEMENS MR HEADER", "US", 16, True),
        (0x0A, "SIEMENS MR HEADER", "US", 1, False),
        (0x0A, "ACME", "US", 16, False),
        (0x10, "SIEMENS CSA HEADER", "OB", csa(b"36\0"), True),
        (0x10, "SIEMENS CSA HEADER", "OB", csa(b"1\0"), False),
        (0x10, "SIEMENS CSA HEADER", "OB", csa(b"\0"), False),
        (0x10, "SIEMENS CSA HEADER", "OB", b"SV10", False),
    ],
)
def test_a_mosaic_is_known_by_the_elements_of_its_maker(tmp_path, scans, number, creator, vr, value, mosaic):
    datasets = scans.series()
    for dataset in datasets:
        block = dataset.private_block(0x0019 if vr == "US" else 0x0029, creator, create=True)
        block.add_new(number, vr, value)
    scans.save(datasets, tmp_path)
    found = discover(tmp_path)
    assert bool(found.faults) == mosaic != bool(found.cases)
    assert not mosaic or "it is a mosaic" in found.faults[0].message


@pytest.mark.parametrize(
    ("description", "protocol", "passed"),
    [
        ("3-pl Loc", "", True),
        ("T1", "AAHead_Scout", True),
        ("3 Pl", "", True),
        ("Local shim", "", False),
        ("", "", False),
    ],
)
def test_three_planes_that_are_named_as_a_localizer_are_passed_over(tmp_path, scans, description, protocol, passed):
    planes = [copy.deepcopy(scans.series(name)[0]) for name in ("axial", "sagittal", "coronal")]
    for image in planes:
        image.SOPInstanceUID, image.SeriesInstanceUID = generate_uid(), "1.2.3"
        image.SeriesDescription, image.ProtocolName = description, protocol
    scans.save([*planes, *scans.series()], tmp_path)
    found = discover(tmp_path)
    assert len(found.cases) == 1 and bool(found.faults) != passed
    assert found.notes == (["3 localizers were passed over."] if passed else [])
