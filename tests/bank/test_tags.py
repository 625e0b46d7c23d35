import shutil
from pathlib import Path

import pydicom
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.transforms import LoadImaged
from pydicom.datadict import tag_for_keyword

from grata.bank import SCANNER, AdapterBank, check_tags, scanner_tags
from grata.bank.bank import entry_name
from grata.bank.tags import _DEVICE
from grata.data import ScanReader
from grata.errors import GrataError

SHARED = Path(__file__).parents[3] / "shared" / "data" / "hippocampus_mri" / "dicom"


@pytest.fixture(scope="session")
def slices(bundle) -> list[Path]:
    return sorted((bundle / "sample_scans" / "dicom" / "right").glob("*.dcm"))


@pytest.fixture
def series(slices, tmp_path) -> list[Path]:
    """Three slices of a series with tags of a scanner and a patient."""
    folder = tmp_path / "Mustermann_Erika"
    folder.mkdir()
    for index, path in enumerate(slices[:3]):
        dataset = pydicom.dcmread(path)
        dataset.Manufacturer, dataset.ManufacturerModelName, dataset.StationName = "ACME ", "Ring 3000", "MRC-1"
        dataset.MagneticFieldStrength = "1.494"
        dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = "Mustermann^Erika", "KH-4711", "19610824"
        dataset.save_as(folder / f"{index}.dcm")
    return sorted(folder.iterdir())


EXPECTED = {
    "Manufacturer": "ACME",
    "ManufacturerModelName": "Ring 3000",
    "StationName": "MRC-1",
    "MagneticFieldStrength": "1.5",
}


def load(source, reader, items=1):
    transform = LoadImaged(keys="image", reader=reader, ensure_channel_first=True, image_only=True)
    return next(iter(DataLoader(Dataset([{"image": source}] * items, transform), batch_size=items)))["image"]


READS = [(reader, what) for reader in ("ITKReader", "PydicomReader") for what in ("folder", "file")]


@pytest.mark.parametrize(("reader", "what"), [*READS, (ScanReader, "files")])
def test_the_scanner_is_the_same_by_every_reader(reader, what, series):
    source = {"folder": str(series[0].parent), "file": str(series[0]), "files": [str(path) for path in series]}[what]
    assert AdapterBank("bank").key_of(load(source, reader)) == EXPECTED
    assert AdapterBank("bank").key_of(load(source, reader, items=2)) == EXPECTED


def test_tags_in_the_metadata_come_first():
    itk = {"0008|0070": ["Acme"], "0018|0087": ["3 "], "filename_or_obj": ["nowhere.dcm"]}
    assert scanner_tags(itk, SCANNER, 0) == {"Manufacturer": "Acme", "MagneticFieldStrength": "3"}
    pydicom_json = {"00080070": {"vr": "LO", "Value": ["Acme"]}, "00180087": {"vr": "DS", "Value": [3.0]}}
    assert scanner_tags(pydicom_json, SCANNER) == scanner_tags(itk, SCANNER, 0)
    empty = {"00080070": {"vr": "LO"}, "00180087": {"vr": "DS", "Value": [3.0]}}
    assert scanner_tags(empty, SCANNER) == {"MagneticFieldStrength": "3"}


def test_a_file_that_is_not_dicom_gives_no_tags(bundle, tmp_path):
    nifti = next((bundle / "sample_scans" / "nifti").glob("*.nii.gz"))
    for path in (nifti, tmp_path / "missing.dcm", tmp_path, ""):
        assert scanner_tags({"filename_or_obj": str(path)}, SCANNER) == {}
    assert scanner_tags({}, SCANNER) == {}


@pytest.mark.parametrize(
    ("written", "read"),
    [("1.5", "1.5"), ("1.494", "1.5"), ("15000", "1.5"), ("2.8936", "3"), ("3.0", "3"), ("7", "7"), ("0.35", "0.35")]
    + [("0.2", "0.2"), ("0.5501", "0.55"), ("1", "1")],
)
def test_a_magnet_is_the_same_however_a_software_writes_its_field(written, read):
    assert scanner_tags({"0018|0087": written}, SCANNER) == {"MagneticFieldStrength": read}


REFUSED = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientPosition", "OtherPatientIDs")
REFUSED += ("StudyInstanceUID", "SOPInstanceUID", "DeviceUID", "StudyDate", "AcquisitionDateTime", "ContentTime")
REFUSED += ("AccessionNumber", "StudyID", "OperatorsName", "ReferringPhysicianName", "DateOfLastCalibration")
REFUSED += ("AdmissionID", "RequestedProcedureID", "StudyDescription", "PixelData", "AcquisitionComments")
# Group 0018 too has tags about the patient's body, and free text.
REFUSED += ("HeartRate", "BodyPartExamined", "InterventionDrugName", "ContrastBolusAgent", "ProtocolName")


@pytest.mark.parametrize("keyword", REFUSED)
def test_what_is_not_of_the_device_is_never_a_key(keyword):
    assert pydicom.datadict.tag_for_keyword(keyword)
    with pytest.raises(GrataError, match=f"bank#tags: {keyword} is not allowed"):
        AdapterBank("bank", tags=["Manufacturer", keyword])


def test_a_refusal_lists_what_is_allowed():
    with pytest.raises(GrataError) as refused:
        check_tags(["ProtocolName"])
    named = str(refused.value).rpartition("some of ")[2].rstrip(".").split(", ")
    assert set(check_tags(named)) == set(named) >= set(SCANNER)


@pytest.mark.parametrize("tags", ["Manufacturer", [], ["Manufaktur"], [3], None])
def test_words_that_are_not_tags_are_refused(tags):
    with pytest.raises(GrataError, match="bank#tags"):
        check_tags(tags)


def test_tags_of_the_device_can_be_chosen():
    tags = ["InstitutionName", "DeviceSerialNumber", "ReceiveCoilName", "SliceThickness"]
    meta = {"0008|0080": "North", "0018|1000": "42", "0018|0050": "1.2001"}
    expected = {"InstitutionName": "North", "DeviceSerialNumber": "42", "SliceThickness": "1.2"}
    assert scanner_tags(meta, check_tags(tags)) == expected


def test_names_of_entries_are_readable_and_never_the_same_for_two_keys():
    texts = [
        "Müller",
        "Muller",
        "muller",
        "MULLER",
        "Mul ler",
        "mul-ler",
        "../../etc/passwd",
        "con",
        "日本",
        "日",
        "a" * 300,
    ]
    texts += ["a" * 299, "unknown ", "."]
    keys = [{"site": text} for text in texts] + [{"Manufacturer": texts[0]}, {"Manufacturer": "a", "StationName": "b"}]
    keys += [{"Manufacturer": "a b"}, {"Manufacturer": "a", "ManufacturerModelName": "b"}, {}]
    names = [entry_name(key) for key in keys]
    assert len({name.lower() for name in names}) == len(names)
    assert all(name.isascii() and name.replace("-", "").isalnum() and len(name) < 100 for name in names)
    assert names[0].startswith("muller-") and names[-1] == "unknown"


def test_the_order_of_tags_makes_no_other_entry(series):
    image = load(str(series[0].parent), "ITKReader")
    banks = [AdapterBank("bank", tags) for tags in (SCANNER, SCANNER[::-1], [*SCANNER, *SCANNER])]
    assert len({entry_name(bank.key_of(image)) for bank in banks}) == 1


def test_a_given_site_comes_before_the_scanner(series):
    image = load(str(series[0].parent), "ITKReader")
    bank = AdapterBank("bank")
    assert bank.key_of(image, ["north"]) == {"site": "north"}
    for unknown in ([], [""], ["unknown"]):
        assert bank.key_of(image, unknown) == EXPECTED
    assert bank.key_of(torch.rand(2, 1, 8, 8), ["unknown", ""]) == {}


def test_a_batch_of_several_sites_is_refused():
    with pytest.raises(GrataError, match="batch_size to 1"):
        AdapterBank("bank").key_of(torch.rand(2, 1, 8, 8), ["north", "south"])
    with pytest.raises(GrataError, match="batch_size to 1"):
        AdapterBank("bank").key_of(torch.rand(2, 1, 8, 8), [], {"0008|0070": ["Acme", "Other"]})


@pytest.mark.skipif(not SHARED.is_dir(), reason="the studies are not part of the repository")
def test_two_scanners_of_real_studies_are_distinguished(tmp_path):
    def key(series):
        return scanner_tags({"filename_or_obj": str(SHARED / series)}, SCANNER)

    ge = {
        "Manufacturer": "GE MEDICAL SYSTEMS",
        "ManufacturerModelName": "DISCOVERY MR750",
        "MagneticFieldStrength": "3",
    }
    siemens = {"Manufacturer": "SIEMENS", "ManufacturerModelName": "Espree", "MagneticFieldStrength": "1.5"}
    assert key("Study1/12-T1post-05670") == ge
    assert key("Study3/11-T1post-18670") == siemens
    # A series that a workstation derived does not name its scanner any more.
    assert key("Study1/13_HCropVolume") == key("Study3/11_HCropVolume") == {}
    assert entry_name(ge).startswith("ge-medical-systems-discovery-mr750-3-")


def test_a_series_without_its_first_file_is_still_known(series):
    shutil.copy(__file__, series[0].parent / "0.txt")
    series[0].write_bytes(b"")
    assert scanner_tags({"filename_or_obj": str(series[0].parent)}, SCANNER) == EXPECTED


def test_tags_come_in_the_order_of_dicom():
    assert list(check_tags(_DEVICE)) == sorted(_DEVICE, key=tag_for_keyword) and set(SCANNER) < set(_DEVICE)
