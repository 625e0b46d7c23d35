"""The files of one job. A row and the method's state after it always match."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import GrataError
from ..files import append_line, atomic_write, remove_leftovers
from ..session.attempts import Attempts
from ..states import read_state, write_state

__all__ = ["Part"]


class Part:
    """Rows (JSON lines), progress, method state and label maps of one job.

    The row is appended first, then the state is replaced, then the progress; both count the finished rows. A process
    that is killed in between leaves one of two things. There is one row more than the state counts: the row is dropped,
    and its image is run again from the state before it. Or the state counts one row more than the progress: the state
    is right.

    If no later image depends on the state, none is kept; the progress says so before the last state is removed.

    Args:
        folder: folder of all parts.
        name: name of the job.
        fingerprint: digests of everything that the job's results depend on, by name.

    Attributes:
        kept: what the bank needs to go on from the state that :meth:`open` returned; None: there is no bank.
        settled: whether the bank holds what the finished rows left there: it is written after them, and the process may
            have been killed in between.
        attempts: images that were begun, and during which the process ended.
    """

    def __init__(self, folder: Path, name: str, fingerprint: Mapping[str, str]) -> None:
        self.name = name
        self.fingerprint = dict(fingerprint)
        self.kept: dict[str, Any] | None = None
        self.settled = True
        self._base = folder / name
        self._rows = self._base.with_name(f"{self._base.name}.jsonl")
        self._progress = self._base.with_name(f"{self._base.name}.json")
        self._state = self._base.with_name(f"{self._base.name}.pt")
        self.lock = self._base.with_name(f"{self._base.name}.lock")
        self.attempts = Attempts(self._base.with_name(f"{self._base.name}.begun"))

    def changed(self) -> list[str]:
        """Return the names of fingerprints that have changed since the job was begun; empty for a new job."""
        progress = self._read_progress()
        before = progress["fingerprint"] if progress else self.fingerprint
        return [key for key in self.fingerprint if before.get(key) != self.fingerprint[key]]

    def check(self) -> None:
        """Check the state that the job would resume from.

        Raises:
            GrataError: the state is damaged.
        """
        self._read_state()

    def open(self) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
        """Return the finished rows and the method's state after them (None: the source), and make the files ready.

        Raises:
            OutputError: the folder cannot be written.
        """
        self._tidy()
        progress, state = self._read_progress(), self._read_state()
        if progress is not None:
            if state is not None and state["finished"] < progress["finished"]:
                state = None
            finished = (state or progress)["finished"]
            rows = self._read_rows(finished)
            if len(rows) == finished and (state is not None or not progress["state"]):
                opened = state or {}
                self.kept = opened.get("kept")
                self.settled = self._bank_holds(progress, finished)
                self._write_rows(rows)
                self._write_progress(finished, state is not None)
                if state is None:
                    self._remove_state()
                return rows, opened.get("method")
        self._base.parent.mkdir(parents=True, exist_ok=True)
        self._remove_state()
        self.settled = True
        self._write_rows([])
        self._write_progress(0, False)
        return [], None

    def _tidy(self) -> None:
        """Remove what a killed process left, beside the files of other jobs that may be running."""
        own = {path.name for path in (self._rows, self._progress, self._state, self.attempts.path)}
        remove_leftovers(self._base.parent, own.__contains__)
        remove_leftovers(self._base)

    def _bank_holds(self, progress: Mapping[str, Any], finished: int) -> bool:
        return self.kept is None or (finished == progress["finished"] and _is_settled(progress))

    def rows(self) -> list[dict[str, Any]]:
        """Return the finished rows."""
        progress = self._read_progress()
        return [] if progress is None else self._read_rows(progress["finished"])

    def is_settled(self) -> bool:
        """Return whether the bank holds what the finished rows left there, by what is on the disk."""
        progress = self._read_progress()
        return progress is None or _is_settled(progress)

    def settle(self) -> None:
        """Note that the bank holds what the finished rows left there."""
        progress = self._read_progress()
        if progress is not None and not self.settled:
            self.settled = True
            self._write_progress(progress["finished"], progress["state"])

    def append(self, row: Mapping[str, Any]) -> None:
        """Write a row; it counts as finished after :meth:`commit`."""
        append_line(self._rows, json.dumps(row))

    def commit(self, finished: int, method: Mapping[str, Any] | None, kept: Mapping[str, Any] | None = None) -> None:
        """Count the first ``finished`` rows as finished.

        Args:
            finished: number of rows.
            method: state of the method after the last of them; None: no later image depends on it.
            kept: what the bank needs to go on from that state; None: there is no bank.
        """
        if method is not None:
            self._write_state(finished, method, kept)
        self.settled = kept is None
        self._write_progress(finished, method is not None)
        if method is None:
            self._remove_state()

    def write_label_map(self, position: int, labels: np.ndarray) -> None:
        """Write the prediction for the image at a position."""
        path = self._label_map(position)
        path.parent.mkdir(exist_ok=True)
        with atomic_write(path) as temporary:
            np.savez_compressed(temporary, labels=labels)

    def read_label_map(self, position: int) -> np.ndarray | None:
        """Return the prediction for the image at a position, or None if there is none."""
        path = self._label_map(position)
        if not path.is_file():
            return None
        # A damaged map only leaves a gap in a figure.
        with contextlib.suppress(Exception), np.load(path, allow_pickle=False) as file:
            return file["labels"]
        return None

    def _label_map(self, position: int) -> Path:
        return self._base / f"{position:06d}.npz"

    def _write_rows(self, rows: list[dict[str, Any]]) -> None:
        with atomic_write(self._rows) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def _write_progress(self, finished: int, state: bool) -> None:
        progress = {"finished": finished, "state": state, "fingerprint": self.fingerprint}
        progress |= {} if self.settled else {"settled": False}
        with atomic_write(self._progress) as temporary:
            temporary.write_text(json.dumps(progress, sort_keys=True), encoding="utf-8")

    def _write_state(self, finished: int, method: Mapping[str, Any], kept: Mapping[str, Any] | None) -> None:
        state = {"finished": finished, "method": dict(method)}
        write_state(self._state, state if kept is None else state | {"kept": dict(kept)})

    def _remove_state(self) -> None:
        self._state.unlink(missing_ok=True)

    def _read_rows(self, finished: int) -> list[dict[str, Any]]:
        """Return the first ``finished`` rows, or fewer if there are fewer."""
        if not self._rows.is_file():
            return []
        try:
            lines = self._rows.read_text(encoding="utf-8").splitlines()[:finished]
            rows = [json.loads(line) for line in lines]
        except ValueError as error:
            raise self._damaged_rows() from error
        if not all(isinstance(row, dict) for row in rows):
            raise self._damaged_rows()
        return rows

    def _read_progress(self) -> dict[str, Any] | None:
        if not self._progress.is_file():
            if self._state.is_file():
                raise GrataError(
                    f"{self._state} is there without {self._progress.name}, which says what it belongs to. "
                    "Remove it; the job starts again.",
                    key="output_dir",
                )
            return None
        try:
            progress = json.loads(self._progress.read_text(encoding="utf-8"))
        except OSError as error:
            raise self._unreadable(self._progress, error) from error
        except ValueError as error:
            raise self._damaged_progress() from error
        kinds = {"finished": int, "state": bool, "fingerprint": dict}
        if not isinstance(progress, dict) or not all(isinstance(progress.get(k), kind) for k, kind in kinds.items()):
            raise self._damaged_progress()
        return progress

    def _read_state(self) -> dict[str, Any] | None:
        if not self._state.is_file():
            return None
        try:
            state = read_state(self._state)
        except OSError as error:
            raise self._unreadable(self._state, error) from error
        # A damaged archive or pickle can raise any kind of exception.
        except Exception as error:
            raise self._damaged_state(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
        if not isinstance(state, dict) or not {"finished", "method"} <= state.keys():
            raise self._damaged_state("it lacks finished or method")
        return state

    def _unreadable(self, path: Path, error: OSError) -> GrataError:
        return GrataError(
            f"{path} cannot be read ({error.strerror or error}). Check its permissions.", key="output_dir"
        )

    def _damaged_rows(self) -> GrataError:
        return GrataError(f"{self._rows} is damaged. Remove it; the job starts again.")

    def _damaged_progress(self) -> GrataError:
        beside = f" and {self._state.name} beside it" if self._state.is_file() else ""
        return GrataError(f"{self._progress} is damaged. Remove it{beside}; the job starts again.")

    def _damaged_state(self, why: str) -> GrataError:
        return GrataError(
            f"{self._state} is damaged or not the state of a benchmark ({why}). Remove it; the job starts again."
        )


def _is_settled(progress: Mapping[str, Any]) -> bool:
    """Return whether a progress says so; it says nothing where there is no bank."""
    return progress.get("settled", True) is not False
