"""Lists of cases: CSV files that name images and their label maps."""

import csv
import os
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from ..errors import GrataError
from ..files import expanded, on_disk

__all__ = ["Listed", "read_case_lists"]


class Listed(NamedTuple):
    """Entry of a list of cases.

    Attributes:
        mask: path of the image's label map; None where the list names none.
        site: name of the image's site; None where the list names none.
    """

    mask: Path | None
    site: str | None


def read_case_lists(files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], root: Path) -> dict[Path, Listed]:
    """Read lists of cases.

    Args:
        files: one CSV file or several; each is a path or a name in ``root``. The first line names the columns, in
            upper or lower case. ``image`` and ``mask`` hold paths relative to ``root``, with slashes or backslashes; an
            empty ``mask`` means that the image has no label. ``site`` is optional and names the image's site. Other
            columns are ignored.
        root: folder of the data set, an absolute path.

    Returns:
        The entry of each image, in the order of the lists. The files need not exist. A repeated line counts once.

    Raises:
        GrataError: a list cannot be read, lacks a column, is empty, lists one image with two masks or sites, or names
            a path outside ``root``.
    """
    listed: dict[Path, Listed] = {}
    for file in files if isinstance(files, list | tuple) else [files]:
        if not isinstance(file, str | os.PathLike):
            raise GrataError(
                f"must be the name of a CSV file, got {file!r} ({type(file).__name__}). Write ./ before the name.",
                key="cases_file",
            )
        path = expanded(file)
        path = path if path.is_file() else root / path
        for line, row in _rows(path):
            image, mask = (_inside(root, row[key], f"{path}, line {line}, {key}") for key in ("image", "mask"))
            if image is None:
                raise GrataError(f"{path}, line {line}: the column image is empty. Name an image, or remove the line.")
            entry = Listed(mask, row.get("site") or None)
            if (before := listed.setdefault(image, entry)) != entry:
                other = "mask" if before.mask != entry.mask else "site"
                raise GrataError(
                    f"{path}, line {line}: '{row['image']}' is listed a second time, with another {other}. Correct one "
                    "of the two lines."
                )
    return listed


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Return each line's number and its cells by column."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = [name.strip().lower() for name in next(reader, [])]
            cells = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except FileNotFoundError as error:
        raise GrataError(
            f"'{path}' does not exist. Give the path of a CSV file, or its name in dataset_dir.", key="cases_file"
        ) from error
    except (OSError, ValueError, csv.Error) as error:
        raise GrataError(
            f"'{path}' cannot be read as a CSV file in UTF-8: {error}. Save it as one.", key="cases_file"
        ) from error
    missing = [key for key in ("image", "mask") if key not in header]
    if missing:
        raise GrataError(
            f"'{path}' has no column {' and no column '.join(missing)}; its first line is '{','.join(header)}'. Name "
            "the columns image and mask; cells of mask may be empty.",
            key="cases_file",
        )
    if not cells:
        raise GrataError(f"'{path}' lists no image. Add a line for each image, or give another file.", key="cases_file")
    return [
        (line, {key: cell.strip() for key, cell in zip_longest(header, row[: len(header)], fillvalue="")})
        for line, row in cells
    ]


def _inside(root: Path, cell: str, where: str) -> Path | None:
    if not cell:
        return None
    path = Path(os.path.abspath(root / on_disk(PureWindowsPath(cell).as_posix())))
    if not path.is_relative_to(root):
        raise GrataError(f"{where}: '{cell}' is not in dataset_dir. Give paths relative to that folder.")
    return path
