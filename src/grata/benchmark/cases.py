"""The rows of a benchmark as a table that anybody can check: one line for each image, method and stream."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..files import atomic_write
from .config import BenchmarkConfig

__all__ = ["case_table", "write_cases"]

_SCORES = ("dice", "hd95", "assd")
_IDENTITY = ["protocol", "source", "target", "home", "case", "group", "method", "seed", "round", "position"]
_OTHERS = ("seconds", "expected_dice", "verdict", "used")
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
    frame["home"] = (frame["target"] == config.home).astype(int)
    frame["group"] = [_group(config, *pair) for pair in zip(frame["target"], frame["case"], strict=True)]
    scores = _scores(frame)
    if "seconds" in frame:
        frame["seconds"] = (frame["seconds"] + frame["seconds_predict"]).where(~frame["cold"].eq(True))
    table = frame[[*_IDENTITY, *scores, *(column for column in _OTHERS if column in frame)]]
    # The table is what is published: whoever computes with it gets the same numbers as this program.
    return table.round({column: _DECIMALS[column.split("/")[0]] for column in (*scores, *_OTHERS[:2])})


def _scores(frame: pd.DataFrame) -> list[str]:
    return [column for column in frame if column.split("/")[0] in _SCORES]


def _group(config: BenchmarkConfig, target: str, case: str) -> str:
    return config.groups[target](case) if target in config.groups else case


def write_cases(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table of cases as compressed CSV, whole or not at all; the same table gives the same bytes.

    Args:
        table: result of :func:`case_table`.
        path: file to write, ``.csv.gz``.
    """
    text = table.to_csv(index=False, lineterminator="\n")
    with atomic_write(path) as temporary:
        temporary.write_bytes(gzip.compress(text.encode(), mtime=0))
