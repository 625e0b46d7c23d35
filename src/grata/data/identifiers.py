"""Keep the patient's identity out of everything that is shown, logged or named."""

import re
from collections.abc import Iterable

from pydicom import Dataset

__all__ = ["patient_identifiers", "remove_identifiers"]

REMOVED = "[removed]"
# Shorter strings ("Li", "3") would blank out half of every path.
_SHORTEST = 3


def patient_identifiers(header: Dataset) -> frozenset[str]:
    """Return the strings of a DICOM header that identify a patient or a visit.

    Args:
        header: any DICOM data set.

    Returns:
        The components of the patient's and the physicians' names, the patient IDs, the accession number and the
        dates (``YYYYMMDD``), each at least three characters long.
    """
    found: set[str] = set()
    for keyword in ("PatientName", "OtherPatientNames", "ReferringPhysicianName", "PatientBirthName"):
        found.update(re.split(r"[\^=,\s\\\[\]']+", str(header.get(keyword) or "")))
    for keyword in ("PatientID", "OtherPatientIDs", "AccessionNumber"):
        found.update(re.split(r"[\s\\\[\]',]+", str(header.get(keyword) or "")))
    for keyword in ("PatientBirthDate", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"):
        found.add(str(header.get(keyword) or ""))
    return frozenset(text for text in found if len(text) >= _SHORTEST)


def remove_identifiers(text: str, identifiers: Iterable[str]) -> str:
    """Replace every identifier in a text by ``[removed]``, whatever its case; dates also with separators.

    Args:
        text: a path, a description or a message.
        identifiers: strings as :func:`patient_identifiers` returns them.
    """
    # The longest first, so that no remainder of a long identifier stays behind a short one.
    for identifier in sorted(identifiers, key=lambda item: (-len(item), item)):
        text = re.sub(_pattern(identifier), REMOVED, text, flags=re.IGNORECASE)
    return text


def _pattern(identifier: str) -> str:
    if not re.fullmatch(r"\d{8}", identifier):
        return re.escape(identifier)
    year, month, day = identifier[:4], identifier[4:6], identifier[6:]
    separator = r"[-_./ ]?"
    orders = (year, month, day), (day, month, year), (month, day, year)
    return "|".join(separator.join(order) for order in orders)
