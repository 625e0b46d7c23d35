"""Keep the patient's identity out of messages, logs and file names."""

import calendar
import functools
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from pydicom import Dataset

from ..console import printable

__all__ = ["patient_identifiers", "printable", "remove_identifiers", "safe_path"]

REMOVED = "[removed]"
# A single letter or digit occurs in almost every path.
_SHORTEST = 2
# Strings up to this length are removed only as whole words.
_SHORT_WORD = 3
_SEPARATOR = r"[-_./ ]"
_SPELT = {"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "æ": "ae", "ø": "oe", "å": "aa", "œ": "oe", "ł": "l", "đ": "d"}
# Spellings of a letter, or of a pair of letters that transliterates one, in names.
_LETTERS = {
    "ae": "(?:ae|[äæa])", "oe": "(?:oe|[öøœo])", "ue": "(?:ue|[üu])", "ss": "(?:ss?|ß)", "aa": "(?:aa|[åa])",
    "a": "[aàáâãäåą]e?", "o": "[oòóôõöøő]e?", "u": "[uùúûüű]e?", "e": "[eèéêëę]", "i": "[iìíîï]", "y": "[yýÿ]",
    "n": "[nñń]", "c": "[cçćč]", "s": "[sśš]", "z": "[zźżž]", "l": "[lł]", "d": "[dđ]",
}  # fmt: skip
# Usual file and folder names of scanners and archives: a prefix, a number too short for a date or an ID, an extension.
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
        dates (``YYYYMMDD``). Each has at least two characters, or one that is not ASCII.
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

    Case, accents, the usual transliterations (``Mueller`` for ``Müller``) and separators make no difference. Dates are
    found in any order, with a year of two digits, without leading zeros and with names of months. Identifiers of up to
    three ASCII characters are removed only as whole words.

    Args:
        text: path, description or message.
        identifiers: strings to remove, as :func:`patient_identifiers` returns them.
    """
    pattern = _compiled(frozenset(identifiers))
    return text if pattern is None else pattern.sub(REMOVED, unicodedata.normalize("NFC", text))


def safe_path(path: Path, root: Path) -> str:
    """Return a path that can be shown although the patient, whom it may name, is not known.

    Args:
        path: path of a file or folder.
        root: folder of the data set; the result is relative to it.

    Returns:
        The path in which each part that is not a usual name of DICOM folders and files is replaced by its place among
        its neighbours.
    """
    relative = path.relative_to(root)
    parents = [root / parent for parent in reversed(relative.parents)]
    parts = [
        part if _HARMLESS.fullmatch(part) else _place(parent, part)
        for parent, part in zip(parents, relative.parts, strict=True)
    ]
    return "/".join(parts) or "."


def _place(folder: Path, name: str) -> str:
    """Return words for an entry of a folder that do not show its name."""
    names = sorted(os.listdir(folder))
    return f"[removed: no. {names.index(name) + 1} of {len(names)} by name]"


@functools.lru_cache(maxsize=64)
def _compiled(identifiers: frozenset[str]) -> re.Pattern[str] | None:
    """Return one pattern for all identifiers, the longest first: no part of one is matched, and no replacement."""
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
    # Letters without a plain form, such as those of other scripts, are matched as they are.
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
    # With a digit beside it, such a string is part of another number.
    return f"{'|'.join(compact)}|(?<!\\d)(?:{'|'.join((*short, *separated))})(?!\\d)"
