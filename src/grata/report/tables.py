"""Tables on disk."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import atomic_write

__all__ = ["write_table"]


def write_table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], path: str | Path) -> None:
    """Write rows as CSV, whole or not at all.

    Args:
        rows: a mapping a row, in the order they are written; floats get six decimals, missing ones are ``nan`` and
            ``inf``.
        columns: the keys of each row.
        path: the file, in a folder that exists; an older one is replaced.

    Raises:
        GrataError: the file cannot be written.
    """
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {key: f"{value:.6f}" if isinstance(value, float) else value for key, value in row.items()} for row in rows
        )
