"""From case to case: which adaptation goes on, and when it is written."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import GrataError, OutputError, RunError
from ..methods import Method
from .bank import AdapterBank, entry_name, make_bank, replace
from .saved import Adaptation, saved_digest, saved_path, source_digest

__all__ = ["Keeper"]

_ALONE = ""
"""The one place of a stream without a bank."""


@dataclasses.dataclass(frozen=True)
class _Kept:
    """Where an adaptation stands after its last finished case.

    Attributes:
        state: of the method; None: the source network.
        cases: how many it has seen.
        digest: of what lies on the disk; None: nothing.
    """

    state: Mapping[str, Any] | None = None
    cases: int = 0
    digest: str | None = None


class Keeper:
    """Lets a method go on from where its site or scanner stood, and keeps what each finished case taught it.

    :meth:`begin` comes before a case is adapted to, :meth:`keep` after all of it is done. A case that was begun and not
    kept leaves nothing behind. Without any of the settings nothing is done.

    Args:
        method: what adapts.
        bank: one adaptation for each site or scanner: an :class:`AdapterBank`, its folder, or a mapping of ``path`` and
            ``tags``.
        start_from: a saved adaptation that the stream, or each new entry of the bank, starts from. The method takes it
            at the first case, when the source weights are loaded.
        save_to: file of the saved adaptation of a stream without a bank. One that is there already is not written over,
            unless it is ``start_from`` too.

    Raises:
        GrataError: ``bank`` and ``save_to`` are both given, the bank is refused, ``start_from`` is missing or damaged.
    """

    def __init__(
        self,
        method: Method,
        bank: AdapterBank | str | os.PathLike[str] | Mapping[str, Any] | None = None,
        start_from: str | os.PathLike[str] | None = None,
        save_to: str | os.PathLike[str] | None = None,
    ) -> None:
        self.method = method
        self.bank = make_bank(bank)
        if self.bank is not None and save_to is not None:
            raise GrataError("the bank keeps what is learnt. Leave out save_to, or bank.", key="save_to")
        for name, value in (("start_from", start_from), ("save_to", save_to)):
            if not isinstance(value, str | os.PathLike | None):
                raise GrataError(f"must be a file, <name>.safetensors, got {value!r}.", key=name)
        self.start_from = None if start_from is None else saved_path(start_from)
        self._start = None if start_from is None else Adaptation.read(start_from)
        self.save_to = None if save_to is None else saved_path(save_to)
        self._works = not (self.bank is None and start_from is None and save_to is None)
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
        """A case begins: the method goes on from where its entry stood.

        Args:
            images: of the case, ``(B, C, ...)``.
            sites: of the images, where they have one.
            meta: collated metadata of images that are no MetaTensor.

        Returns:
            Name of the bank's entry; None: there is no bank.

        Raises:
            GrataError: images of several sites, or an adaptation that the method cannot go on from.
        """
        if not self._works:
            return None
        key = {} if self.bank is None else self.bank.key_of(images, sites, meta)
        place = _ALONE if self.bank is None else entry_name(key)
        if self._begun or place != self._place:
            self._place, self._begun = None, False
            self._go_on_from(place, key)
        self._place, self._key, self._images = place, key, len(images)
        self._begun, self._staged = True, None
        return place or None

    def stage(self, state: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """What :meth:`resume` needs beside the method's state, as plain values: where all stands once the case that was
        begun is kept.

        Args:
            state: ``method.state_dict()``, where it is at hand.

        Returns:
            None: nothing is kept.
        """
        if not self._works:
            return None
        before = self._kept[self._place]
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
        """The case is finished: write what was learnt.

        Raises:
            OutputError: it cannot be written, or somebody else has written there.
        """
        if not self._works:
            return
        adaptation = self._staged or self._adaptation()
        digest = self._write(adaptation, self._kept[self._place].digest)
        self._kept[self._place] = _Kept(adaptation.state, adaptation.cases, digest)
        self._begun, self._staged = False, None

    def resume(self, staged: Mapping[str, Any] | None) -> None:
        """Go on where a stopped process had staged a case; the method has the state of that moment already.

        What it had not written any more is written, the card as well.

        Args:
            staged: as :meth:`stage` gave it.

        Raises:
            GrataError: what lies on the disk is not what that process left.
        """
        if (staged is None) == self._works:
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
                "--overwrite true instead.",
                key="resume",
            )
        self._place, self._key, self._images = staged["place"], dict(staged["key"]), 0
        self._kept[self._place] = _Kept(self.method.state_dict(), staged["cases"], present[self._place])
        # also where only the card was missing
        self.keep()

    def _source(self) -> str:
        self._source_digest = self._source_digest or source_digest(self.method)
        return self._source_digest

    def _adaptation(self, state: Mapping[str, Any] | None = None) -> Adaptation:
        cases = self._kept[self._place].cases + self._images
        return Adaptation.of(self.method, cases, self._source(), self._key, state)

    def _go_on_from(self, place: str, key: Mapping[str, str]) -> None:
        if place not in self._kept:
            self._kept[place] = self._first(place, key)
        elif (state := self._kept[place].state) is None:
            self.method.restore()
        else:
            self.method.load_state_dict(dict(state))

    def _first(self, place: str, key: Mapping[str, str]) -> _Kept:
        """Bring the method to where an entry starts in this process."""
        path = self._file(place)
        goes_on = path is not None and path.exists()
        start = self.start_from
        if goes_on and self.bank is not None:
            adaptation = self.bank.read(place)
            if adaptation.entry != key:
                raise GrataError(f"{path} was written for another site or scanner. Remove or rename it.", key="bank")
            start = path
        elif goes_on and (start is None or not path.samefile(start)):
            raise OutputError(
                f"{path} holds what an earlier run learnt. Give it as start_from as well to go on from it, or "
                "name another file.",
                key="save_to",
            )
        elif start is not None:
            adaptation = self._start
        elif self.bank is not None:
            self.method.restore()
            return _Kept()
        else:
            return _Kept(self.method.state_dict())
        try:
            adaptation.put(self.method, self._source(), start)
        except GrataError as error:
            # An entry of the bank is one site's fault, what all start from is everybody's.
            raise (RunError if adaptation is self._start else GrataError)(str(error)) from error
        # of what was read, not of what somebody may have written there since
        return _Kept(adaptation.state, adaptation.cases, adaptation.digest if goes_on else None)

    def _file(self, place: str) -> Path | None:
        return self.save_to if self.bank is None else self.bank.file(place)

    def _on_disk(self, place: str) -> str | None:
        path = self._file(place)
        return None if path is None else saved_digest(path)

    def _write(self, adaptation: Adaptation, before: str | None) -> str | None:
        if self.bank is not None:
            return self.bank.write(self._place, adaptation, before)
        if self.save_to is None:
            return None
        self.save_to.parent.mkdir(parents=True, exist_ok=True)
        return replace(self.save_to, adaptation, before)
