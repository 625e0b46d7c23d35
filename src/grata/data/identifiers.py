"""Keep the patient's identity out of everything that is shown, logged or named."""

import calendar
import functools
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from pydicom import Dataset

__all__ = ["patient_identifiers", "printable", "remove_identifiers", "safe_path"]

REMOVED = "[removed]"
# A single letter or digit would blank out half of every path.
_SHORTEST = 2
# Up to this length a string counts only as a word of its own.
_SHORT_WORD = 3
_SEPARATOR = r"[-_./ ]"
_SPELT = {"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "æ": "ae", "ø": "oe", "å": "aa", "œ": "oe", "ł": "l", "đ": "d"}
# What stands for a letter, or for a pair of letters that spells one, wherever names are written down.
_LETTERS = {
    "ae": "(?:ae|[äæa])", "oe": "(?:oe|[öøœo])", "ue": "(?:ue|[üu])", "ss": "(?:ss?|ß)", "aa": "(?:aa|[åa])",
    "a": "[aàáâãäåą]e?", "o": "[oòóôõöøő]e?", "u": "[uùúûüű]e?", "e": "[eèéêëę]", "i": "[iìíîï]", "y": "[yýÿ]",
    "n": "[nñń]", "c": "[cçćč]", "s": "[sśš]", "z": "[zźżž]", "l": "[lł]", "d": "[dđ]",
}  # fmt: skip
# What scanners and archives call files and folders: a prefix, a number too short for a date or an ID, an extension.
_HARMLESS = re.compile(
    r"(dicom(dir)?|dcm|images?|im|img|i|mr|ct|se|ser|series|s|st|study|studies|slice|sl|z|e|vol|volume|frame|scans?"
    r"|data|raw|in|input|t1|t2|flair|dwi|pd)?[-_. ]?0*\d{0,4}(\.(dcm|dicom|ima))?",
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
        found.update(re.split(r"[-_.\^=,\s\\\[\]']+", str(header.get(keyword) or "")))
    for keyword in ("PatientID", "OtherPatientIDs", "AccessionNumber"):
        found.update(re.split(r"[\s\\\[\]',]+", str(header.get(keyword) or "")))
    for keyword in ("PatientBirthDate", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"):
        found.add(re.sub(r"\D", "", str(header.get(keyword) or "")))
    return frozenset(text for text in found if len(text) >= _SHORTEST or not text.isascii())


def remove_identifiers(text: str, identifiers: Iterable[str]) -> str:
    """Replace every identifier in a text by ``[removed]``.

    Case, accents, the usual transliterations (``Mueller`` for ``Müller``) and separators make no difference; dates are
    found in any order, with two digits of the year, without leading zeros and with names of months. Up to three ASCII
    characters count only as a word of their own.

    Args:
        text: a path, a description or a message.
        identifiers: strings as :func:`patient_identifiers` returns them.
    """
    pattern = _compiled(frozenset(identifiers))
    return text if pattern is None else pattern.sub(REMOVED, unicodedata.normalize("NFC", text))


def safe_path(path: Path, root: Path) -> str:
    """Return a path that may be shown although nothing is known of the patient whom it may name.

    Args:
        path: of a file or folder.
        root: the data set's folder, which the result is relative to.

    Returns:
        The path with all parts that are no usual names of DICOM folders and files replaced by their place among their
        neighbours.
    """
    relative = path.relative_to(root)
    parents = [root / parent for parent in reversed(relative.parents)]
    parts = [
        part if _HARMLESS.fullmatch(part) else _place(parent, part)
        for parent, part in zip(parents, relative.parts, strict=True)
    ]
    return "/".join(parts) or "."


def printable(text: str) -> str:
    """Return a text in which the bytes of file names that are no UTF-8 are replaced, so that it can be written down."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


def _place(folder: Path, name: str) -> str:
    """Say which of a folder's entries is meant, without its name."""
    names = sorted(os.listdir(folder))
    return f"[removed: no. {names.index(name) + 1} of {len(names)} by name]"


@functools.lru_cache(maxsize=64)
def _compiled(identifiers: frozenset[str]) -> re.Pattern[str] | None:
    """One pattern for all, so that no replacement is read again; the longest first, so that no remainder stays behind."""
    ordered = sorted(identifiers, key=lambda item: (-len(item), item))
    patterns = [pattern for identifier in ordered if (pattern := _pattern(identifier))]
    return re.compile("|".join(patterns), re.IGNORECASE) if patterns else None


def _pattern(identifier: str) -> str:
    if re.fullmatch(r"\d{8}", identifier) and 1 <= int(identifier[4:6]) <= 12:
        return _date_pattern(identifier[:4], identifier[4:6], identifier[6:])
    composed = unicodedata.normalize("NFC", identifier).lower()
    spelt = "".join(_SPELT.get(letter, letter) for letter in composed)
    plain = "".join(c for c in unicodedata.normalize("NFKD", spelt) if not unicodedata.combining(c))
    if not plain.strip("-_./ "):
        return ""
    parts = [part for part in re.split(f"{_SEPARATOR}+", plain) if part]
    letters = "|".join(sorted(_LETTERS, key=len, reverse=True))
    written = f"{_SEPARATOR}?".join(
        "".join(_LETTERS.get(token, re.escape(token)) for token in re.findall(f"{letters}|.", part)) for part in parts
    )
    # Letters that have no plain form, such as those of other scripts, are found as they are.
    pattern = f"(?:{written}|{re.escape(composed)})"
    if len(composed) > _SHORT_WORD or not plain.isascii():
        return pattern
    return rf"(?<![^\W_]){pattern}(?![^\W_])"


def _date_pattern(year: str, month: str, day: str) -> str:
    compact = [f"{year}{month}{day}", f"{day}{month}{year}", f"{month}{day}{year}", f"{year}{day}{month}"]
    short = [f"{year[2:]}{month}{day}", f"{day}{month}{year[2:]}", f"{month}{day}{year[2:]}"]
    y = f"(?:{year}|{year[2:]})"
    m = f"(?:0?{int(month)}|{calendar.month_abbr[int(month)]}[a-z]*)"
    d = f"0?{int(day)}"
    separated = [f"{_SEPARATOR}+".join(order) for order in ((y, m, d), (d, m, y), (m, d, y), (y, d, m))]
    # Digits beside one of these make it another number.
    return f"{'|'.join(compact)}|(?<!\\d)(?:{'|'.join((*short, *separated))})(?!\\d)"
