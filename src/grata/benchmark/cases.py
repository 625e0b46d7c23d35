"""The rows of a benchmark as a table that anybody can check: one line for each image, method and stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..files import atomic_write
from .config import BenchmarkConfig
from .stream import MEASURED

__all__ = ["case_table", "write_cases"]

_SCORES = ("dice", "hd95", "assd")
_JUDGED = ("verdict", "used", "expected_dice")
_DECIMALS = {"dice": 4, "hd95": 2, "assd": 2, "seconds": 3, "expected_dice": 3}


def case_table(config: BenchmarkConfig, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return one line for each image that was finished, by method, stream, round and seed.

    Args:
        config: configuration of the benchmark.
        rows: all finished rows.

    Returns:
        A frame with the columns ``protocol``, ``source``, ``target``, ``home`` (1 for the source's own site), ``case``,
        ``group`` (images that belong together), ``method``, ``seed``, ``round``, ``position``; ``dice/<structure>``,
        ``hd95/<structure>`` and ``assd/<structure>``, and their means as ``<metric>/mean``; ``seconds`` of adaptation
        and prediction, empty for the first image after a start; and of judged rows ``verdict``, ``used`` and
        ``expected_dice``.
    """
    frame = pd.DataFrame([row for row in rows if not row["error"]])
    if frame.empty:
        return frame
    table = frame[["protocol", "source", "target"]].copy()
    table["home"] = (frame["target"] == config.home).astype(int)
    table["case"] = frame["case"]
    table["group"] = [
        config.groups[target](case) if target in config.groups else case
        for target, case in zip(frame["target"], frame["case"], strict=True)
    ]
    for column in ("method", "seed", "round", "position"):
        table[column] = frame[column]
    for column in (c for c in frame if c.split("/")[0] in _SCORES):
        table[column] = frame[column]
    if set(MEASURED) <= set(frame):
        seconds = frame["seconds"] + frame["seconds_predict"]
        table["seconds"] = seconds.where(~frame["cold"].eq(True))
    for column in (c for c in _JUDGED if c in frame):
        table[column] = frame[column]
    decimals = {c: _DECIMALS[c.split("/")[0]] for c in table if c.split("/")[0] in _DECIMALS}
    # The table is what is published: whoever computes with it gets the same numbers as this program.
    return table.round(decimals)


def write_cases(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table of cases as compressed CSV, whole or not at all; the same table gives the same bytes.

    Args:
        table: result of :func:`case_table`.
        path: file to write, ``.csv.gz``.
    """
    with atomic_write(path) as temporary:
        packing: dict[str, Any] = {"method": "gzip", "mtime": 0}
        table.replace([np.inf, -np.inf], ["inf", "-inf"]).to_csv(
            temporary, index=False, compression=packing, lineterminator="\n"
        )
