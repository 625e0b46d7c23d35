"""Tables as CSV files."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import atomic_write

__all__ = ["cell", "legible", "read_table", "write_table"]

# A spreadsheet runs a cell that begins with one of these as a formula; a name may begin with any.
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
# A terminal obeys these when a table is shown there; tabs and line ends stand in the quotes of a cell.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def cell(value: Any) -> Any:
    """Return a value as it stands in a table.

    A text that a spreadsheet would run as a formula begins with ``'``. Control characters, apart from tabs and line
    ends, are replaced.

    Example:
        >>> cell("=1+1"), cell("-0.5"), cell(-0.5), cell("'=1+1")
        ("'=1+1", '-0.5', -0.5, "''=1+1")
    """
    if not isinstance(value, str):
        return value
    value = legible(value)
    return f"'{value}" if _FORMULA.match(value) and not _is_number(value) else value


def legible(text: str) -> str:
    """Return a text as :func:`read_table` gives it back: without the control characters that are replaced."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_table(path: str | Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns and the rows of a table that :func:`write_table` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not in UTF-8.
        csv.Error: it is not a table.
    """
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file)
        rows = [{key: _uncovered(value) for key, value in row.items()} for row in reader]
    return list(reader.fieldnames or ()), rows


def _uncovered(value: Any) -> Any:
    covered = isinstance(value, str) and value.startswith("'") and _FORMULA.match(value)
    return value[1:] if covered else value


def write_table(
    rows: Iterable[Mapping[str, Any]], columns: Sequence[str], path: str | Path, decimals: int | None = 6
) -> None:
    """Write rows as CSV, whole or not at all.

    Args:
        rows: one mapping per row, in the order in which they are written. Undefined numbers are written as ``nan``,
            infinite ones as ``inf``.
        columns: keys of each row, in the order of the columns; a row without a key gets an empty cell.
        path: file to write, in a folder that exists; an existing file is replaced.
        decimals: decimals of floats; None: all that they have.

    Raises:
        GrataError: the file cannot be written.
    """
    with (
        atomic_write(path) as temporary,
        # A name that is not UTF-8 is written as it is.
        open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        # Python leaves this one character without the quotes that it needs.
        quoted = csv.DictWriter(file, columns, lineterminator="\n", quoting=csv.QUOTE_ALL)
        for row in rows:
            cells = {key: _written(value, decimals) for key, value in row.items()}
            (quoted if any("\r" in str(value) for value in cells.values()) else writer).writerow(cells)


def _written(value: Any, decimals: int | None) -> Any:
    return f"{value:.{decimals}f}" if isinstance(value, float) and decimals is not None else cell(value)
