"""Count what a validator finds wrong in the DICOM SEG of series with odd headers.

    python scripts/seg_conformance.py                 # the kinds below, made of the hippocampus bundle's sample series
    python scripts/seg_conformance.py ../shared/data  # the series of these folders

`dciodvfy`, of Debian's package `dicom3tools`, judges a DICOM SEG of a simple mask of each series. The table gives the
number of errors of each; the last line is the total.
"""

import argparse
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from pydicom import DataElement, Dataset, dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.uid import ImplicitVRLittleEndian

from grata.data import discover, write_dicom_seg
from grata.data.dicom import read_series, series_geometry
from grata.errors import GrataError

SAMPLE = Path(__file__).resolve().parents[1] / "bundles" / "hippocampus_mri_segmentation" / "sample_scans" / "dicom"
SEGMENT = {
    "value": 1,
    "label": "Hippocampus",
    "category": ["91723000", "SCT", "Anatomical Structure"],
    "type": ["5366008", "SCT", "Hippocampus"],
}
Value = str | bytes | list[Dataset]


def item(**values: Value) -> Dataset:
    """Return a data set whose values are stored as they are, valid or not."""
    dataset = Dataset()
    put(dataset, **values)
    return dataset


def put(dataset: Dataset, **values: Value) -> None:
    """Store values as they are, valid or not."""
    for keyword, value in values.items():
        tag = tag_for_keyword(keyword)
        assert tag is not None, keyword
        if isinstance(value, list):
            dataset.add(DataElement(tag, "SQ", value))
            continue
        raw = value.encode() if isinstance(value, str) else value
        # as bytes, which a file without VR hands to the reader as what the dictionary says
        dataset.add(DataElement(tag, "OB", raw + b" " * (len(raw) % 2)))


def code(value: str = "T-D1100", scheme: str = "SRT", meaning: str = "Head", **more: Value) -> Dataset:
    """Return the item of a code sequence."""
    return item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning, **more)


UID = "1.2.826.0.1.3680043.8.498.1"
MR = "1.2.840.10008.5.1.4.1.1.4"
TRIAL = {
    "ClinicalTrialSponsorName": "Sponsor",
    "ClinicalTrialProtocolID": "P1",
    "ClinicalTrialProtocolName": "",
    "ClinicalTrialSiteID": "",
    "ClinicalTrialSiteName": "",
    "ClinicalTrialSubjectID": "S1",
}

KINDS: dict[str, Mapping[str, Value]] = {
    "nothing_wrong": {},
    "age_without_unit": {"PatientAge": "42"},
    "age_stars": {"PatientAge": "***"},
    "age_lower_case": {"PatientAge": "042y"},
    "age_of_two_values": {"PatientAge": "042Y\\043Y"},
    "weight_no_number": {"PatientWeight": "unknown"},
    "weight_too_long": {"PatientWeight": "70.123456789012345678"},
    "weight_decimal_comma": {"PatientWeight": "70,5"},
    "size_of_two_values": {"PatientSize": "1.7\\1.8"},
    "body_mass_not_finite": {"PatientBodyMassIndex": "nan"},
    "sex_w": {"PatientSex": "W"},
    "sex_lower_case": {"PatientSex": "f"},
    "sex_of_two_values": {"PatientSex": "M\\F"},
    "neutered_of_a_human": {"PatientSexNeutered": ""},
    "neutered_unknown_term": {"PatientSexNeutered": "NO"},
    "smoking_unknown_term": {"SmokingStatus": "Y"},
    "pregnancy_out_of_range": {"PregnancyStatus": b"\x09\x00"},
    "pregnancy_of_wrong_length": {"PregnancyStatus": b"\x01\x00\x00"},
    "quality_control_unknown_term": {"QualityControlSubject": "N"},
    "identity_removed_without_method": {"PatientIdentityRemoved": "YES"},
    "identity_removed_unknown_term": {"PatientIdentityRemoved": "TRUE"},
    "type_of_id_unknown_term": {"TypeOfPatientID": "MRN"},
    "date_in_words": {"StudyDate": "3 May 2017", "PatientBirthDate": "1961-08-24"},
    "date_that_is_none": {"StudyDate": "20170230", "LastMenstrualDate": "20171301"},
    "date_of_the_old_form": {"StudyDate": "2017.05.03"},
    "date_range": {"StudyDate": "20170101-20170503", "LastMenstrualDate": "20170101-"},
    "time_that_is_none": {"StudyTime": "256199", "PatientBirthTime": "7pm"},
    "time_with_colons": {"StudyTime": "10:11:12"},
    "name_of_six_components": {"PatientName": "A^B^C^D^E^F"},
    "name_of_four_groups": {"ReferringPhysicianName": "A=B=C=D"},
    "name_too_long": {"PatientName": "A" * 70, "NameOfPhysiciansReadingStudy": "B" * 70},
    "name_of_two_values": {"PatientName": "A^B\\C^D"},
    "id_too_long": {"PatientID": "4" * 70, "StudyID": "5" * 20, "AccessionNumber": "6" * 20},
    "id_of_two_values": {"PatientID": "1\\2", "StudyID": "3\\4", "AccessionNumber": "5\\6"},
    "control_characters": {"StudyDescription": "brain\x07\x1f", "PatientID": "4\x007"},
    "new_line_in_a_line": {"StudyDescription": "brain\r\nT1", "Occupation": "baker\n"},
    "comments_too_long": {"PatientComments": "c" * 10300, "AdditionalPatientHistory": "h" * 10300},
    "description_too_long": {"StudyDescription": "s" * 90, "AdmittingDiagnosesDescription": "d" * 90},
    "character_set_unknown": {"SpecificCharacterSet": "LATIN-1", "PatientName": "Müller^Jörg".encode("latin-1")},
    "character_set_wrong": {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Müller^Jörg".encode("latin-1")},
    "character_set_missing": {"PatientName": "Müller^Jörg".encode("latin-1"), "StudyDescription": "Schädel".encode()},
    "character_set_of_several": {"SpecificCharacterSet": "\\ISO 2022 IR 87\\nonsense", "PatientName": "Yamada^Tarou"},
    "japanese": {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう"},
    "two_codes_in_one": {"ProcedureCodeSequence": [code(LongCodeValue="L" * 20, URNCodeValue="urn:oid:1.2")]},
    "two_issuers": {"IssuerOfAccessionNumberSequence": [item(LocalNamespaceEntityID=name) for name in "AB"]},
    "empty_sequence": {"ProcedureCodeSequence": [], "ReasonForPerformedProcedureCodeSequence": []},
    "sequence_of_an_empty_item": {"ProcedureCodeSequence": [Dataset()]},
    "code_too_long": {"ProcedureCodeSequence": [code("C" * 20)], "AdmittingDiagnosesCodeSequence": [code("D" * 40)]},
    "code_scheme_too_long": {"ProcedureCodeSequence": [code(scheme="S" * 20)]},
    "code_without_meaning": {"ProcedureCodeSequence": [item(CodeValue="1", CodingSchemeDesignator="L")]},
    "code_of_empty_values": {"ProcedureCodeSequence": [code("", "", "")]},
    "code_without_scheme": {"ProcedureCodeSequence": [item(CodeValue="1", CodeMeaning="Head")]},
    "code_with_an_empty_version": {"ProcedureCodeSequence": [code(CodingSchemeVersion="", ContextUID="x")]},
    "code_good_beside_a_bad_one": {"ProcedureCodeSequence": [code(), code("C" * 20), Dataset()]},
    "code_with_a_bad_equivalent": {"ProcedureCodeSequence": [code(EquivalentCodeSequence=[code("C" * 20)])]},
    "two_species": {"PatientSpeciesCodeSequence": [code("L-80A00"), code("L-80700")]},
    "reference_without_an_instance": {"ReferencedStudySequence": [item(ReferencedSOPClassUID=MR)]},
    "reference_of_wrong_uids": {
        "ReferencedStudySequence": [item(ReferencedSOPClassUID="MR", ReferencedSOPInstanceUID="1.02.3")],
        "ReferencedPatientSequence": [item(ReferencedSOPClassUID="", ReferencedSOPInstanceUID=UID)],
    },
    "reference_uid_too_long": {
        "ReferencedStudySequence": [item(ReferencedSOPClassUID=MR, ReferencedSOPInstanceUID="1." + "2" * 70)]
    },
    "other_id_without_type": {"OtherPatientIDsSequence": [item(PatientID="4711")]},
    "other_id_of_empty_values": {"OtherPatientIDsSequence": [item(PatientID="", TypeOfPatientID="TEXT")]},
    "issuer_without_anything": {"IssuerOfAccessionNumberSequence": [Dataset()], "IssuerOfAdmissionIDSequence": []},
    "issuer_without_its_type": {"IssuerOfAccessionNumberSequence": [item(UniversalEntityID="1.2.3")]},
    "issuer_of_unknown_type": {
        "IssuerOfAccessionNumberSequence": [item(UniversalEntityID="1.2.3", UniversalEntityIDType="OID")]
    },
    "physician_without_code": {"ReferringPhysicianIdentificationSequence": [item(InstitutionName="Clinic")]},
    "physician_of_a_bad_code": {
        "ReferringPhysicianIdentificationSequence": [
            item(InstitutionName="Clinic", PersonIdentificationCodeSequence=[code("C" * 20)])
        ]
    },
    "physician_without_an_institution": {
        "PhysiciansOfRecordIdentificationSequence": [item(PersonIdentificationCodeSequence=[code()])]
    },
    "trial_without_a_sponsor": {"ClinicalTrialProtocolID": "P1", "ClinicalTrialSubjectID": "S1"},
    "trial_of_an_empty_sponsor": {**TRIAL, "ClinicalTrialSponsorName": ""},
    "trial_without_a_subject": {**TRIAL, "ClinicalTrialSubjectID": ""},
    "trial_point_without_an_event": {"LongitudinalTemporalOffsetFromEvent": b"8" * 8},
    "trial_consent_without_a_flag": {"ConsentForClinicalTrialUseSequence": [item(DistributionType="NAMED_PROTOCOL")]},
    "trial_consent_to_nothing": {
        "ConsentForClinicalTrialUseSequence": [
            item(ConsentForDistributionFlag="YES"),
            item(ConsentForDistributionFlag="YES", DistributionType="NAMED_PROTOCOL", ClinicalTrialProtocolID="P1"),
        ]
    },
    "responsible_without_a_role": {"ResponsiblePerson": "A^B", "ResponsiblePersonRole": ""},
    "breed_without_a_species": {"PatientBreedDescription": "Beagle", "PatientBreedCodeSequence": []},
    "strain_without_a_registry": {"StrainStockSequence": [item(StrainStockNumber="1")]},
    "calendar_unknown": {"PatientBirthDateInAlternativeCalendar": "5721", "PatientAlternativeCalendar": "JEWISH"},
    "calendar_missing": {"PatientBirthDateInAlternativeCalendar": "5721"},
    "photo_of_nothing": {"ReferencedPatientPhotoSequence": [Dataset()]},
    "body_part_too_long": {"BodyPartExamined": "HEAD AND NECK AND CHEST"},
    "body_part_in_lower_case": {"BodyPartExamined": "Brain (t1)"},
    "body_part_of_two_values": {"BodyPartExamined": "HEAD\\NECK"},
    "laterality_unknown": {"Laterality": "B"},
    "laterality_in_words": {"Laterality": "left"},
    "time_zone_in_words": {"TimezoneOffsetFromUTC": "CET"},
    "time_zone_with_a_colon": {"TimezoneOffsetFromUTC": "+01:00"},
    "time_zone_out_of_range": {"TimezoneOffsetFromUTC": "+2500"},
    "series_number_no_number": {"SeriesNumber": "3a", "InstanceNumber": "x"},
    "series_number_too_great": {"SeriesNumber": "2147483647"},
    "specimen_without_a_description": {"ContainerIdentifier": "C1", "SpecimenDescriptionSequence": []},
    "private_in_a_code": {"ProcedureCodeSequence": [code(PrivateInformation=b"1")]},
}  # fmt: skip


def spoiled(values: Mapping[str, Value], folder: Path, source: Path = SAMPLE, slices: int | None = None) -> Path:
    """Write a series with odd headers into a folder, and return the folder.

    Args:
        values: values to store as they are, as above.
        folder: folder to write to.
        source: folder of a good series.
        slices: number of slices; None: all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.rglob("*.dcm"))[:slices]:
        dataset = dcmread(path)
        rest = dict(values)
        character_set = rest.pop("SpecificCharacterSet", None)
        put(dataset, **rest)
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        if character_set is not None:
            dataset.pop("SpecificCharacterSet", None)
        dataset.save_as(folder / path.name, implicit_vr=True, little_endian=True)
        if character_set is not None:
            _declare(character_set.encode(), folder / path.name)
    return folder


def _declare(character_set: bytes, path: Path) -> None:
    """Write a character set, known or not, as the first element of a file; pydicom would refuse to write others."""
    content = path.read_bytes()
    start = 144 + dcmread(path, stop_before_pixels=True).file_meta.FileMetaInformationGroupLength
    character_set += b" " * (len(character_set) % 2)
    element = struct.pack("<HHL", 0x0008, 0x0005, len(character_set)) + character_set
    path.write_bytes(content[:start] + element + content[start:])


def validate(path: Path) -> list[str]:
    """Return the errors that dciodvfy finds in a file."""
    told = subprocess.run(["dciodvfy", path], check=False, capture_output=True, text=True, errors="replace").stderr
    return [line for line in told.splitlines() if line.startswith("Error")]


def conformance(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Write the DICOM SEG of each series of a folder, and yield the name of its case and the errors in it."""
    for case in discover(folder).cases:
        if case["format"] != "dicom":
            continue
        shape = series_geometry(read_series(case["image"])).spatial_shape
        labels = np.zeros(shape, np.uint8)
        labels[tuple(slice(length // 4, length // 2 + 1) for length in shape)] = 1
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "seg.dcm"
            try:
                write_dicom_seg(labels, case, [SEGMENT], path)
                yield case["case"], validate(path)
            except GrataError as error:
                yield case["case"], [f"Error - not written: {error}"]


def report(folders: Mapping[str, Callable[[], Path]], show: bool) -> int:
    total = series = 0
    for name, make in folders.items():
        for case, errors in conformance(make()):
            print(f"{len(errors):4}  {name}  {case if show else ''}".rstrip())
            for error in errors if show else ():
                print(f"        {error}")
            total, series = total + len(errors), series + 1
    print(f"{total:4}  errors in the DICOM SEG of {series} series")
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="folders of DICOM series; none: the kinds")
    parser.add_argument("--show", action="store_true", help="show each error")
    parser.add_argument("--slices", type=int, default=6, help="number of slices of the kinds' series")
    options = parser.parse_args()
    if not shutil.which("dciodvfy"):
        sys.exit("dciodvfy is not installed. Install Debian's package dicom3tools.")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        kinds = {kind: lambda kind=kind: spoiled(KINDS[kind], root / kind, slices=options.slices) for kind in KINDS}
        given = {str(folder): lambda folder=folder: folder for folder in options.folders}
        sys.exit(1 if report(given or kinds, options.show) else 0)


if __name__ == "__main__":
    main()
