"""Keep the patient's identity out of messages, logs and file names."""

import calendar
import functools
import hashlib
import operator
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from pydicom import Dataset

from ..console import printable

__all__ = [
    "anonymous_id",
    "is_hidden",
    "patient_identifiers",
    "printable",
    "remove_identifiers",
    "safe_path",
    "short_digest",
]

REMOVED = "[removed]"
# A single letter or digit occurs in almost every path.
_SHORTEST = 2
# Strings up to this length are removed only as whole words.
_SHORT_WORD = 3
_SEPARATOR = r"[-_./ ]"
_SPELT = {"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "æ": "ae", "ø": "oe", "å": "aa", "œ": "oe", "ł": "l", "đ": "d"}
# Spellings of a letter, or of a pair of letters that transliterates one, in names without accents.
_LETTERS = {
    "ae": ("ae", "a"), "oe": ("oe", "o"), "ue": ("ue", "u"), "ss": ("ss", "s"), "aa": ("aa", "a"),
    "a": ("a", "ae"), "o": ("o", "oe"), "u": ("u", "ue"),
    **dict.fromkeys("-_./ ", ("", "-", "_", ".", "/", " ")),
}  # fmt: skip
# Usual file and folder names of scanners and archives: a prefix, a number too short for a date or an ID, an extension.
_HARMLESS = re.compile(
    r"(im|img|i|mr|ct|se|ser|s|st|sl|z|e|vol|in|pd"
    # Words that are no part of a name may follow each other.
    r"|((dicom(dir)?|dcm|images?|series|study|studies|slice|volume|frame|scans?|data|raw|input|output|axial|sagittal"
    r"|coronal|t1w?|t2w?|flair|dwi|adc|mprage|localizer|mri)[-_. ]?){1,5})?"
    r"[-_. ]?0*\d{0,4}(\.(dcm|dicom|ima))?",
    re.IGNORECASE,
)


def short_digest(text: str) -> str:
    """Return eight characters that stand for a text and do not show it; bytes that are not UTF-8 may be in it."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]


def anonymous_id(kind: str, text: str) -> str:
    """Return the id of a case that no name may be given to: its kind, and a digest of what it is known by."""
    return f"{kind}-{short_digest(text)}"


def patient_identifiers(header: Dataset) -> frozenset[str]:
    """Return the strings of a DICOM header that identify a patient or a visit.

    Args:
        header: any DICOM data set.

    Returns:
        The components of the patient's and the physicians' names, the patient IDs and the accession number, also their
        numbers of four digits and more, and the dates (``YYYYMMDD``). Each has at least two characters, or one that is
        not ASCII.
    """
    found: set[str] = set()
    for keyword in ("PatientName", "OtherPatientNames", "ReferringPhysicianName", "PatientBirthName"):
        found.update(re.split(r"[-_.\^=,\s\\\[\]']+", str(header.get(keyword) or "")))
    for keyword in ("PatientID", "OtherPatientIDs", "AccessionNumber"):
        text = str(header.get(keyword) or "")
        found.update(re.split(r"[\s\\\[\]',]+", text))
        # folders often hold the number of an ID alone, or apart from its letters
        found.update(re.findall(r"\d{4,}", text))
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
    text = unicodedata.normalize("NFC", text)
    written = _Written("".join(map(_plain, text)))
    hidden = 0
    for identifier in frozenset(identifiers):
        if _is_date(identifier):
            for date in _date_pattern(identifier[:4], identifier[4:6], identifier[6:]).finditer(text):
                hidden |= (1 << date.end()) - (1 << date.start())
        else:
            tokens, is_word = _tokens(identifier)
            hidden |= written.places(tokens, is_word)
    parts = groupby(range(len(text)), key=lambda place: hidden >> place & 1)
    return "".join(REMOVED if found else "".join(text[place] for place in places) for found, places in parts)


def is_hidden(text: str) -> bool:
    """Return whether something was removed from a text by this module."""
    return REMOVED[:-1] in text


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


class _Written:
    """A text in which words are looked for in all of their spellings at once.

    Sets of places are the bits of integers, so that the time is proportional to the length of the text and to that of
    the word. A regular expression would try the combinations of spellings one by one.

    Attributes:
        places_of: places of each character.
    """

    def __init__(self, text: str) -> None:
        self.places_of: dict[str, int] = defaultdict(int)
        for place, character in enumerate(text):
            self.places_of[character] |= 1 << place
        self._everywhere = (1 << len(text) + 1) - 1
        alphanumeric = [places for character, places in self.places_of.items() if character.isalnum()]
        # Each character is in one set.
        self._alphanumeric = sum(alphanumeric)

    def places(self, tokens: Sequence[tuple[str, ...]], is_word: bool) -> int:
        """Return the places of all characters that belong to a word.

        Args:
            tokens: spellings of each part of the word.
            is_word: whether letters and digits before and after it make it another word.
        """
        # From where the rest of the word follows, for each token and behind the last one.
        rests = [self._everywhere & ~self._alphanumeric if is_word else self._everywhere]
        for spellings in reversed(tokens):
            rests.append(self._union(self._found(spelling) & rests[-1] >> len(spelling) for spelling in spellings))
            if not rests[-1]:
                return 0
        at = rests.pop() & ~(self._alphanumeric << 1 if is_word else 0)
        covered = 0
        for spellings, rest in zip(tokens, reversed(rests), strict=True):
            following = 0
            for spelling in spellings:
                starts = at & self._found(spelling) & rest >> len(spelling)
                covered |= self._union(starts << offset for offset in range(len(spelling)))
                following |= starts << len(spelling)
            at = following
        return covered

    def _found(self, spelling: str) -> int:
        """Return the places at which a few characters stand."""
        found = self._everywhere
        for offset, character in enumerate(spelling):
            found &= self.places_of.get(character, 0) >> offset
        return found

    @staticmethod
    def _union(sets: Iterable[int]) -> int:
        return functools.reduce(operator.or_, sets, 0)


@functools.lru_cache(maxsize=1024)
def _tokens(identifier: str) -> tuple[list[tuple[str, ...]], bool]:
    """Return the spellings of each part of an identifier, and whether it is found only as a word of its own."""
    composed = unicodedata.normalize("NFC", identifier).lower()
    plain = "".join(letter if letter in _SPELT else _plain(letter) for letter in composed).strip("-_./ ")
    parts = re.findall("ae|oe|ue|ss|aa|.", plain, re.DOTALL)
    tokens = [_LETTERS.get(spelt := _SPELT.get(part, part), (spelt,)) for part in parts]
    is_ascii = all(_SPELT.get(letter, letter).isascii() for letter in plain)
    return tokens, len(composed) <= _SHORT_WORD and is_ascii


@functools.lru_cache(maxsize=4096)
def _plain(letter: str) -> str:
    """Return a letter in lower case and without accents; one that has no such form is returned as it is."""
    letter = _lower(letter)
    if letter in _SPELT:
        return _SPELT[letter][0]
    base = "".join(c for c in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(c))
    return _lower(base) if len(base) == 1 else letter


def _lower(letter: str) -> str:
    return next((form for form in (letter.casefold(), letter.lower()) if len(form) == 1), letter)


def _is_date(identifier: str) -> bool:
    return re.fullmatch(r"[0-9]{8}", identifier) is not None and 1 <= int(identifier[4:6]) <= 12


@functools.lru_cache(maxsize=1024)
def _date_pattern(year: str, month: str, day: str) -> re.Pattern[str]:
    compact = [f"{year}{month}{day}", f"{day}{month}{year}", f"{month}{day}{year}", f"{year}{day}{month}"]
    short = [f"{year[2:]}{month}{day}", f"{day}{month}{year[2:]}", f"{month}{day}{year[2:]}"]
    y = f"(?:{year}|{year[2:]})"
    m = f"(?:0?{int(month)}|{calendar.month_abbr[int(month)]}[a-z]*)"
    d = f"0?{int(day)}"
    separated = [f"{_SEPARATOR}+".join(order) for order in ((y, m, d), (d, m, y), (m, d, y), (y, d, m))]
    # With a digit beside it, such a string is part of another number.
    return re.compile(f"{'|'.join(compact)}|(?<!\\d)(?:{'|'.join((*short, *separated))})(?!\\d)", re.IGNORECASE)
