"""Files that are written whole or not at all, with plain messages when the disk refuses."""

import contextlib
import errno
import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import GrataError, OutputError

__all__ = [
    "CASES",
    "FIGURES",
    "JOURNAL",
    "OVERVIEW",
    "PLACES",
    "SEGMENTATIONS",
    "append_line",
    "atomic_write",
    "check_output_dir",
    "remove_leftovers",
]

JOURNAL = "journal.jsonl"
SEGMENTATIONS = "segmentations"
FIGURES = "figures"
OVERVIEW = "overview.png"
CASES = "cases.csv"
PLACES = "paths.csv"
"""Names in an output folder. Discovery recognizes an earlier output folder by them and takes no scans from it."""


def append_line(path: Path, line: str) -> None:
    """Append a line to a file; the line is on the disk when the function returns.

    Args:
        path: file to append to; a missing file or folder is created.
        line: text of the line, without its line end.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror}). Free some space or choose another folder.", key="output_dir"
        ) from error


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; the file takes its final name once it is complete and on the disk.

    The temporary name is hidden and ends like the final one, so that writers choose the same format. The temporary
    file is removed when the block fails.

    Args:
        path: file to write; its folder exists.

    Raises:
        OutputError: the folder is missing, read-only or full.
        GrataError: the name is too long for the file system.
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}-{path.name}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise _refusal(path.parent, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: str | os.PathLike[str], subfolders: bool = True) -> None:
    """Remove the temporary files that :func:`atomic_write` could not remove because its process was killed.

    Args:
        folder: folder to clean.
        subfolders: whether to clean its subfolders too.
    """
    for path in Path(folder).glob("**/.*" if subfolders else ".*"):
        if re.match(r"\.[0-9a-f]{12}-", path.name) and path.is_file():
            path.unlink()


def check_output_dir(path: str | os.PathLike[str]) -> Path:
    """Create a folder with its parents, and check that files can be written into it.

    Args:
        path: folder to create; it may exist already.

    Returns:
        The folder.

    Raises:
        OutputError: the folder cannot be created or written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _refusal(folder, error) from error
    return folder


def _refusal(folder: Path, error: OSError) -> GrataError:
    if error.errno == errno.ENAMETOOLONG:
        return GrataError(
            f"A name in the output folder '{folder}' would be too long. Give the scan a shorter file name."
        )
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return OutputError(
            f"Cannot write to the output folder '{folder}': {error.strerror}. A file is in its place; name a folder "
            "that you may write to."
        )
    return OutputError(
        f"Cannot write to the output folder '{folder}': {error.strerror or error}. Free some space, or name a folder "
        "that you may write to."
    )
