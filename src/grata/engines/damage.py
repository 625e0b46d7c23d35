"""What is wrong with a file that a bundle's own reader could not read, as this project's readers say it."""

from __future__ import annotations

import traceback as tracebacks
from collections.abc import Sequence
from pathlib import Path

from ..data.pictures import is_label_picture, read_label_picture, read_picture
from ..data.volume_files import is_volume_file, read_volume_file
from ..errors import GrataError
from ..session import causes

__all__ = ["damage"]

_READERS = "monai/data/image_reader.py"
"""File of MONAI's readers, as tracebacks name it."""

_LEAVE_OUT = "If it is damaged, copy or export it again, or leave it out."


def damage(error: Exception, message: str, files: Sequence[Path]) -> str:
    """Return what is wrong with the files of an item that MONAI could not read; empty for what was wrong elsewhere.

    Args:
        error: exception that was raised for the item.
        message: what it says, in one line.
        files: files of the item.
    """
    if not _is_reading(error):
        return ""
    unread = [path for path in files if path.is_file()]
    found = next(filter(None, map(_refusal, unread)), "")
    if found or len(unread) != 1 or _can_be_checked(unread[0]):
        return found
    return f"File '{unread[0]}' cannot be read ({message}). {_LEAVE_OUT}"


def _is_reading(error: Exception) -> bool:
    """Return whether an exception comes from a reader of MONAI, which may quote it as text or from another process."""
    links = list(causes(error))
    if any(isinstance(link, GrataError | ImportError) or "OptionalImportError" in str(link) for link in links):
        return False
    places = [
        frame.filename.replace("\\", "/") for link in links for frame in tracebacks.extract_tb(link.__traceback__)
    ]
    quoted = [str(link).replace("\\", "/") for link in links]
    return any(_READERS in text for text in (*places, *quoted))


def _can_be_checked(path: Path) -> bool:
    return is_volume_file(path) or is_label_picture(path)


def _refusal(path: Path) -> str:
    """Return why a file cannot be read, what to do, and its path; empty where it can be, or its kind is not known."""
    try:
        if is_volume_file(path):
            read_volume_file(path)
        elif is_label_picture(path):
            (read_label_picture if path.suffix.lower() == ".gif" else read_picture)(path)
    except GrataError as refused:
        return str(refused)
    return ""
