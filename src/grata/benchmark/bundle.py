"""A bundle as a benchmark reads it: its methods and their sessions, and what results depend on."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..bank.header import saved_path
from ..bundles.bundle import REQUIRED, Bundle
from ..engines.earlier import first_names
from ..errors import GrataError
from ..files import expanded
from ..methods import Method, create, needs_activation, settings_of
from ..session import Session, make_guard
from .config import OF_ROWS, MethodRow

__all__ = ["BenchmarkBundle", "is_random"]

_READ_OF_SITES = ("imports", "site", "discovery", "preprocessing", "to_probabilities", "to_label_map")
"""Configuration keys that a benchmark reads for a target site."""

_OF_METHODS = ("activation", "prepared", "reset", "affine")
"""Configuration keys that apply to every method."""

_OF_SESSIONS = ("bank", "start_from", "save_to", "guard", "on_reject", "quality")
"""Configuration keys that say where an adaptation is kept, and what it starts from."""

_KEPT = ("bank", "save_to")
"""Of these, each job has its own."""

_READ_OF_SOURCES = (
    *_READ_OF_SITES,
    *REQUIRED,
    *_OF_METHODS,
    *_OF_SESSIONS,
    "device",
    "amp",
    "keep_pages",
    "windows",
    "scored",
)
"""Configuration keys that a benchmark reads for a source network; its overrides apply to its sites too."""

# A relative reference (@##key) may mean another key than the one found here: too many keys are found, never too few.
_REFERENCE = re.compile(r"[@%]#*([A-Za-z_]\w*)")


class BenchmarkBundle(Bundle):
    """A bundle as a benchmark reads it: its methods and their sessions, and what results depend on."""

    def refuse_idle(self, overrides: Iterable[str], of_a_site: bool) -> None:
        """Refuse overrides that would change nothing.

        Args:
            overrides: keys of overrides that this bundle was made with.
            of_a_site: whether the overrides belong to a site, else to the source network.

        Raises:
            GrataError: nothing that a benchmark reads refers to one of the keys.
        """
        known = self._referred(_READ_OF_SITES if of_a_site else _READ_OF_SOURCES)
        for key in overrides:
            head = key.split("#")[0]
            if head in known:
                continue
            if of_a_site and head in self._referred(_READ_OF_SOURCES):
                raise GrataError(
                    "has no effect on how a site is read. Set it in sources: streams cross sites with one network.",
                    key=f"{self.name}#{key}",
                )
            raise GrataError(
                "a benchmark does not read it; only the bundle's own workflow does. Leave it out.",
                key=f"{self.name}#{key}",
            )

    def _referred(self, keys: Iterable[str]) -> set[str]:
        """Return the top-level keys that these keys refer to, directly or not, with the keys themselves."""
        config = self.raw()
        found: set[str] = set()
        waiting = [key for key in keys if key in config]
        while waiting:
            key = waiting.pop()
            if key in found:
                continue
            found.add(key)
            waiting += {name for text in _texts(config[key]) for name in _REFERENCE.findall(text)} & set(config)
        return found

    def create_method(self, row: MethodRow, network: nn.Module, seed: int) -> Method:
        """Return the method of a row; errors keep the keys that :func:`grata.methods.create` gives them."""
        common = {key: self.value(key) for key in ("activation", "prepared")}
        affine = row.affine or self.value("affine") or "auto"
        return create(row.method, network, row.settings, affine, seed=seed, **common)

    def make_session(self, row: MethodRow, network: nn.Module, seed: int, job: str = "plan") -> Session:
        """Return a session of the method of a row; the row's settings take precedence over the bundle's keys.

        Args:
            row: row of the tables.
            network: source network.
            seed: seed of the method's random generator.
            job: name of the job, which has its own folder in the bank and its own saved adaptation.

        Raises:
            GrataError: a setting is not known, or the method refuses it or the network; the key is that of the row.
        """
        bank, save_to = (_of_job(self.value(key), job) for key in _KEPT)
        with _under_row(row):
            return Session(
                self.create_method(row, network, seed),
                self.windows,
                bank,
                self.value("start_from"),
                save_to,
                reset=self.value("reset") if row.reset is None else row.reset,
                guard=self._guard(row),
            )

    def _guard(self, row: MethodRow) -> Any:
        common = {"on_reject": self.value("on_reject"), "calibration": self.value("quality")}
        segments = self.resolve("segments")
        return make_guard(
            self._guarded(row), activation=self.activation, output=self.output, segments=segments, **common
        )

    def _guarded(self, row: MethodRow) -> Any:
        """Return the settings of a row's guard, or whether there is one."""
        return self.value("guard", True) if row.guard is None else row.guard

    def fingerprint(self) -> dict[str, Any]:
        """Return what results depend on: the configuration with its overrides, and digests of the weights."""
        weights = self.resolve("weights")
        digests = []
        for path in map(Path, [weights] if isinstance(weights, str | Path) else weights):
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        apart = {*_WHERE, *_OF_METHODS, "quality"}
        config = {key: value for key, value in self.raw().items() if key not in apart}
        judged = self.value("guard", True) not in (None, False)
        quality = {"quality": _digest(self.value("quality"))} if judged else {}
        return {"weights": digests, "config": first_names(config), **quality}

    def _start_from(self) -> Path | None:
        path = self.value("start_from")
        return None if path is None else saved_path(path)

    def method_fingerprint(self, row: MethodRow) -> dict[str, Any]:
        """Return what a row's method depends on beside the network: its settings, and a digest of the prepared file."""
        known, settings = settings_of(row.method), dict(row.settings)
        found: dict[str, Any] = {"method": row.method, "settings": settings, "prepared": None}
        if "prepared" in known:
            found["prepared"] = _digest(self.value("prepared"))
        if needs_activation(row.method, settings):
            # Digests on the disk are older than the session: a policy stood among these methods' settings.
            found |= {key: self.resolve(key) for key in ("activation", "reset") if key in self}
            settings |= {} if row.reset is None else {"reset": row.reset}
        # What is not at its default is younger than they are.
        later = {"affine": row.affine or self.value("affine"), "start_from": _digest(self._start_from())}
        if row.guard not in (None, False):
            later["quality"] = _digest(self.value("quality"))
        later["guard"] = row.guard
        return found | {key: value for key, value in later.items() if value not in (None, "auto")}


# Keys without influence on a result: where files lie, and what only the command `adapt` reads.
_WHERE = {
    "bundle_root",
    "weights",
    "dataset_dir",
    "labels_dir",
    "cases_file",
    "keep_pages",
    "output_dir",
    "num_workers",
    "max_voxels",
    "resume",
    "overwrite",
    "compare",
    "traceback",
    "dataset",
    "dataloader",
    "adaptation",
    "outputs",
    "handlers",
    "evaluator",
    "adaptation_run",
    "initialize",
    "adapt",
    "method",
    "seed",
    "settings",
}


def is_random(row: MethodRow) -> bool:
    """Return whether a row's method has a random generator."""
    return "seed" in settings_of(row.method)


def _of_job(path: Any, job: str) -> Any:
    """Return the path of a job below that of a benchmark, also in the settings of a bank."""
    if isinstance(path, Mapping):
        return {key: _of_job(value, job) if key == "path" else value for key, value in path.items()}
    return path if path is None else expanded(str(path)) / job


def _digest(file: Any) -> str | None:
    """Return the SHA-256 of a file; None where there is none."""
    path = expanded(file) if isinstance(file, str | Path) else None
    return hashlib.sha256(path.read_bytes()).hexdigest() if path is not None and path.is_file() else None


@contextlib.contextmanager
def _under_row(row: MethodRow) -> Iterator[None]:
    """Name the row in errors of its method and its session."""
    try:
        yield
    except GrataError as error:
        where, key = f"methods#{row.name}", error.key or ""
        if error.head == "settings":
            raise GrataError(error.message, f"{where}{key.removeprefix('settings')}") from error
        if getattr(row, error.head, None) is not None and error.head in OF_ROWS:
            raise GrataError(error.message, f"{where}#{key}") from error
        raise GrataError(str(error), where) from error


def _texts(config: Any) -> Iterator[str]:
    """Yield all strings in a value of a configuration."""
    if isinstance(config, str):
        yield config
    elif isinstance(config, Mapping | list | tuple):
        for value in config.values() if isinstance(config, Mapping) else config:
            yield from _texts(value)
