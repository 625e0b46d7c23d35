"""Files that are written whole or not at all, with plain messages when the disk refuses."""

import contextlib
import errno
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import GrataError, OutputError

__all__ = [
    "CASES",
    "FIGURES",
    "JOURNAL",
    "OVERVIEW",
    "PLACES",
    "SEGMENTATIONS",
    "absence",
    "append_line",
    "atomic_write",
    "check_output_dir",
    "expanded",
    "is_file_name",
    "is_inside",
    "locked",
    "on_disk",
    "plainly_named",
    "remove_file",
    "remove_leftovers",
    "shortened",
    "undownloaded",
]

JOURNAL = "journal.jsonl"
SEGMENTATIONS = "segmentations"
FIGURES = "figures"
OVERVIEW = "overview.png"
CASES = "cases.csv"
PLACES = "paths.csv"
"""Names in an output folder. Discovery recognizes an earlier output folder by them and takes no scans from it."""

_POINTER = b"version https://git-lfs.github.com/spec/"
_KEPT_OF_NAME = 48
"""Characters of a name that its temporary one has too, so that a name of the greatest length still has one."""

_LONGEST_NAME = 255
"""Bytes of the longest name that usual file systems have."""


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a path that a person gave, ``~`` standing for the home folder.

    Raises:
        GrataError: it is not a path, or no file can have such a name.
    """
    if not isinstance(path, str | os.PathLike):
        raise GrataError(f"must be the path of a file or folder, got {path!r}. Write ./ before the name.")
    try:
        found = on_disk(os.path.expanduser(path))
        os.lstat(found)
    except ValueError as error:
        raise GrataError(f"{os.fspath(path)!r} cannot be the name of a file ({error}). Name another.") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            shown = f"{os.fspath(path)[:_KEPT_OF_NAME]}…"
            raise GrataError(f"{shown!r} is too long for the name of a file. Name another.") from error
    return found


def on_disk(path: str | os.PathLike[str]) -> Path:
    """Return a path whose name is UTF-8 on the disk, also in a locale that has no letters for it (``LC_ALL=C``)."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return Path(os.fsdecode(os.fspath(path).encode(errors="surrogateescape")))
    return Path(path)


@contextmanager
def plainly_named(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Yield paths to the same files or folders, by links where a name cannot be written as text.

    Some libraries end the whole process over bytes of a name that are not of the locale's encoding.

    Args:
        paths: paths of files or folders that exist.
    """
    if not any(_has_odd_bytes(path) for path in paths):
        yield list(paths)
        return
    with tempfile.TemporaryDirectory(prefix="grata-") as folder:
        links = [_plain_link(Path(folder), number, path) for number, path in enumerate(paths)]
        yield links


def _has_odd_bytes(path: Path) -> bool:
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return True
    return False


def _plain_link(folder: Path, number: int, path: Path) -> Path:
    # Readers choose a format by the end of the name, and some look for the number of a channel.
    link = folder / str(number) / _plain_name(path.name)
    link.parent.mkdir()
    link.symlink_to(os.path.abspath(path))
    return link


def _plain_name(name: str) -> str:
    """Return the end of a name, with letters that every locale and every library has."""
    return re.sub(r"[^\x21-\x7e]", "_", name[-_KEPT_OF_NAME:])


def absence(path: str | os.PathLike[str]) -> str:
    """Return in words how a file or folder is missing."""
    return "is a link whose target does not exist" if os.path.islink(path) else "does not exist"


def undownloaded(path: str | os.PathLike[str]) -> str:
    """Return in words that weights were never downloaded, and what downloads them; empty if they were.

    A bundle of the Model Zoo names its weights in a ``large_files.yml``, and Git LFS leaves a pointer in their place.
    """
    path = Path(path)
    listed = (file for folder in Path(os.path.abspath(path)).parents for file in folder.glob("large_files.*"))
    bundle = next((file.parent for file in listed), None)
    command = f"python -m monai.bundle download_large_files --bundle_path {bundle}"
    if _is_pointer(path):
        remedy = "git lfs pull in its repository" + (f", or {command}" if bundle else "")
        return f"{path} was not downloaded: it is a pointer of Git LFS. Run {remedy}."
    if bundle is None or path.exists():
        return ""
    return f"{path} {absence(path)}, and was perhaps never downloaded. Run {command}, or name another file."


def _is_pointer(path: Path) -> bool:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER
    return False


def append_line(path: Path, line: str) -> None:
    """Append a line to a file; the line is on the disk when the function returns.

    A last line that a crash cut short is ended first, so that it does not swallow this one.

    Args:
        path: file to append to; a missing file or folder is created.
        line: text of the line, without its line end.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read() == b"\n" else f"\n{line}"
            file.write(f"{line}\n".encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror}). {_remedy(path.parent, error)}", key="output_dir"
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
    path = on_disk(path)
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}-{_plain_name(path.name)}")
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


def remove_leftovers(folder: str | os.PathLike[str], is_own: Callable[[str], bool] = lambda name: True) -> None:
    """Remove the temporary files that :func:`atomic_write` could not remove because its process was killed.

    Another process may write in the same folder or below it, so subfolders are left alone, and so is what is not own.

    Args:
        folder: folder to clean; it may be missing.
        is_own: function of the final name of a file that returns whether this process alone writes it.
    """
    for path in Path(folder).glob(".*"):
        final = re.fullmatch(r"\.[0-9a-f]{12}-(.+)", path.name, re.DOTALL)
        if final and is_own(final[1]) and path.is_file():
            remove_file(path)


def remove_file(path: Path) -> None:
    """Remove a file, if it is there.

    Raises:
        OutputError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        # no file can have a name that is too long
        if error.errno == errno.ENAMETOOLONG:
            return
        raise OutputError(
            f"{path} cannot be removed ({error.strerror}). Check the permissions of its folder.", key="output_dir"
        ) from error


def is_file_name(name: object) -> bool:
    """Return whether this is the name of a file and leads nowhere else: names that stand in files may be damaged."""
    if not isinstance(name, str) or name in ("", ".", "..") or "\0" in name:
        return False
    try:
        size = len(os.fsencode(on_disk(name)))
    except UnicodeEncodeError:
        return False
    return size <= _LONGEST_NAME and Path(name).name == name


def shortened(name: str) -> str:
    """Return a name as messages show it: one that no file can have is cut."""
    return name if len(name) <= _LONGEST_NAME else f"{name[:_KEPT_OF_NAME]}…"


def is_inside(folder: Path, path: Path) -> bool:
    """Return whether a file lies in a folder or below it, and not elsewhere through a link on the way."""
    return Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(folder))


@contextmanager
def locked(path: Path, name: str = ".lock", key: str = "output_dir", wait_s: float = 0) -> Iterator[None]:
    """Let no other process in for a ``with`` block; the lock ends with the process, however it ends.

    The file of the lock stays, because removing it could let two processes in.

    Args:
        path: folder that is written to, or the file; its folder exists.
        name: name of the file of the lock in the folder; that of a file lies beside it.
        key: key of the messages.
        wait_s: seconds to wait for another process.

    Raises:
        OutputError: another process is in, or the file system has no locks.
    """
    lock = FileLock(path / name if path.is_dir() else path.with_name(f".{path.name}{name}"))
    try:
        lock.acquire(timeout=wait_s)
    except Timeout as error:
        waited = f" and has not ended within {wait_s:g} s" if wait_s else ""
        raise OutputError(
            f"another run is writing to {path}{waited}. Wait for it, or choose another folder.", key=key
        ) from error
    except (NotImplementedError, OSError) as error:
        why = getattr(error, "strerror", None) or error
        raise OutputError(
            f"{path} cannot be locked ({why}), so another run could write there at the same time. Name a folder that "
            "you may write to, on a file system that has locks, such as a local disk.",
            key=key,
        ) from error
    try:
        yield
    finally:
        lock.release()


def check_output_dir(path: str | os.PathLike[str]) -> Path:
    """Create a folder with its parents, and check that files can be written into it.

    Args:
        path: folder to create; it may exist already.

    Returns:
        The folder.

    Raises:
        OutputError: the folder cannot be created or written to.
    """
    folder = expanded(path)
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
    return OutputError(
        f"Cannot write to the output folder '{folder}': {error.strerror or error}. {_remedy(folder, error)}"
    )


def _remedy(folder: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "Free some space, or name another folder."
    if error.errno == errno.EROFS:
        return "It is on a disk that can only be read; name a folder on another one."
    if error.errno in (errno.EACCES, errno.EPERM):
        return "Ask for the right to write there, or name a folder that you may write to."
    if link := next((path for path in (folder, *folder.parents) if path.is_symlink() and not path.exists()), None):
        return f"'{link}' {absence(link)}; make the target, or name another folder."
    if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
        return "A file is in its place; name a folder that you may write to."
    if error.errno == errno.ENOENT:
        return "A folder is gone that was there; make it again, or name another one."
    return "Name a folder that you may write to."
