"""Summary of a run, for programs (``summary.json``) and for the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..files import atomic_write

__all__ = ["Fault", "format_summary", "write_summary"]


class Fault(Protocol):
    """A case that could not be finished.

    Attributes:
        case: id of the case.
        message: what is wrong and what to do about it.
    """

    @property
    def case(self) -> str: ...

    @property
    def message(self) -> str: ...


def write_summary(
    path: str | Path,
    *,
    method: str,
    version: str,
    cases_found: int,
    cases_finished: int,
    faults: Sequence[Fault],
    scores: Sequence[Mapping[str, Any]],
    seconds: float,
    settings: Mapping[str, Any],
) -> None:
    """Write the outcome of a run as JSON, whole or not at all.

    Two runs with the same results differ only in the key ``timing``. A number that is not finite becomes null, and a
    value without a JSON type (a path, a device) becomes its text.

    Args:
        path: file to write, in a folder that exists; an existing file is replaced.
        method: name of the adaptation method.
        version: version of this package.
        cases_found: number of cases that the run was given.
        cases_finished: number of cases whose outputs are complete.
        faults: one entry for each thing that went wrong.
        scores: summarized scores, as :func:`~grata.report.summarise_scores` returns them; empty without labels.
        seconds: wall-clock time of the run.
        settings: settings of the run.

    Raises:
        GrataError: the file cannot be written.
    """
    content = {
        "method": method,
        "version": version,
        "cases_found": cases_found,
        "cases_finished": cases_finished,
        "faults": [{"case": fault.case, "message": fault.message} for fault in faults],
        "scores": scores,
        "settings": settings,
        "timing": {"seconds": round(seconds, 3)},
    }
    text = json.dumps(_jsonable(content), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as temporary:
        # The bytes of a name that are not text become escapes of JSON.
        temporary.write_text(f"{text}\n", encoding="utf-8", errors="backslashreplace")


def _jsonable(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, type(None))) else str(value)


def format_summary(
    *,
    method: str,
    version: str,
    cases_found: int,
    cases_finished: int,
    faults: Sequence[Fault],
    scores: Sequence[Mapping[str, Any]],
    seconds: float,
    output_dir: str | Path,
) -> str:
    """Return the text that ends a run: counts, the table of scores if there were labels, the faults, the output folder.

    Args:
        method: name of the adaptation method.
        version: version of this package.
        cases_found: number of cases that the run was given.
        cases_finished: number of cases whose outputs are complete.
        faults: one entry for each thing that went wrong.
        scores: summarized scores, as :func:`~grata.report.summarise_scores` returns them; empty without labels.
        seconds: wall-clock time of the run.
        output_dir: folder of the outputs.

    Returns:
        The lines, without a newline at the end.
    """
    lines = [f"{method} (grata {version}): {cases_finished} of {cases_found} cases finished in {seconds:.1f} s"]
    if scores:
        lines += ["", *_score_table(scores)]
    if faults:
        lines += ["", f"{len(faults)} {'fault' if len(faults) == 1 else 'faults'}:"]
        lines += [f"  {fault.case}: {' '.join(fault.message.split())}" for fault in faults]
    return "\n".join([*lines, "", f"Outputs: {output_dir}"])


def _score_table(scores: Sequence[Mapping[str, Any]]) -> list[str]:
    header = ["site", "variant", "class", "cases", "Dice [95 % CI]", "HD95", "ASSD", "Dice - source [95 % CI]"]
    cells = [
        [
            str(row["site"]) or "-",
            str(row["variant"]),
            str(row["class"]),
            str(row["cases"]),
            _estimate(row["dice"], row["dice_low"], row["dice_high"], ".3f"),
            _distance(row["hd95"], row["unit"]),
            _distance(row["assd"], row["unit"]),
            _estimate(row["difference"], row["difference_low"], row["difference_high"], "+.3f"),
        ]
        for row in scores
    ]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    lines = ["  " + "  ".join(map(str.ljust, line, widths)).rstrip() for line in (header, *cells)]
    left_out = sum(row["distances_left_out"] for row in scores)
    if left_out:
        lines.append(
            "  HD95 and ASSD are means over the finite distances. These are left out, because a structure is missing "
            "or some cases are measured in mm and others in pixels:"
        )
        lines += [
            f"    {row['site'] or '-'}, {row['variant']}, {row['class']}: {row['distances_left_out']} of {row['cases']}"
            for row in scores
            if row["distances_left_out"]
        ]
    return lines


def _number(value: float, spec: str) -> str:
    return format(value, spec) if math.isfinite(value) else "-"


def _distance(value: float, unit: str) -> str:
    return f"{value:.2f} {unit}" if math.isfinite(value) else "-"


def _estimate(mean: float, low: float, high: float, spec: str) -> str:
    interval = f" [{low:{spec}}, {high:{spec}}]" if math.isfinite(low) else ""
    return _number(mean, spec) + interval
