"""From case to case: which adaptation the method goes on from, and when it is written."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..bank.bank import UNKNOWN, WAIT_S, AdapterBank, entry_name, make_bank, replace
from ..bank.saved import Adaptation, card_path, saved_digest, saved_path, source_digest
from ..checks import checked
from ..errors import GrataError, OutputError, RunError
from ..files import check_output_dir, expanded, locked, remove_leftovers
from .learner import Learner

__all__ = ["Keeper"]

_ALONE = ""
"""Name of the only place of a stream without a bank."""


@dataclasses.dataclass(frozen=True)
class _Kept:
    """An adaptation after its last finished case.

    Attributes:
        state: state of the method; None: the source network.
        cases: number of cases so far.
        digest: digest of the file on the disk; None: there is no file.
    """

    state: Mapping[str, Any] | None = None
    cases: int = 0
    digest: str | None = None


class Keeper:
    """Loads and saves what a method learned: for each site or scanner in a bank, or for a whole stream in one file.

    Call :meth:`begin` before the method adapts to a case, and :meth:`keep` when the case is finished. A case that was
    begun and not kept leaves no trace. Without ``bank``, ``start_from`` and ``save_to`` nothing is done.

    Args:
        learner: method that adapts, with its reset policy.
        bank: one adaptation per site or scanner: an :class:`AdapterBank`, its folder, or a mapping of ``path`` and
            ``tags``.
        start_from: saved adaptation that the stream, or each new entry of the bank, starts from. The method takes it
            at the first case, when the source weights are loaded.
        save_to: file of the saved adaptation of a stream without a bank. An existing file is not overwritten, unless
            it is ``start_from`` too.

    Attributes:
        works: whether there is anything to load or save.

    Raises:
        GrataError: ``bank`` and ``save_to`` are both given, the bank is refused, or ``start_from`` is missing or
            damaged.
    """

    def __init__(
        self,
        learner: Learner,
        bank: AdapterBank | str | os.PathLike[str] | Mapping[str, Any] | None = None,
        start_from: str | os.PathLike[str] | None = None,
        save_to: str | os.PathLike[str] | None = None,
    ) -> None:
        self.learner = learner
        self.method = learner.method
        self.bank = make_bank(bank)
        if self.bank is not None and save_to is not None:
            raise GrataError("the bank saves the adaptations already. Leave out save_to or bank.", key="save_to")
        _check_file(start_from, "start_from")
        _check_file(save_to, "save_to")
        self.start_from = None if start_from is None else saved_path(start_from)
        self._start = None if start_from is None else checked(Adaptation.read, start_from, "start_from")
        self.save_to = None if save_to is None else saved_path(save_to)
        self.works = not (self.bank is None and start_from is None and save_to is None)
        self._kept: dict[str, _Kept] = {}
        self._place: str | None = None
        self._key: dict[str, str] = {}
        self._images = 1
        self._begun = False
        self._staged: Adaptation | None = None
        self._source_digest = ""

    def begin(
        self, images: torch.Tensor, sites: Sequence[str] = (), meta: Mapping[str, Any] | None = None
    ) -> str | None:
        """Begin a case: the method goes on from the last state of the case's site or scanner.

        Args:
            images: images of the case, ``(B, C, ...)``.
            sites: site of each image, if known.
            meta: collated metadata of images that are not a MetaTensor.

        Returns:
            Name of the bank's entry; None: there is no bank.

        Raises:
            GrataError: the images are of several sites, or the method cannot go on from the saved adaptation.
        """
        if not self.works:
            return None
        key = {} if self.bank is None else self.bank.key_of(images, sites, meta)
        place = _ALONE if self.bank is None else entry_name(key)
        if self._begun or place != self._place:
            self._place, self._begun = None, False
            self._go_on_from(place, key)
        self._place, self._key, self._images = place, key, len(images)
        self._begun, self._staged = True, None
        return place or None

    def synchronize(self) -> None:
        """Notice that the method was restored from outside since the last case: nothing that was loaded holds."""
        if not self.method.active:
            self.learner.policy.forget()
            self._begun = self._place is not None

    def check_save_to(self) -> None:
        """Check that the file of the saved adaptation may be written, before anything else is done.

        Raises:
            OutputError: it holds the adaptation of an earlier run, and is not ``start_from`` too.
        """
        path, start = self.save_to, self.start_from
        if path is not None and path.exists() and (start is None or not path.samefile(start)):
            raise OutputError(
                f"{path} holds the adaptation of an earlier run. Give it as start_from too to go on from it, or name "
                "another file.",
                key="save_to",
            )

    def check_new(self) -> None:
        """Check that nothing was kept in the bank before.

        Raises:
            OutputError: the bank has entries, from which a stream would go on.
        """
        if self.bank is not None and self.bank.entries():
            raise OutputError(
                f"{self.bank.path} holds the entries of another run. Remove that folder, or name another one.",
                key="bank",
            )

    def is_unknown(self, entry: str) -> bool:
        """Return whether an entry is that of scans whose site and scanner are unknown."""
        return entry == UNKNOWN

    def stage(self, state: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """Return what :meth:`resume` needs beside the method's state once the present case is kept.

        Args:
            state: ``learner.state_dict()``, if it was computed already.

        Returns:
            Plain values; None: nothing is kept.
        """
        if not self.works:
            return None
        before = self._last()
        self._staged = self._adaptation(state)
        return {
            "place": self._place,
            "key": self._key,
            "cases": self._staged.cases,
            "before": before.digest,
            "after": self._staged.digest,
            "others": {place: kept.digest for place, kept in self._kept.items() if place != self._place},
        }

    def keep(self) -> None:
        """Write the adaptation after a finished case.

        Raises:
            OutputError: the file cannot be written, or another process has written there.
        """
        if not self.works:
            return
        adaptation, place = self._staged or self._adaptation(), self._begun_place()
        digest = self._write(place, adaptation, self._last().digest)
        self._kept[place] = _Kept(adaptation.state, adaptation.cases, digest)
        self._begun, self._staged = False, None

    def resume(self, staged: Mapping[str, Any] | None) -> None:
        """Go on from the case that a stopped process had staged; the method already has the state of that moment.

        What the stopped process did not write any more is written now, including the card.

        Args:
            staged: values that :meth:`stage` returned.

        Raises:
            GrataError: the files are not as that process left them.
        """
        if (staged is None) == self.works:
            raise GrataError("the stopped run had another bank, start_from or save_to. Give the same.", key="resume")
        if staged is None:
            return
        present = {place: self._on_disk(place) for place in (staged["place"], *staged["others"])}
        changed = [place for place, digest in staged["others"].items() if present[place] != digest]
        if present[staged["place"]] not in (staged["before"], staged["after"]):
            changed.append(staged["place"])
        if changed:
            raise GrataError(
                f"{self._file(changed[0])} is not as the stopped run left it. Put it back, or start anew with "
                "--overwrite true.",
                key="resume",
            )
        self._place, self._key, self._images = staged["place"], dict(staged["key"]), 0
        self._kept[self._place] = _Kept(self.learner.state_dict(), staged["cases"], present[self._place])
        # Also if only the card is missing.
        self.keep()

    def _begun_place(self) -> str:
        assert self._place is not None  # begin and resume set it
        return self._place

    def _last(self) -> _Kept:
        return self._kept[self._begun_place()]

    def _source(self) -> str:
        self._source_digest = self._source_digest or source_digest(self.method)
        return self._source_digest

    def _adaptation(self, state: Mapping[str, Any] | None = None) -> Adaptation:
        cases = self._last().cases + self._images
        return Adaptation.of(self.method, cases, self._source(), self._key, state or self.learner.state_dict())

    def _go_on_from(self, place: str, key: Mapping[str, str]) -> None:
        if place not in self._kept:
            self._kept[place] = self._first(place, key)
        elif (state := self._kept[place].state) is None:
            self.learner.restore()
        else:
            self.learner.load_state_dict(state)

    def _first(self, place: str, key: Mapping[str, str]) -> _Kept:
        """Bring the method to the state from which an entry starts in this process."""
        path, start = self._file(place), self.start_from
        goes_on = path is not None and path.exists()
        if goes_on and path is not None and self.bank is not None:
            adaptation = self.bank.read(place)
            if adaptation.entry != key:
                raise GrataError(f"{path} was written for another site or scanner. Remove or rename it.", key="bank")
            return self._put(adaptation, path, on_disk=True)
        self.check_save_to()
        if self._start is not None and start is not None:
            return self._put(self._start, start, on_disk=goes_on)
        if self.bank is None:
            return _Kept(self.learner.state_dict())
        self.learner.restore()
        return _Kept()

    def _put(self, adaptation: Adaptation, path: Path, on_disk: bool) -> _Kept:
        try:
            source = self._source()
            if source != adaptation.source:
                source = source_digest(self.method, adaptation.source)
            adaptation.put(self.learner, source, path)
        except GrataError as error:
            # A bad entry affects one site; a bad start_from affects every case, so it ends the run.
            if adaptation is self._start:
                raise RunError(error.message, error.key or "start_from") from error
            raise
        # The digest of what was read, not of what another process may have written since.
        return _Kept(adaptation.state, adaptation.cases, adaptation.digest if on_disk else None)

    def _file(self, place: str) -> Path | None:
        return self.save_to if self.bank is None else self.bank.file(place)

    def _on_disk(self, place: str) -> str | None:
        path = self._file(place)
        return None if path is None else saved_digest(path)

    def _write(self, place: str, adaptation: Adaptation, before: str | None) -> str | None:
        if self.bank is not None:
            return self.bank.write(place, adaptation, before)
        if self.save_to is None:
            return None
        check_output_dir(self.save_to.parent)
        with locked(self.save_to, key="save_to", wait_s=WAIT_S):
            remove_leftovers(self.save_to.parent, {self.save_to.name, card_path(self.save_to).name}.__contains__)
            return replace(self.save_to, adaptation, before)


def _check_file(path: object, key: str) -> None:
    if path is None:
        return
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise GrataError(f"must be a file, <name>.safetensors, got {path!r}.", key=key)
    if (
        not Path(path).name
        or (expanded(path).is_dir() and not saved_path(path).is_file())
        or str(path).endswith(os.sep)
    ):
        raise GrataError(f"{path} is a folder. Name a file in it, <name>.safetensors.", key=key)
