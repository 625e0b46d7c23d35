"""The record of a case: what its steps measured, and the line that a journal gets of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .._version import __version__
from ..methods import StepRecord

__all__ = ["fault_line", "journal_line", "merged_record"]


def merged_record(records: Sequence[StepRecord]) -> dict[str, Any]:
    """Return the last step's values, the flags of all steps and, if there were several, the values of each step.

    ``reset`` is true if any step, which can only be the first, started from the source network. ``agreement``, which
    measures the quality of the prediction, is the mean over the steps that have one.

    Args:
        records: records of one case, at least one.
    """
    steps = [step for record in records for step in (record.as_dict().pop("steps", None) or [record.as_dict()])]
    for step in steps:
        step.pop("steps", None)
    flags = list(dict.fromkeys(flag for record in records for flag in record.flags))
    merged = {**steps[-1], "flags": flags, "reset": any(record.reset for record in records)}
    if len(steps) > 1:
        agreements = [step["agreement"] for step in steps if math.isfinite(step.get("agreement", math.nan))]
        merged |= {"agreement": sum(agreements) / len(agreements)} if agreements else {}
        merged["steps"] = steps
    return merged


def journal_line(
    name: str, site: str | None, method: str, record: Mapping[str, Any], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the line of an image of a finished case.

    Args:
        name: name of the image.
        site: its site; None: unknown.
        method: name of the method.
        record: record of the case.
        about: further keys of every line of the session, such as the fold of a network.
    """
    identity = {"case": name, "site": site, **about, "method": method, "version": __version__}
    return identity | {key: value for key, value in record.items() if key not in identity}


def fault_line(name: str, message: str) -> dict[str, Any]:
    """Return the line of an image that failed.

    Args:
        name: name of the image.
        message: what was wrong, in one sentence.
    """
    return {"case": name, "fault": message, "version": __version__}
