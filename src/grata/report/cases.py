"""Table of the cases of a run: what became of each, how large it is, and what the guard says of it."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..console import say
from ..files import CASES
from ..quality import Judgement
from .summary import Fault
from .tables import legible, read_table, write_table

__all__ = ["FAILED", "case_row", "case_rows", "report_verdicts", "verdict_lines", "write_cases"]

FAILED = "failed"
"""What stands in place of a verdict where nothing could be predicted."""

_FIRST = ("case", "path", "site", "verdict", "used", "written", "expected_dice", "expected_low", "expected_high")
_SIGNALS = ("agreement_views", "agreement_source", "self_dice", "distance")


def case_row(
    name: str,
    judgement: Judgement,
    path: str = "",
    site: str = "",
    volumes: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Return the line of a case.

    Args:
        name: name of the case.
        judgement: what the guard says of it.
        path: its path below the folder of the scans, without what identifies a patient.
        site: its site.
        volumes: rows of :func:`grata.report.case_volumes` with their ``variant``, in mL, mm² or pixels; without them
            the sizes are voxels on the network's grid.

    Returns:
        Values by column; of each segment ``<segment>, adapted``, ``<segment>, source`` and ``<segment>, ratio``.
    """
    quality = judgement.quality
    row: dict[str, Any] = {
        "case": name,
        "path": path,
        "site": site,
        "verdict": judgement.verdict,
        "used": judgement.used,
        "written": "no" if judgement.withheld else "yes",
        **{key: quality[key] for key in (*_FIRST[6:], *_SIGNALS) if _known(quality.get(key))},
    }
    sizes = {(str(v["class"]), v["variant"] == "source"): _size(v) for v in volumes}
    for segment, signals in quality.get("segments", {}).items():
        mine, theirs, ratio = signals["voxels"], signals["source_voxels"], signals["ratio"]
        if (segment, True) in sizes:
            theirs = sizes[segment, True]
            # where the source prediction stands in its place, or none, the source's alone was measured: the other size
            # follows, or is not known
            followed = theirs * ratio if math.isfinite(ratio) else math.nan
            # the method source adapts nothing: its prediction is the source network's
            mine = sizes.get((segment, False), theirs) if judgement.used == "adapted" else followed
        row |= {f"{segment}, adapted": mine, f"{segment}, source": theirs, f"{segment}, ratio": ratio}
    row["reasons"] = "; ".join(judgement.reasons)
    return row


def case_rows(
    judgements: Mapping[str, Judgement],
    faults: Iterable[Fault] = (),
    sites: Mapping[str, str | None] | None = None,
    paths: Mapping[str, str] | None = None,
    volumes: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the line of each case, by its name: those that failed first.

    Args:
        judgements: judgement of each case that was finished, by name.
        faults: what could not be finished; a fault of a case that was judged all the same has no line.
        sites, paths, volumes: what :func:`case_row` takes of each case, by its name, where it is known.
    """
    sites, paths, volumes = sites or {}, paths or {}, volumes or {}
    rows: dict[str, dict[str, Any]] = {}
    for fault in faults:
        where = {"case": fault.case, "path": paths.get(fault.case, ""), "site": sites.get(fault.case) or ""}
        rows[fault.case] = where | {"verdict": FAILED, "used": "", "written": "no", "reasons": fault.message}
    for name, judgement in judgements.items():
        rows[name] = case_row(name, judgement, paths.get(name, ""), sites.get(name) or "", volumes.get(name, ()))
    return rows


def write_cases(rows: Iterable[Mapping[str, Any]], path: str | Path) -> None:
    """Write lines of :func:`case_rows` as CSV, whole or not at all.

    Args:
        rows: lines, written in the order given.
        path: file to write, in a folder that exists; an existing file is replaced.

    Raises:
        GrataError: the file cannot be written.
    """
    rows = list(rows)
    known = [key for key in (*_FIRST, *_SIGNALS) if any(key in row for row in rows) or key in _FIRST[:6]]
    others = dict.fromkeys(key for row in rows for key in row if key not in known and key != "reasons")
    write_table(rows, [*known, *others, "reasons"], path)


def verdict_lines(judgements: Mapping[str, Judgement]) -> list[str]:
    """Return what the terminal shows of the verdicts: their numbers, and a line for each case that is not ok.

    Args:
        judgements: judgement of each case, by name.
    """
    if not judgements:
        return []
    verdicts = [judgement.verdict for judgement in judgements.values()]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(("ok", *sorted(set(verdicts)))))
    lines = [f"verdicts: {counts}"]
    for name, judgement in judgements.items():
        if judgement.verdict == "ok" and judgement.used == "adapted":
            continue
        used = {"adapted": "", "source": " (source prediction)", "neither": " (not to be used)"}[judgement.used]
        used = " (kept all the same)" if (judgement.verdict, judgement.used) == ("reject", "adapted") else used
        used = " (withheld)" if judgement.withheld else used
        lines.append(f"  {name}: {judgement.verdict}{used}. {'; '.join(judgement.reasons)}".rstrip(". "))
    return lines


def report_verdicts(
    judgements: Mapping[str, Judgement],
    folder: Path | None,
    sites: Mapping[str, str | None] | None = None,
    faults: Iterable[Fault] = (),
) -> None:
    """Print the verdicts of a run, and write its ``cases.csv``; nothing where nothing was judged.

    Lines of an earlier run in the folder stay, but for the cases of this one.

    Args:
        judgements: judgement of each case, by name.
        folder: folder of the table; None: it is not written.
        sites: site of each case, where it is known.
        faults: what could not be finished.

    Raises:
        GrataError: the file cannot be written.
    """
    for line in verdict_lines(judgements):
        say(line)
    if folder is not None and judgements:
        rows = case_rows(judgements, faults, sites)
        write_cases([*_earlier(folder / CASES, rows), *rows.values()], folder / CASES)


def _earlier(path: Path, present: Collection[str]) -> list[dict[str, str]]:
    """Return the lines of an earlier run, without those of the cases of this one."""
    present = set(map(legible, present))
    try:
        lines = [line for line in read_table(path)[1] if line.get("case") and line["case"] not in present]
    except (OSError, ValueError, csv.Error):
        return []
    # what one run measured and the other did not is left empty
    return [{key: value for key, value in line.items() if key and value} for line in lines]


def _size(volume: Mapping[str, Any]) -> float:
    return next(volume[key] for key in ("volume_ml", "area_mm2", "area_px", "voxels") if key in volume)


def _known(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
