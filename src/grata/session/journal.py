"""Journal of a run: one JSON line per case."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Container
from pathlib import Path
from typing import Any

from ..files import append_line, atomic_write, expanded

__all__ = ["Journal"]


class Journal:
    """A JSON-lines file that survives a crash: each line is on the disk before the next case starts.

    Args:
        path: path of the file; its folder is created with the first line.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = expanded(path)

    def append(self, line: dict[str, Any]) -> None:
        """Write one line. Numbers that are not finite become null.

        Args:
            line: keys and values of the line.

        Raises:
            OutputError: the file cannot be written.
        """
        append_line(self.path, json.dumps(_finite(line)))

    def size(self) -> int:
        """Return the length of the file in bytes; 0 before its first line."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def cut(self, size: int) -> None:
        """Take back the lines that were written since :meth:`size` returned ``size``."""
        with contextlib.suppress(OSError):
            if size == 0:
                self.path.unlink(missing_ok=True)
            elif self.size() > size:
                os.truncate(self.path, size)

    def lines(self) -> list[dict[str, Any]]:
        """Return all whole lines; a line that is damaged, or that a crash cut short, is left out."""
        return [line for line in self._read() if line is not None]

    def damaged(self) -> int:
        """Return the number of lines that :meth:`lines` leaves out."""
        return self._read().count(None)

    def _read(self) -> list[dict[str, Any] | None]:
        if not self.path.is_file():
            return []
        return [_parsed(line) for line in self.path.read_bytes().split(b"\n") if line.strip()]

    def keep(self, cases: Container[str]) -> None:
        """Remove the lines of all other cases, and of faults: a stopped run had begun those cases, not finished them.

        Args:
            cases: names of the cases whose lines stay.

        Raises:
            OutputError: the file cannot be written.
        """
        kept = [line for line in self.lines() if str(line.get("case")) in cases and "fault" not in line]
        if self.path.is_file():
            with atomic_write(self.path) as temporary:
                Path(temporary).write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")


def _parsed(line: bytes) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(line)
        return found if isinstance(found, dict) else None
    return None


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
