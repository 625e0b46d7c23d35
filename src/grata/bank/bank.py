"""A folder with one saved adaptation for each site or scanner."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import GrataError, OutputError
from ..files import absence, check_output_dir, expanded, locked, remove_leftovers
from .header import Header, card_path, is_other, read_header, saved_digest
from .tags import SCANNER, check_tags, scanner_tags

if TYPE_CHECKING:
    import torch

    from .saved import Adaptation

__all__ = ["UNKNOWN", "WAIT_S", "AdapterBank", "entry_name", "make_bank", "replace"]

UNKNOWN = "unknown"
"""Entry of scans whose site and scanner are unknown; also the site of cases without a given site."""

_NAME = re.compile(rf"{UNKNOWN}|.+-[0-9a-f]{{12}}")
WAIT_S = 60
"""Seconds to wait for another process that writes an adaptation."""

T = TypeVar("T")


class AdapterBank:
    """A folder of saved adaptations by site or scanner.

    The key of a scan is its site if one is given, or else the values of its scanner's DICOM tags. A scan with neither
    belongs to the entry ``unknown``.

    Args:
        path: folder of the bank; it is created with the first entry.
        tags: DICOM keywords that make the key of a scan without a site. They describe the device alone, see
            :func:`grata.bank.check_tags`.

    Raises:
        GrataError: ``path`` is a file, or a tag is not allowed.
    """

    def __init__(self, path: str | os.PathLike[str], tags: Sequence[str] = SCANNER) -> None:
        if not isinstance(path, str | os.PathLike):
            raise GrataError(f"must be a folder, got {path!r}.", key="bank")
        self.path = expanded(path)
        if self.path.is_symlink() and not self.path.exists():
            raise GrataError(f"{self.path} {absence(self.path)}. Make the target, or name another folder.", key="bank")
        if self.path.exists() and not self.path.is_dir():
            raise GrataError(f"{self.path} is a file. Name a folder.", key="bank")
        self.tags = check_tags(tags)

    def key_of(
        self, images: torch.Tensor, sites: Sequence[str] = (), meta: Mapping[str, Any] | None = None
    ) -> dict[str, str]:
        """Return the key of a batch: ``{"site": ...}``, or values by DICOM keyword; empty if both are unknown.

        Args:
            images: images ``(B, C, ...)``; a ``MetaTensor`` holds the metadata of its scans.
            sites: site of each image, if known.
            meta: collated metadata of images that are not a MetaTensor.

        Raises:
            GrataError: the images have several keys.
        """
        from monai.data import MetaTensor

        batched: bool = True
        if isinstance(images, MetaTensor):
            meta, batched = images.meta, bool(images.is_batch)
        keys = []
        for index in range(len(images)):
            site = sites[index].strip() if index < len(sites) else ""
            if site and site != UNKNOWN:
                keys.append({"site": site})
            else:
                keys.append(scanner_tags(meta or {}, self.tags, index if batched else None))
        if any(key != keys[0] for key in keys):
            raise GrataError(
                "a batch holds images of several sites or scanners, each of which has its own adaptation. Set the data "
                "loader's batch_size to 1.",
                key="bank",
            )
        return keys[0]

    def file(self, entry: str) -> Path:
        """Return the path of an entry's saved adaptation."""
        return self.path / f"{entry}.safetensors"

    def entries(self) -> list[str]:
        """Return the names of all entries, damaged ones too. Other files, such as weights, are not entries."""
        return sorted(path.stem for path in self.path.glob("*.safetensors") if _is_entry(path))

    def read(self, entry: str) -> Adaptation:
        """Return an entry.

        Raises:
            GrataError: there is none of that name, or it is damaged.
        """
        from .saved import Adaptation

        return self._read(entry, Adaptation.read)

    def header(self, entry: str) -> Header:
        """Return what an entry says of itself; it is checked as by :meth:`read`, without importing torch.

        Raises:
            GrataError: there is none of that name, or it is damaged.
        """
        return self._read(entry, read_header)

    def _read(self, entry: str, read: Callable[[Path], T]) -> T:
        path = self.file(entry)
        if not path.is_file():
            self._check_place(path)
            raise GrataError(f"there is no entry {entry!r} in {self.path}; there are {self._listed()}.", key="bank")
        try:
            return read(path)
        except GrataError as error:
            hint = f" To start it anew: python -m grata bank reset {self.path} {entry}" if _is_entry(path) else ""
            raise GrataError(f"{error.message}{hint}", error.key) from error

    def write(self, entry: str, adaptation: Adaptation, before: str | None) -> str:
        """Write an entry.

        Args:
            entry: name of the entry.
            adaptation: new content of the entry.
            before: digest of the content that the writer has read or written last; None: there was no entry.

        Returns:
            The digest of the new content.

        Raises:
            OutputError: the entry cannot be written, or another process has changed it since.
        """
        check_output_dir(self.path)
        with self._locked():
            return replace(self.file(entry), adaptation, before)

    def reset(self, entry: str) -> None:
        """Remove an entry, so that its site or scanner starts from the source network again.

        Raises:
            GrataError: there is no entry of that name, or it cannot be removed.
        """
        path = self.file(entry)
        if entry not in self.entries():
            raise GrataError(f"there is no entry {entry!r} in {self.path}; there are {self._listed()}.", key="bank")
        if path.is_dir() and not path.is_symlink():
            self._check_place(path)
        try:
            with self._locked():
                path.unlink()
                card_path(path).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                f"{path} cannot be removed ({error.strerror}). Check the permissions of its folder.", key="bank"
            ) from error

    @staticmethod
    def _check_place(path: Path) -> None:
        """Check that nothing lies in the place of an entry that has no file.

        Raises:
            GrataError: something does.
        """
        if not os.path.lexists(path):
            return
        if not path.exists():
            found = absence(path)
        else:
            found = "is a folder" if path.is_dir() else "is a pipe, socket or device"
        raise GrataError(f"{path} {found}, and no saved adaptation. Remove it or move it away.", key="bank")

    def _listed(self) -> str:
        return ", ".join(self.entries()) or "none"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with locked(self.path, ".bank.lock", "bank", WAIT_S):
            remove_leftovers(self.path, _is_own)
            yield


def _is_own(name: str) -> bool:
    """Return whether a file of this name is an entry or its card."""
    path = Path(name)
    return path.suffix in (".safetensors", ".json") and _NAME.fullmatch(path.stem) is not None


def _is_entry(path: Path) -> bool:
    return _NAME.fullmatch(path.stem) is not None and not path.name.startswith(".") and not is_other(path)


def entry_name(key: Mapping[str, str]) -> str:
    """Return the name of a key's entry: readable, safe as a file name, and different for each key."""
    if not key:
        return UNKNOWN
    text = json.dumps(dict(key), sort_keys=True)
    plain = unicodedata.normalize("NFKD", " ".join(key.values())).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain)[:48].strip("-")
    return f"{slug or 'entry'}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def make_bank(setting: AdapterBank | str | os.PathLike[str] | Mapping[str, Any] | None) -> AdapterBank | None:
    """Return the bank that a configuration describes: a folder, or a mapping of ``path`` and ``tags``.

    Raises:
        GrataError: a setting is unknown or refused.
    """
    if setting is None or isinstance(setting, AdapterBank):
        return setting
    settings: dict[str, Any] = dict(setting) if isinstance(setting, Mapping) else {"path": setting}
    for key in settings:
        if key not in ("path", "tags"):
            raise GrataError("there is no such setting. The settings are path, tags.", key=f"bank#{key}")
    if "path" not in settings:
        raise GrataError("is missing. Name the folder of the bank.", key="bank#path")
    path, tags = settings["path"], settings.get("tags")
    return AdapterBank(path) if tags is None else AdapterBank(path, tags)


def replace(path: Path, adaptation: Adaptation, before: str | None) -> str:
    """Write a saved adaptation in place of another one.

    Args:
        path: path of the file.
        adaptation: new content.
        before: digest of the content that is replaced; None: there is no file yet.

    Returns:
        The digest of the new content.

    Raises:
        OutputError: the file cannot be written, or does not hold the content of ``before``.
    """
    if saved_digest(path) != before or (before is None and path.exists()):
        raise OutputError(
            f"{path} was written, changed or removed by another process while this run adapted, so it is not "
            "overwritten. Let one run at a time write there, and start this one again."
        )
    return adaptation.save(path)
