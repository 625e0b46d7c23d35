"""What of a source's header may be carried over into a new DICOM object: what is valid by the standard."""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, TypeAlias

from pydicom import DataElement, Dataset
from pydicom.charset import convert_encodings, decode_element
from pydicom.config import RAISE
from pydicom.datadict import dictionary_VM, dictionary_VR
from pydicom.multival import MultiValue
from pydicom.valuerep import validate_value

from ..private import attribute_types

__all__ = ["carry_over", "clean_header", "decode_texts", "is_valid"]

_Types: TypeAlias = Mapping[tuple[str, ...], Mapping[str, str]]

_REQUIRED = ("patient", "general-study")
_OPTIONAL = ("clinical-trial-subject", "patient-study", "clinical-trial-study", "specimen")

# What pydicom lets pass: ranges of dates, which only a query may hold, control characters, further parts of a name.
_LINE = r"[^\x00-\x1f\x7f\\]*"
_LINES = r"[^\x00-\x08\x0b\x0e-\x1f\x7f]*"
_GROUP = r"[^\x00-\x1f\x7f\\^=]*(\^[^\x00-\x1f\x7f\\^=]*){0,4}"
_PATTERNS = {
    "DA": r"\d{8}",
    "TM": r"[\d.]+",
    "DT": r"\d+(\.\d+)?([+-]\d{4})?",
    "UI": r"[0-2](\.\d+)+",
    "TimezoneOffsetFromUTC": r"[+-](0\d|1[0-4])[0-5]\d",
    "LongCodeValue": ".{17,}",
    "PN": rf"{_GROUP}(={_GROUP}){{0,2}}",
    **dict.fromkeys(("LO", "SH", "UC"), _LINE),
    **dict.fromkeys(("LT", "ST", "UT"), _LINES),
}

_YES_OR_NO = ("YES", "NO")
_VALUES: Mapping[str, tuple[Any, ...]] = {
    "PatientSex": ("M", "F", "O"),
    "PatientSexNeutered": ("ALTERED", "UNALTERED"),
    "PatientIdentityRemoved": _YES_OR_NO,
    "QualityControlSubject": _YES_OR_NO,
    "SmokingStatus": (*_YES_OR_NO, "UNKNOWN"),
    "PregnancyStatus": (1, 2, 3, 4),
    "ConsentForDistributionFlag": (*_YES_OR_NO, "WITHDRAWN"),
    "DistributionType": ("NAMED_PROTOCOL", "RESTRICTED_REUSE", "PUBLIC_RELEASE"),
    # The other value, N, is what holds without it.
    "ContextGroupExtensionFlag": ("Y",),
    "Laterality": ("R", "L"),
}
"""Values that the standard enumerates, by attribute."""

_SPECIES = ("PatientSpeciesDescription", "PatientSpeciesCodeSequence")
_OF_ANIMALS = (
    "PatientBreedDescription", "PatientBreedCodeSequence", "BreedRegistrationSequence", "ResponsiblePerson",
    "ResponsibleOrganization", "PatientSexNeutered",
)  # fmt: skip
"""Attributes that must be there, possibly empty, where the patient is an animal."""
_STRAIN = (
    "StrainDescription", "StrainNomenclature", "StrainStockSequence", "StrainAdditionalInformation",
    "StrainCodeSequence", "GeneticModificationsSequence",
)  # fmt: skip

_TOGETHER = (
    ("ContextIdentifier", "MappingResource", "ContextGroupVersion"),
    ("ContextGroupExtensionFlag", "ContextGroupLocalVersion", "ContextGroupExtensionCreatorUID"),
    ("UniversalEntityID", "UniversalEntityIDType"),
    ("ResponsiblePerson", "ResponsiblePersonRole"),
    ("LongitudinalTemporalOffsetFromEvent", "LongitudinalTemporalEventType"),
)
"""Attributes of which all are there, or none."""

_ONE_OF = (("CodeValue", "LongCodeValue", "URNCodeValue"), ("InstitutionName", "InstitutionCodeSequence"))
"""Attributes of which one says what the others would."""

_CALENDAR = ("PatientBirthDateInAlternativeCalendar", "PatientDeathDateInAlternativeCalendar")
_NEEDS = (
    ("CodeValue", ("CodingSchemeDesignator",)),
    ("LongCodeValue", ("CodingSchemeDesignator",)),
    ("CodeMeaning", ("CodeValue", "LongCodeValue", "URNCodeValue")),
    ("PersonIdentificationCodeSequence", ("InstitutionName", "InstitutionCodeSequence")),
    ("PatientIdentityRemoved", ("DeidentificationMethod", "DeidentificationMethodCodeSequence")),
    *((keyword, ("PatientAlternativeCalendar",)) for keyword in _CALENDAR),
    ("PatientAlternativeCalendar", _CALENDAR),
    ("ClinicalTrialSponsorName", ("ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID")),
    ("DistributionType", ("ConsentForDistributionFlag",)),
    *((keyword, _SPECIES) for keyword in (*_OF_ANIMALS, *_STRAIN)),
)
"""Attributes that may only be there beside one of others."""

_SINGLE = (
    "AssigningAgencyOrDepartmentCodeSequence", "AssigningFacilitySequence", "AssigningJurisdictionCodeSequence",
    "BreedRegistryCodeSequence", "GeneticModificationsCodeSequence", "GeneticModificationsSequence",
    "InstitutionCodeSequence", "InstitutionalDepartmentTypeCodeSequence", "IssuerOfAccessionNumberSequence",
    "IssuerOfAdmissionIDSequence", "IssuerOfPatientIDQualifiersSequence", "IssuerOfServiceEpisodeIDSequence",
    "PatientSpeciesCodeSequence", "ReferencedPatientSequence", "ReferringPhysicianIdentificationSequence",
    "RequestingServiceCodeSequence", "SourcePatientGroupIdentificationSequence", "StrainSourceRegistryCodeSequence",
)  # fmt: skip
"""Sequences that may have a single item."""

_CONSENT = "ConsentForClinicalTrialUseSequence"
_PROTOCOL = ("ClinicalTrialProtocolID", "IssuerOfClinicalTrialProtocolID")
"""Attributes of a statement of consent that name the protocol to which consent was given."""

_NEVER = ("ReferencedPatientPhotoSequence",)
"""Attributes of which a new object has no use."""

_UNPAIRED = (
    "ABDOMEN", "ABDOMENPELVIS", "AORTA", "BACK", "BLADDER", "BRAIN", "CEREBELLUM", "CERVIX", "CHEST",
    "CHESTABDOMEN", "CHESTABDPELVIS", "CIRCLEOFWILLIS", "COCCYX", "COLON", "CORONARYARTERY", "CSPINE", "CTSPINE",
    "DUODENUM", "ESOPHAGUS", "FACE", "GALLBLADDER", "HEAD", "HEADNECK", "HEART", "ILEUM", "ILIUM", "JAW", "JEJUNUM",
    "LARYNX", "LIVER", "LSPINE", "LSSPINE", "MAXILLA", "MEDIASTINUM", "MOUTH", "NECK", "NECKCHEST",
    "NECKCHESTABDOMEN", "NECKCHESTABDPELV", "NOSE", "PANCREAS", "PELVIS", "PENIS", "PHARYNX", "PROSTATE", "RECTUM",
    "SCALP", "SKULL", "SPINE", "SPLEEN", "SSPINE", "STERNUM", "STOMACH", "THYMUS", "THYROID", "TLSPINE", "TONGUE",
    "TRACHEA", "TSPINE", "URETHRA", "UTERUS", "VAGINA", "VULVA", "WHOLEBODY",
)  # fmt: skip
"""Body parts of the standard (PS3.16, annex L) that are not paired; only a paired one may have a side."""


def clean_header(header: Dataset) -> None:
    """Leave out of a header what a new object may not carry over: whatever of patient and study is not valid.

    An attribute that must be there, though it may be empty (type 2), is made empty; any other is removed, and so is an
    item of a sequence without what it must have. Nothing that describes the image is touched.

    Args:
        header: header of an image, its text decoded; it is changed in place.
    """
    modules = {module: attribute_types(module) for module in (*_REQUIRED, *_OPTIONAL)}
    for types in modules.values():
        _clean(header, types)
    _settle(header)
    _settle_consent(header, _is_whole(header, modules["clinical-trial-subject"][()]))
    for module, types in modules.items():
        known = types[()]
        if module in _REQUIRED or (_is_whole(header, known) and any(keyword in header for keyword in known)):
            _complete(header, known)
        else:
            _remove(header, known)
    if any(keyword in header for keyword in _SPECIES):
        _complete(header, dict.fromkeys(_OF_ANIMALS, "2"))


def carry_over(header: Dataset, new: Dataset) -> None:
    """Copy what else holds for a new object: body part, side and time zone of the series, where they are valid.

    Args:
        header: header of an image of the series.
        new: object to copy to.
    """
    for keyword in ("BodyPartExamined", "Laterality", "TimezoneOffsetFromUTC"):
        if header.get(keyword) and is_valid(header[keyword]):
            new[keyword] = header[keyword]
    if new.get("BodyPartExamined", _UNPAIRED[0]) in _UNPAIRED:
        new.pop("Laterality", None)


def is_valid(element: DataElement) -> bool:
    """Return whether the values of an element are valid, and not more than it may have; a sequence is not."""
    vr = dictionary_VR(element.tag)
    values = element.value if isinstance(element.value, MultiValue) else [element.value]
    if "SQ" in (vr, element.VR) or not _is_count(len(values), dictionary_VM(element.tag)):
        return False
    return all(value in (None, "") or _is_valid(element.keyword, vr, value) for value in values)


def decode_texts(dataset: Dataset, encodings: Sequence[str] = ()) -> None:
    """Decode the texts of a data set and of the items in it, and remove what has no value of its kind.

    ``Dataset.decode`` does not serve: at each level its message repeats that of the level below more than twice, which
    fills the memory where an element is damaged ten levels down.

    Args:
        dataset: header of an image, or an item; it is changed in place.
        encodings: Python's names of the character sets around an item, which may have its own.
    """
    # One that cannot be read stands for nothing.
    with suppress(Exception):
        encodings = convert_encodings(dataset["SpecificCharacterSet"].value)
    for tag in list(dataset.keys()):
        try:
            element = dataset[tag]
            if element.VR != "SQ":
                decode_element(element, list(encodings))
        # pydicom raises any kind of exception for bytes that it cannot convert.
        except Exception:  # noqa: BLE001
            del dataset[tag]
            continue
        for item in element.value if element.VR == "SQ" else ():
            decode_texts(item, encodings)


def _is_count(count: int, multiplicity: str) -> bool:
    least, _, greatest = multiplicity.partition("-")
    return count >= int(least) and (greatest.endswith("n") or count <= int(greatest or least))


def _is_valid(keyword: str, vr: str, value: Any) -> bool:
    if keyword in _VALUES:
        return value in _VALUES[keyword]
    if vr in ("DS", "IS"):
        value = str(getattr(value, "original_string", value))
    elif not isinstance(value, (int, float)):
        value = str(value)
    try:
        validate_value(vr, value, RAISE)
        if vr == "DA":
            datetime.strptime(value, "%Y%m%d")
    except ValueError:
        return False
    pattern = _PATTERNS.get(keyword) or _PATTERNS.get(vr)
    return pattern is None or re.fullmatch(pattern, value) is not None


def _clean(dataset: Dataset, types: _Types, path: tuple[str, ...] = ()) -> None:
    """Remove, or make empty, what is not valid of a module's attributes in a data set."""
    for keyword, kind in types[path].items():
        if keyword in dataset and keyword != "StudyInstanceUID":
            element = _cleaned(dataset[keyword], types, (*path, keyword))
            dataset[keyword] = element
            if element.is_empty and not kind.startswith("2"):
                del dataset[keyword]


def _cleaned(element: DataElement, types: _Types, path: tuple[str, ...]) -> DataElement:
    """Return an element without what is not valid in it, with the VR that the standard gives it."""
    vr = dictionary_VR(element.tag)
    if element.VR == vr == "SQ" and element.keyword not in _NEVER:
        items = [item for item in element.value if _clean_item(item, types, path)]
        return DataElement(element.tag, vr, [] if len(items) > 1 and element.keyword in _SINGLE else items)
    return DataElement(element.tag, vr, element.value if is_valid(element) else None)


def _clean_item(item: Dataset, types: _Types, path: tuple[str, ...]) -> bool:
    """Clean an item of a sequence, and return whether it may be kept."""
    known = types.get(path, {})
    for element in [element for element in item if element.keyword not in known]:
        del item[element.tag]
    if not len(item):
        return False
    _clean(item, types, path)
    _settle(item)
    _complete(item, known)
    return len(item) > 0 and _is_whole(item, known)


def _settle(dataset: Dataset) -> None:
    """Remove what may not stand alone, or not beside what else there is."""
    for keywords in _ONE_OF:
        _remove(dataset, [keyword for keyword in keywords if keyword in dataset][1:])
    for keyword, others in _NEEDS:
        if not any(other in dataset for other in others):
            dataset.pop(keyword, None)
    for keywords in _TOGETHER:
        if not all(keyword in dataset for keyword in keywords):
            _remove(dataset, keywords)


def _settle_consent(header: Dataset, has_protocol: bool) -> None:
    """Keep the statements of consent that say what was consented to, without what does not go with them.

    Args:
        header: header of an image; it is changed in place.
        has_protocol: whether it names the protocol of its trial, which a statement need not repeat.
    """
    given = header.get(_CONSENT)
    kept = [item for item in given or () if _is_consent(item, has_protocol)]
    if given is not None:
        header[_CONSENT] = DataElement(header[_CONSENT].tag, "SQ", kept)
        if not kept:
            del header[_CONSENT]


def _is_consent(item: Dataset, has_protocol: bool) -> bool:
    """Remove from a statement of consent what its flag and type exclude; return whether the rest says enough.

    Args:
        item: item of the sequence; it is changed in place.
        has_protocol: whether the header names the protocol of its trial.
    """
    refused = item.ConsentForDistributionFlag == "NO"
    if refused:
        item.pop("DistributionType", None)
    if item.get("DistributionType") != "NAMED_PROTOCOL":
        _remove(item, _PROTOCOL)
        return refused or "DistributionType" in item
    return has_protocol or "ClinicalTrialProtocolID" in item


def _is_whole(dataset: Dataset, known: Mapping[str, str]) -> bool:
    return all(keyword in dataset for keyword, kind in known.items() if kind == "1")


def _complete(dataset: Dataset, known: Mapping[str, str]) -> None:
    for keyword, kind in known.items():
        if kind == "2" and keyword not in dataset:
            setattr(dataset, keyword, None)


def _remove(dataset: Dataset, known: Iterable[str]) -> None:
    for keyword in known:
        dataset.pop(keyword, None)
