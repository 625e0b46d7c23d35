"""Write files so that none is ever half written, and say plainly when the disk refuses."""

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from grata.errors import GrataError

__all__ = ["atomic_write", "check_output_dir"]


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it takes the final name only when it is complete and on the disk.

    The temporary name is hidden and ends like the final one, so that writers choose the same format. It is removed
    when the block fails.

    Args:
        path: the file to write; its folder exists.

    Raises:
        GrataError: the folder is missing, read-only or full.
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
        temporary.unlink(missing_ok=True)


def check_output_dir(path: str | os.PathLike[str]) -> Path:
    """Create a folder, with its parents, and prove that a file can be written into it.

    Returns:
        The folder.

    Raises:
        GrataError: it cannot be created or written to.
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
    return GrataError(
        f"Cannot write to the output folder '{folder}': {error.strerror or error}. Free some space, or name a folder "
        "that you may write to."
    )
