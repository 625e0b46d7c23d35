"""The order in which images reach a method, and what counts equally in the results: data, apart from any method."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ..errors import GrataError
from ..settings import Settings, chosen, count, setting

__all__ = [
    "PROTOCOLS",
    "Continual",
    "Episodic",
    "Item",
    "Mixed",
    "PerTarget",
    "Protocol",
    "Recurring",
    "Stream",
    "make_protocol",
]


@dataclasses.dataclass(frozen=True)
class Item:
    """One image of a stream.

    Attributes:
        site: name of the site that the image comes from.
        case: id of the image within its site.
        reset: whether the method returns to the source network before this image.
        round: number of times that the stream was complete before this image.
    """

    site: str
    case: str
    reset: bool = False
    round: int = 0


@dataclasses.dataclass(frozen=True)
class Stream:
    """Images that one instance of a method meets one after the other, starting from the source network.

    Attributes:
        name: name of the stream, unique within its protocol.
        items: the images in order.
        drawn: whether the order depends on the seed.
    """

    name: str
    items: tuple[Item, ...]
    drawn: bool = False


def _names(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        raise GrataError(f"must be a list of names, got {value!r}.")
    # YAML reads an unquoted site name that looks like a number as a number.
    return tuple(map(str, value))


class Protocol(Settings):
    """A rule that puts the images of several sites into streams.

    Attributes:
        name: name of the protocol in configurations.
        summary: one line on what the protocol does.
        weighting: ``sites``: the overall mean is the mean of the sites' means; ``images``: the mean over all images.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    weighting: ClassVar[str]

    label: str = setting(default="", range="text", help="name of the protocol in the tables; empty: its own name")

    rows: tuple[str, ...] | None = setting(
        default=None,
        check=_names,
        range="list of names or null",
        help="rows of the tables that the protocol is run for; null: all",
    )
    sources: tuple[str, ...] | None = setting(
        default=None,
        check=_names,
        range="list of names or null",
        help="source networks that the protocol is run for; null: all",
    )

    def _setup(self) -> None:
        self.label = str(self.label or self.name)

    def streams(self, sites: Mapping[str, Sequence[str]], seed: int, shuffle: bool = False) -> list[Stream]:
        """Return the streams over the cases of all sites.

        Args:
            sites: ids of the cases in order, by site.
            seed: seed of every random order.
            shuffle: whether the cases of each site come in random order.
        """
        raise NotImplementedError

    def check_targets(self, targets: Sequence[str]) -> None:
        """Check the settings against the names of all targets.

        Raises:
            GrataError: a setting does not match them.
        """

    def _site(self, site: str, cases: Sequence[str], seed: int, shuffle: bool) -> list[Item]:
        items = [Item(site, case) for case in cases]
        return _shuffled(items, seed, site) if shuffle else items


class PerTarget(Protocol):
    """One stream per site, each starting from the source network."""

    name = "per-target"
    summary = "every target starts from the source network; sites weigh equally"
    weighting = "sites"

    def streams(self, sites: Mapping[str, Sequence[str]], seed: int, shuffle: bool = False) -> list[Stream]:
        return [Stream(site, tuple(self._site(site, cases, seed, shuffle)), shuffle) for site, cases in sites.items()]


class Episodic(PerTarget):
    """One stream per site; the method returns to the source network before every image."""

    name = "episodic"
    summary = "every image starts from the source network; sites weigh equally"

    def streams(self, sites: Mapping[str, Sequence[str]], seed: int, shuffle: bool = False) -> list[Stream]:
        return [
            dataclasses.replace(stream, items=tuple(dataclasses.replace(item, reset=True) for item in stream.items))
            for stream in super().streams(sites, seed, shuffle)
        ]


class Continual(Protocol):
    """One stream over all sites; sites of the order that are not tested are left out."""

    name = "continual"
    summary = "one stream over all targets in order, never reset; images weigh equally"
    weighting = "images"

    order: tuple[str, ...] | None = setting(
        default=None,
        check=_names,
        range="list of names or null",
        help="names of all targets, each once, in the order of the stream; null: as configured",
    )

    def streams(self, sites: Mapping[str, Sequence[str]], seed: int, shuffle: bool = False) -> list[Stream]:
        order = [site for site in self.order or sites if site in sites]
        items = [item for site in order for item in self._site(site, sites[site], seed, shuffle)]
        return [Stream("all", tuple(items), shuffle)]

    def check_targets(self, targets: Sequence[str]) -> None:
        if self.order is not None and sorted(self.order) != sorted(targets):
            raise GrataError(f"must name each target once ({', '.join(targets)}), got {list(self.order)}.", key="order")


class Recurring(Continual):
    """The continual stream several times over, which shows whether a method collapses in the long run."""

    name = "recurring"
    summary = "the continual stream, repeated, never reset; images weigh equally"

    repeats: int = count(default=3, help="number of times that the stream is run")

    def streams(self, sites: Mapping[str, Sequence[str]], seed: int, shuffle: bool = False) -> list[Stream]:
        (stream,) = super().streams(sites, seed, shuffle)
        items = (dataclasses.replace(item, round=k) for k in range(self.repeats) for item in stream.items)
        return [dataclasses.replace(stream, items=tuple(items))]


class Mixed(Protocol):
    """One stream over the images of all sites in random order."""

    name = "mixed"
    summary = "one stream over all targets, shuffled, never reset; images weigh equally"
    weighting = "images"

    def streams(self, sites: Mapping[str, Sequence[str]], seed: int, shuffle: bool = False) -> list[Stream]:
        items = [Item(site, case) for site, cases in sites.items() for case in cases]
        return [Stream("all", tuple(_shuffled(items, seed, "mixed")), True)]


PROTOCOLS: dict[str, type[Protocol]] = {
    protocol.name: protocol for protocol in (PerTarget, Continual, Mixed, Recurring, Episodic)
}
"""All protocols by the names that configurations use."""


def make_protocol(given: object, targets: Sequence[str]) -> Protocol:
    """Return a protocol from what a configuration says.

    Args:
        given: name of the protocol, or a mapping of ``name`` and its settings.
        targets: names of all targets.

    Raises:
        GrataError: the name or a setting is not known, or the order does not name every target once.
    """
    protocol = chosen(given, PROTOCOLS, Protocol, "protocol", what="protocol")
    try:
        protocol.check_targets(targets)
    except GrataError as error:
        raise error.under("protocol") from error
    return protocol


def _shuffled(items: list[Item], seed: int, purpose: str) -> list[Item]:
    # The site's name is part of the seed, so that a further site does not change the order within this one.
    generator = np.random.default_rng([seed, *purpose.encode()])
    return [items[i] for i in generator.permutation(len(items))]
