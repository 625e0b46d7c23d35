"""Tables as CSV files."""

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
        rows: one mapping per row, in the order in which they are written. Floats have six decimals; undefined ones are
            written as ``nan``, infinite ones as ``inf``.
        columns: keys of each row, in the order of the columns; a row without a key gets an empty cell.
        path: file to write, in a folder that exists; an existing file is replaced.

    Raises:
        GrataError: the file cannot be written.
    """
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {key: f"{value:.6f}" if isinstance(value, float) else value for key, value in row.items()} for row in rows
        )
