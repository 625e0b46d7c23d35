"""What of a source's header is carried over into its DICOM SEG."""

import importlib.util
import shutil
import tracemalloc
from io import BytesIO
from pathlib import Path

import highdicom
import numpy as np
import pytest
from pydicom import Dataset, dcmread

from grata.data import discover, write_dicom_seg
from grata.data.carried import clean_header, decode_texts

SPEC = importlib.util.spec_from_file_location(
    "seg_conformance", Path(__file__).resolve().parents[2] / "scripts" / "seg_conformance.py"
)
SCRIPT = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(SCRIPT)
pytestmark = pytest.mark.filterwarnings("ignore")
SEGMENT = {"value": 1, "label": "Liver", "category": ["91723000", "SCT", "Anatomical Structure"],
           "type": ["10200004", "SCT", "Liver"]}  # fmt: skip


def read_back(**values):
    """Return a header with these values as a reader of DICOM gets them."""
    header = Dataset()
    SCRIPT.put(header, **values)
    file = BytesIO()
    header.save_as(file, implicit_vr=True, little_endian=True)
    file.seek(0)
    read = dcmread(file, force=True)
    decode_texts(read)
    return read


def segmentation_of(folder):
    (case,) = discover(folder).cases
    (labels := np.zeros((10, 8, 3), np.uint8))[2:5, 2:5] = 1
    write_dicom_seg(labels, case, [SEGMENT], folder / "seg.dcm")
    return highdicom.seg.segread(folder / "seg.dcm")


@pytest.fixture
def carried(tmp_path, scans):
    """Return a function that writes values as they are into a series, and returns the SEG of it."""

    def carried(**values):
        scans.save(scans.series(slices=3), tmp_path / "source")
        return segmentation_of(SCRIPT.spoiled(values, tmp_path / "in", tmp_path / "source"))

    return carried


# Kinds in which the segmentations had errors or were not written.
@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy, of Debian's dicom3tools, is not installed")
@pytest.mark.parametrize(
    "kind",
    [
        *("age_without_unit", "weight_too_long", "time_that_is_none", "name_of_two_values", "control_characters"),
        *("id_of_two_values", "smoking_unknown_term", "empty_sequence", "code_good_beside_a_bad_one"),
        *("reference_of_wrong_uids", "two_species", "trial_without_a_sponsor", "series_number_no_number"),
    ],
)
def test_a_validator_finds_no_error(tmp_path, kind):
    ((_, errors),) = SCRIPT.conformance(SCRIPT.spoiled(SCRIPT.KINDS[kind], tmp_path, slices=3))
    assert errors == []


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        *[("PatientAge", value) for value in ("42", "***", "042y", "42 years", "042Y\\043Y")],
        *[("PatientWeight", value) for value in ("70,5", "70.123456789012345678", "heavy", "nan", "70\\71")],
        *[("LastMenstrualDate", value) for value in ("20171301", "20170230", "20170101-", "2017-01-01")],
        *[("PatientBirthTime", value) for value in ("7pm", "256199", "10:11")],
        *[("SmokingStatus", value) for value in ("Y", "yes", "YES\\NO")],
        *[("PregnancyStatus", value) for value in (b"\x09\x00", b"\x01\x00\x02\x00", b"\x00\x00")],
        *[("StudyDescription", value) for value in ("s" * 65, "head\x07", "head\nneck", "head\\neck")],
        *[("NameOfPhysiciansReadingStudy", value) for value in ("A^B^C^D^E^F", "A=B=C=D", "A" * 65)],
        *[("PatientComments", value) for value in ("c" * 10241, "c\x00c", "c\x1bc")],
    ],
)
def test_an_optional_attribute_that_is_not_valid_is_left_out(keyword, value):
    header = read_back(PatientSize="1.75", **{keyword: value})
    clean_header(header)
    assert keyword not in header and header.PatientSize == 1.75


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        *[("PatientSex", value) for value in ("W", "female", "M\\F", "f")],
        *[("PatientBirthDate", value) for value in ("1961", "00000000", "24.08.1961")],
        *[("StudyTime", value) for value in ("25", "10:11:12", "noon")],
        *[("PatientName", value) for value in ("A^B^C^D^E^F", "A^B\\C^D", "A" * 65)],
        *[("AccessionNumber", value) for value in ("1" * 17, "1\\2", "1\x002")],
    ],
)
def test_an_attribute_that_must_be_there_is_made_empty(keyword, value):
    header = read_back(**{keyword: value})
    clean_header(header)
    assert header[keyword].is_empty


CODE = {"CodeValue": "24627-2", "CodingSchemeDesignator": "LN", "CodeMeaning": "Chest CT"}


@pytest.mark.parametrize(
    ("keyword", "item"),
    [
        ("ProcedureCodeSequence", {}),
        ("ProcedureCodeSequence", {**CODE, "CodeValue": "C" * 17}),
        ("ProcedureCodeSequence", {**CODE, "CodeMeaning": ""}),
        ("ReasonForVisitCodeSequence", {"CodeValue": "1", "CodeMeaning": "Pain"}),
        ("AdmittingDiagnosesCodeSequence", {**CODE, "CodingSchemeDesignator": "S" * 17}),
        ("ReferencedStudySequence", {"ReferencedSOPClassUID": "1.2.3"}),
        ("ReferencedStudySequence", {"ReferencedSOPClassUID": "MR", "ReferencedSOPInstanceUID": "1.2.3"}),
        ("ReferencedPatientSequence", {"ReferencedSOPClassUID": "1.2", "ReferencedSOPInstanceUID": "1.02"}),
        ("OtherPatientIDsSequence", {"PatientID": "4711"}),
        ("IssuerOfAccessionNumberSequence", {"UniversalEntityID": "1.2.3"}),
        ("ReferringPhysicianIdentificationSequence", {"InstitutionName": "Clinic"}),
    ],
)
def test_an_item_without_what_it_must_have_goes_alone(keyword, item):
    good = {
        "ReferencedStudySequence": {"ReferencedSOPClassUID": "1.2.3", "ReferencedSOPInstanceUID": "1.2.4"},
        "OtherPatientIDsSequence": {"PatientID": "4711", "TypeOfPatientID": "TEXT"},
    }.get(keyword, CODE)
    header = read_back(**{keyword: [SCRIPT.item(**item)]})
    clean_header(header)
    assert keyword not in header
    if keyword.endswith("CodeSequence") or keyword in ("ReferencedStudySequence", "OtherPatientIDsSequence"):
        header = read_back(**{keyword: [SCRIPT.item(**item), SCRIPT.item(**good)]})
        clean_header(header)
        (kept,) = header[keyword].value
        assert {element.keyword: element.value for element in kept} == good


def test_what_is_valid_is_carried_over_as_it_is(carried):
    values = {"PatientAge": "042Y", "PatientWeight": "70.5", "PatientComments": "first line\r\nsecond line",
              "StudyDescription": "Kopf", "SmokingStatus": "NO", "OtherPatientNames": "A^B\\C^D"}  # fmt: skip
    segmentation = carried(**values, ProcedureCodeSequence=[SCRIPT.item(**CODE)], TimezoneOffsetFromUTC="-0330",
                           BodyPartExamined="KNEE", Laterality="L")  # fmt: skip
    assert segmentation.PatientAge == "042Y" and segmentation.PatientWeight == 70.5
    assert segmentation.PatientComments == values["PatientComments"] and segmentation.StudyDescription == "Kopf"
    assert [str(name) for name in segmentation.OtherPatientNames] == ["A^B", "C^D"]
    assert segmentation.ProcedureCodeSequence[0].CodeMeaning == "Chest CT" and segmentation.PatientID == "KH-4711"
    assert segmentation.TimezoneOffsetFromUTC == "-0330"
    assert (segmentation.BodyPartExamined, segmentation.Laterality) == ("KNEE", "L")


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ({"BodyPartExamined": "HEAD AND NECK AND CHEST", "TimezoneOffsetFromUTC": "CET"}, {}),
        ({"BodyPartExamined": "knee", "Laterality": "L", "TimezoneOffsetFromUTC": "+01:00"}, {}),
        ({"BodyPartExamined": "KNEE", "Laterality": "left", "TimezoneOffsetFromUTC": "+2500"}, "BodyPartExamined"),
        ({"BodyPartExamined": "BRAIN", "Laterality": "R", "TimezoneOffsetFromUTC": "+0100"},
         ("BodyPartExamined", "TimezoneOffsetFromUTC")),
    ],
)  # fmt: skip
def test_part_side_and_time_zone_are_carried_over_where_they_are_valid(carried, values, kept):
    segmentation = carried(**values)
    for keyword in ("BodyPartExamined", "Laterality", "TimezoneOffsetFromUTC"):
        assert segmentation.get(keyword) == (values[keyword] if keyword in kept else None)


def test_parts_of_a_trial_and_of_an_animal_stand_together_or_not_at_all():
    trial = {"ClinicalTrialSponsorName": "S", "ClinicalTrialProtocolID": "P", "ClinicalTrialSubjectID": "1"}
    whole = read_back(**trial, PatientSpeciesDescription="Canis")
    clean_header(whole)
    assert whole.ClinicalTrialSponsorName == "S" and whole["ClinicalTrialSiteName"].is_empty
    assert whole["PatientBreedDescription"].is_empty and whole["PatientSexNeutered"].is_empty
    for missing in trial:
        part = read_back(**{**trial, missing: ""}, PatientBreedDescription="Beagle")
        clean_header(part)
        assert not any(keyword in part for keyword in (*trial, "ClinicalTrialSiteName", "PatientBreedDescription"))


FLAG, TYPE, PROTOCOL = "ConsentForDistributionFlag", "DistributionType", "ClinicalTrialProtocolID"


@pytest.mark.parametrize(
    "given, kept",
    [
        ({FLAG: "NO"}, {FLAG: "NO"}),
        ({FLAG: "NO", TYPE: "PUBLIC_RELEASE", PROTOCOL: "P"}, {FLAG: "NO"}),
        ({FLAG: "YES", TYPE: "PUBLIC_RELEASE", PROTOCOL: "P"}, {FLAG: "YES", TYPE: "PUBLIC_RELEASE"}),
        ({FLAG: "WITHDRAWN", TYPE: "NAMED_PROTOCOL", PROTOCOL: "P"},) * 2,
        ({FLAG: "YES", TYPE: "RESTRICTED_REUSE"},) * 2,
        # to what, is not said
        ({FLAG: "YES"}, None),
        ({FLAG: "WITHDRAWN", PROTOCOL: "P"}, None),
        ({FLAG: "YES", TYPE: "EVERYTHING", PROTOCOL: "P"}, None),
        ({TYPE: "PUBLIC_RELEASE"}, None),
        ({FLAG: "YES", TYPE: "NAMED_PROTOCOL"}, None),
    ],
)
def test_a_consent_says_to_what_or_is_left_out(given, kept):
    sequence = {"ConsentForClinicalTrialUseSequence": [SCRIPT.item(**given)]}
    header = read_back(**sequence)
    clean_header(header)
    found = [{e.keyword: e.value for e in item} for item in header.get("ConsentForClinicalTrialUseSequence", [])]
    assert found == ([] if kept is None else [kept])
    trial = read_back(**SCRIPT.TRIAL, **sequence)
    clean_header(trial)
    # the protocol of the trial need not be repeated
    if given == {FLAG: "YES", TYPE: "NAMED_PROTOCOL"}:
        assert trial.ConsentForClinicalTrialUseSequence[0].DistributionType == "NAMED_PROTOCOL"
    assert trial.ClinicalTrialProtocolID == "P1"


def test_bytes_that_are_no_value_do_not_keep_a_segmentation_from_being_written(carried):
    segmentation = carried(PatientWeight="heavy", SeriesNumber="3a", PregnancyStatus=b"\x01\x00\x00")
    assert "PatientWeight" not in segmentation and segmentation.SeriesNumber == 1000


# Python takes these for codecs; the first is one that decodes nothing.
@pytest.mark.parametrize("charset", ["undefined", "hex", "rot13"])
def test_a_text_that_cannot_be_decoded_deep_in_sequences_takes_no_memory(charset):
    inner = Dataset()
    inner.SpecificCharacterSet, inner.PatientName, inner.InstanceNumber = "ISO_IR 100", "A^B", 12
    for _ in range(11):
        outer = Dataset()
        outer.ReferencedImageSequence = [inner]
        inner = outer
    inner.PatientID = "KH-4711"
    file = BytesIO()
    inner.save_as(file, implicit_vr=False, little_endian=True)
    header = dcmread(BytesIO(file.getvalue().replace(b"ISO_IR 100", charset.ljust(10).encode())), force=True)
    tracemalloc.start()
    decode_texts(header)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**23 and header.PatientID == "KH-4711"
    for _ in range(11):
        header = header.ReferencedImageSequence[0]
    assert header.InstanceNumber == 12 and "PatientName" not in header
