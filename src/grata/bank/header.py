"""Header of a saved adaptation, read and checked without torch."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import GrataError
from ..files import absence, expanded
from ..tensors import unpack

__all__ = [
    "FORMAT",
    "HEADER",
    "Header",
    "card_path",
    "is_other",
    "read_header",
    "read_checked",
    "saved_digest",
    "saved_path",
]

HEADER = "grata_adaptation"
"""Key of the header in a safetensors file's metadata."""

FORMAT = 1
_SUFFIX = ".safetensors"


@dataclasses.dataclass(frozen=True)
class Header:
    """A saved adaptation without its state.

    Attributes:
        method: name of the method.
        settings: settings that the state belongs to, by name, as text.
        reset: reset policy.
        network: class of the network.
        source: SHA-256 of the source weights, see :func:`grata.networks.network_digest`.
        entry: site or scanner of the adaptation, by ``site`` or DICOM keyword; empty: both are unknown.
        cases: number of cases so far; their names are not kept.
        batches: number of batches since the source network.
        parameters: number of adapted values.
        parameter_change: distance from the source, ``l2`` and ``relative``.
        batch_statistics: whether predictions use the statistics of the batch instead of the running ones.
        predicts_by: part of the state that a plain network predicts with; None: weights alone do not predict as the
            method does.
        names: names of each adapted parameter in the network's state dict: several if layers share it, none if it was
            attached.
        attached: names that attached parameters would have in the state dict if the layers had them themselves.
        version: version of this package.
    """

    method: str
    settings: Mapping[str, str]
    reset: str
    network: str
    source: str
    entry: Mapping[str, str]
    cases: int
    batches: int
    parameters: int
    parameter_change: Mapping[str, float]
    batch_statistics: bool
    predicts_by: str | None
    names: Mapping[str, list[str]]
    attached: Mapping[str, list[str]]
    version: str

    @property
    def card(self) -> dict[str, Any]:
        """Readable description, ready for JSON, with nothing about any case."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(Header)}
        del fields["names"], fields["attached"]
        return {**fields, "attached": sum(map(len, self.attached.values()))}


def read_header(path: str | os.PathLike[str]) -> Header:
    """Return the header of a saved adaptation; the whole file is checked as :func:`read_checked` does.

    Raises:
        GrataError: there is no such file, it is damaged, or of another kind.
    """
    header, _ = read_checked(path)
    try:
        return Header(**{field.name: header[field.name] for field in dataclasses.fields(Header)})
    except KeyError as error:
        raise GrataError(f"{saved_path(path)} is incomplete (no {error}). Copy it anew, or remove it.") from error


def read_checked(path: str | os.PathLike[str]) -> tuple[dict[str, Any], bytes]:
    """Return the fields of a saved adaptation, its state as a skeleton, and the bytes of the file with its tensors.

    Raises:
        GrataError: there is no such file, its content is not what was written, or it is of another kind.
    """
    path = saved_path(path)
    if not path.is_file():
        raise GrataError(f"{path} {absence(path)}. Name a saved adaptation, <name>.safetensors.")
    try:
        data = path.read_bytes()
        header, written = unpack(data, HEADER)
    except (SafetensorError, OSError, ValueError, LookupError) as error:
        raise GrataError(f"{path} is damaged and cannot be read ({error}). Copy it anew, or remove it.") from error
    if not header:
        raise GrataError(f"{path} is not a saved adaptation. Name one that grata wrote.")
    if not written:
        raise GrataError(f"{path} is damaged: its content is not what was written. Copy it anew, or remove it.")
    if header.pop("format", None) != FORMAT:
        raise GrataError(f"{path} was written by another version of grata ({header.get('version')}). Use that one.")
    return header, data


def saved_path(path: str | os.PathLike[str]) -> Path:
    """Return ``path``, which may leave out its ``.safetensors``."""
    path = expanded(path)
    return path if path.suffix == _SUFFIX else path.with_name(path.name + _SUFFIX)


def card_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of the card that lies beside a saved adaptation."""
    return saved_path(path).with_suffix(".json")


def saved_digest(path: Path) -> str | None:
    """Return the digest of the content as a file's header has it; None: there is no file, or no such header."""
    if not path.is_file():
        # a pipe would never end
        return None
    try:
        with safe_open(path, "numpy") as file:
            content = _header(file.metadata()).get("content")
            return content if isinstance(content, str) else None
    except (SafetensorError, OSError, ValueError):
        return None


def is_other(path: Path) -> bool:
    """Return whether a file is whole and holds something else than a saved adaptation, such as weights."""
    if not path.is_file():
        return False
    try:
        with safe_open(path, "numpy") as file:
            return HEADER not in (file.metadata() or {})
    except (SafetensorError, OSError, ValueError):
        return False


def _header(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    header = json.loads((metadata or {}).get(HEADER, "{}"))
    return header if isinstance(header, dict) else {}
