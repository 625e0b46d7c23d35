"""Keep the patient's identity out of everything that is shown, logged or named."""

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from pydicom import Dataset

__all__ = ["patient_identifiers", "remove_identifiers", "safe_path"]

REMOVED = "[removed]"
# A single letter or digit would blank out half of every path.
_SHORTEST = 2
_TRANSLITERATED = {"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "æ": "ae", "ø": "oe", "å": "aa", "œ": "oe", "ł": "l", "đ": "d"}
# What scanners and archives call files and folders: a prefix, a number too short for a date or an ID, an extension.
_HARMLESS = re.compile(
    r"(dicom(dir)?|dcm|images?|im|img|i|mr|ct|se|ser|series|s|st|study|studies|slice|sl|z|e|vol|volume|frame|scans?|data|raw|"
    r"in|input|t1|t2|flair|dwi|pd)?[-_. ]?0*\d{0,4}(\.(dcm|dicom|ima))?",
    re.IGNORECASE,
)


def patient_identifiers(header: Dataset) -> frozenset[str]:
    """Return the strings of a DICOM header that identify a patient or a visit.

    Args:
        header: any DICOM data set.

    Returns:
        The components of the patient's and the physicians' names, the patient IDs, the accession number and the
        dates (``YYYYMMDD``), each at least two characters long, or one that is not ASCII.
    """
    found: set[str] = set()
    for keyword in ("PatientName", "OtherPatientNames", "ReferringPhysicianName", "PatientBirthName"):
        found.update(re.split(r"[\^=,\s\\\[\]']+", str(header.get(keyword) or "")))
    for keyword in ("PatientID", "OtherPatientIDs", "AccessionNumber"):
        found.update(re.split(r"[\s\\\[\]',]+", str(header.get(keyword) or "")))
    for keyword in ("PatientBirthDate", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"):
        found.add(str(header.get(keyword) or ""))
    return frozenset(text for text in found if len(text) >= _SHORTEST or not text.isascii())


def remove_identifiers(text: str, identifiers: Iterable[str]) -> str:
    """Replace every identifier in a text by ``[removed]``.

    Case, accents and the usual transliterations (``Mueller`` for ``Müller``) make no difference; dates are found with
    separators, in any order and with two digits of the year. Two letters or digits count only as a word of their own.

    Args:
        text: a path, a description or a message.
        identifiers: strings as :func:`patient_identifiers` returns them.
    """
    text = unicodedata.normalize("NFC", text)
    # The longest first, so that no remainder of a long identifier stays behind a short one.
    for identifier in sorted(identifiers, key=lambda item: (-len(item), item)):
        for variant in _variants(identifier):
            text = re.sub(_pattern(variant), REMOVED, text, flags=re.IGNORECASE)
    return text


def safe_path(path: Path, root: Path, identifiers: Iterable[str], known: bool) -> str:
    """Return a path of DICOM data, relative to the data set's folder, that may be shown.

    Args:
        path: of a file or folder.
        root: the data set's folder.
        identifiers: strings that must not be shown.
        known: whether ``identifiers`` hold those of the patient whom the files belong to. If not, all parts of the path
            that are no usual names of DICOM folders and files are replaced by their place among their neighbours.
    """
    relative = path.relative_to(root)
    if known:
        return remove_identifiers(str(relative), identifiers)
    parents = [root / parent for parent in reversed(relative.parents)]
    parts = [
        part if _HARMLESS.fullmatch(part) else _place(parent, part)
        for parent, part in zip(parents, relative.parts, strict=True)
    ]
    return "/".join(parts) or "."


def _place(folder: Path, name: str) -> str:
    """Say which of a folder's entries is meant, without its name."""
    names = sorted(os.listdir(folder))
    return f"[removed: no. {names.index(name) + 1} of {len(names)} by name]"


def _variants(identifier: str) -> list[str]:
    composed = unicodedata.normalize("NFC", identifier)
    spelt = "".join(_TRANSLITERATED.get(letter.lower(), letter) for letter in composed)
    plain = "".join(c for c in unicodedata.normalize("NFKD", composed) if not unicodedata.combining(c))
    return list(dict.fromkeys((composed, spelt, plain)))


def _pattern(identifier: str) -> str:
    if re.fullmatch(r"\d{8}", identifier):
        year, month, day = identifier[:4], identifier[4:6], identifier[6:]
        separator = r"[-_./ ]?"
        orders = [order for y in (year, year[2:]) for order in ((y, month, day), (day, month, y), (month, day, y))]
        # Digits beside a date with two digits of the year make it another number.
        dates = "|".join(separator.join(order) for order in orders[:3])
        return f"{dates}|(?<!\\d)(?:{'|'.join(separator.join(order) for order in orders[3:])})(?!\\d)"
    escaped = re.escape(identifier)
    if len(identifier) <= _SHORTEST and identifier.isascii():
        return rf"(?<![^\W_]){escaped}(?![^\W_])"
    return escaped
