"""The files of one job, in which a row and the state that led to it are never at odds."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import GrataError
from ..files import append_line, atomic_write

__all__ = ["Part"]


class Part:
    """Rows (JSON lines), method state and label maps of one job.

    A row is appended first, then the state replaced, which counts the rows that it stands for. A process that is killed
    in between leaves a row more than that: it is dropped, and its image done again from the state before it.

    Args:
        folder: of all parts.
        name: of the job.
        fingerprint: of what the job's results depend on.
    """

    def __init__(self, folder: Path, name: str, fingerprint: Mapping[str, str]) -> None:
        self.name = name
        self.fingerprint = dict(fingerprint)
        self._base = folder / name
        self._rows = self._base.with_name(f"{self._base.name}.jsonl")
        self._state = self._base.with_name(f"{self._base.name}.pt")
        self.lock = self._base.with_name(f"{self._base.name}.lock")

    def changed(self) -> list[str]:
        """What this job had otherwise when it was begun; empty for a new one."""
        state = self._read_state()
        before = json.loads(state["fingerprint"]) if state else self.fingerprint
        return [key for key in self.fingerprint if before.get(key) != self.fingerprint[key]]

    def open(self) -> tuple[list[dict[str, Any]], Mapping[str, Any] | None]:
        """Rows that are done and the method's state after them (None: the source), ready to go on.

        Raises:
            OutputError: the folder cannot be written.
        """
        state, rows = self._read_state(), self.rows()
        if state is None or len(rows) < state["finished"]:
            self._base.parent.mkdir(parents=True, exist_ok=True)
            self._write_rows([])
            self.commit(0, None)
            return [], None
        self._write_rows(rows)
        return rows, state["method"]

    def rows(self) -> list[dict[str, Any]]:
        """The rows that are done."""
        state = self._read_state()
        if state is None or not self._rows.is_file():
            return []
        try:
            lines = self._rows.read_text(encoding="utf-8").splitlines()[: state["finished"]]
            rows = [json.loads(line) for line in lines]
        except ValueError as error:
            raise self._damaged_rows() from error
        if not all(isinstance(row, dict) for row in rows):
            raise self._damaged_rows()
        return rows

    def _damaged_rows(self) -> GrataError:
        return GrataError(f"{self._rows} is damaged. Remove it and {self._state.name} beside it; the job starts anew.")

    def append(self, row: Mapping[str, Any]) -> None:
        """Write a row; it counts once :meth:`commit` says so."""
        append_line(self._rows, json.dumps(row))

    def commit(self, finished: int, method: Mapping[str, Any] | None) -> None:
        """Count ``finished`` rows as done, with the method's state after the last of them."""
        # torch.save itself answers a full disk with a RuntimeError about its archive
        buffer = io.BytesIO()
        state = {"finished": finished, "method": method, "fingerprint": json.dumps(self.fingerprint, sort_keys=True)}
        torch.save(state, buffer)
        with atomic_write(self._state) as temporary:
            temporary.write_bytes(buffer.getvalue())

    def write_label_map(self, position: int, labels: np.ndarray) -> None:
        """Keep the prediction of the image at a position."""
        path = self._label_map(position)
        path.parent.mkdir(exist_ok=True)
        with atomic_write(path) as temporary:
            np.savez_compressed(temporary, labels=labels)

    def read_label_map(self, position: int) -> np.ndarray | None:
        """A kept prediction, or None."""
        path = self._label_map(position)
        if not path.is_file():
            return None
        # It is only for a figure.
        with contextlib.suppress(Exception), np.load(path, allow_pickle=False) as file:
            return file["labels"]
        return None

    def _label_map(self, position: int) -> Path:
        return self._base / f"{position:06d}.npz"

    def _write_rows(self, rows: list[dict[str, Any]]) -> None:
        with atomic_write(self._rows) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def _read_state(self) -> dict[str, Any] | None:
        if not self._state.is_file():
            return None
        try:
            # Another machine may not have the device on which the state was written.
            state = torch.load(self._state, map_location="cpu", weights_only=True)
        except OSError as error:
            raise GrataError(
                f"output_dir: {self._state} cannot be read ({error.strerror or error}). Check its permissions."
            ) from error
        # A damaged archive or pickle raises any of many kinds of exception.
        except Exception as error:
            raise self._damaged(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
        if not isinstance(state, dict) or not {"finished", "method", "fingerprint"} <= state.keys():
            raise self._damaged("it lacks finished, method or fingerprint")
        return state

    def _damaged(self, why: str) -> GrataError:
        return GrataError(
            f"{self._state} is damaged or not the state of a benchmark ({why}). Remove it; the job starts anew."
        )
