"""States on the disk, from which a stopped process goes on: without pickles, and with a checksum."""

import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .files import atomic_write

__all__ = ["read_state", "write_state"]

_MARK = b"\ngrata-sha256:"
_LENGTH = len(_MARK) + 64
_END_OF_ARCHIVE = b"PK\5\6"


def write_state(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write a state and, behind it, the checksum of its bytes, whole or not at all.

    Args:
        path: file to write, in a folder that exists. ``torch.load`` reads it, too.
        state: tensors and plain values.

    Raises:
        OutputError: the file cannot be written.
    """
    # On a full disk torch.save itself raises a RuntimeError about its archive.
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    data = buffer.getvalue()
    with atomic_write(path) as temporary:
        temporary.write_bytes(data + _MARK + _digest(data))


def read_state(path: str | os.PathLike[str]) -> Any:
    """Return what :func:`write_state` wrote, on the CPU. Files of the last release have no checksum.

    Raises:
        OSError: the file cannot be read.
        ValueError: the checksum is missing or that of other bytes.
        Exception: a damaged archive or pickle can raise any kind of exception.
    """
    data = Path(path).read_bytes()
    if data[-_LENGTH:].startswith(_MARK):
        data, digest = data[:-_LENGTH], data[-64:]
        if _digest(data) != digest:
            raise ValueError("its checksum is wrong")
    elif not data[-22:].startswith(_END_OF_ARCHIVE):
        raise ValueError("its end is damaged")
    # Another machine may not have the device on which the state was written.
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()
