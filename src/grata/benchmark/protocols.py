"""The order in which images reach a method, and what the results weigh: data, apart from any method."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ..errors import GrataError

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
        site: where it comes from.
        case: its id within the site.
        reset: whether the method starts from the source network again before it.
        round: how many times the stream has been through already.
    """

    site: str
    case: str
    reset: bool = False
    round: int = 0


@dataclasses.dataclass(frozen=True)
class Stream:
    """Images that one method instance meets one after the other, starting from the source network.

    Attributes:
        name: unique within its protocol.
        items: in order.
        drawn: whether the seed had a say in the order.
    """

    name: str
    items: tuple[Item, ...]
    drawn: bool = False


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How images of several sites are put into streams.

    Args:
        label: how tables call it; by default its name.

    Attributes:
        name: how configs call it.
        summary: one line on what it does.
        weighting: ``sites``: the overall mean is the mean of the sites' means; ``images``: that of all images.
    """

    label: str = ""

    name: ClassVar[str]
    summary: ClassVar[str]
    weighting: ClassVar[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", str(self.label or self.name))

    def streams(self, sites: Mapping[str, Sequence[str]], seed: int, shuffle: bool = False) -> list[Stream]:
        """Streams over the cases of each site.

        Args:
            sites: case ids in order, by site.
            seed: of whatever is drawn.
            shuffle: draw the order of the cases in each site, too.
        """
        raise NotImplementedError

    def _site(self, site: str, cases: Sequence[str], seed: int, shuffle: bool) -> list[Item]:
        items = [Item(site, case) for case in cases]
        return _shuffled(items, seed, site) if shuffle else items


@dataclasses.dataclass(frozen=True)
class PerTarget(Protocol):
    """One stream a site, each from the source network."""

    name = "per-target"
    summary = "every target starts from the source network; sites weigh equally"
    weighting = "sites"

    def streams(self, sites: Mapping[str, Sequence[str]], seed: int, shuffle: bool = False) -> list[Stream]:
        return [Stream(site, tuple(self._site(site, cases, seed, shuffle)), shuffle) for site, cases in sites.items()]


@dataclasses.dataclass(frozen=True)
class Episodic(PerTarget):
    """One stream a site; the method starts from the source network before every image."""

    name = "episodic"
    summary = "every image starts from the source network; sites weigh equally"

    def streams(self, sites: Mapping[str, Sequence[str]], seed: int, shuffle: bool = False) -> list[Stream]:
        return [
            dataclasses.replace(stream, items=tuple(dataclasses.replace(item, reset=True) for item in stream.items))
            for stream in super().streams(sites, seed, shuffle)
        ]


@dataclasses.dataclass(frozen=True)
class Continual(Protocol):
    """One stream over all sites.

    Args:
        order: names of all sites; by default as they are configured. A site that is not tested is passed over.
    """

    order: tuple[str, ...] = ()

    name = "continual"
    summary = "one stream over all targets in order, never reset; images weigh equally"
    weighting = "images"

    def streams(self, sites: Mapping[str, Sequence[str]], seed: int, shuffle: bool = False) -> list[Stream]:
        order = [site for site in self.order or sites if site in sites]
        items = [item for site in order for item in self._site(site, sites[site], seed, shuffle)]
        return [Stream("all", tuple(items), shuffle)]


@dataclasses.dataclass(frozen=True)
class Recurring(Continual):
    """The continual stream, over and over: shows whether a method collapses.

    Args:
        order: as in :class:`Continual`.
        repeats: how many times.
    """

    repeats: int = 3

    name = "recurring"
    summary = "the continual stream, repeated, never reset; images weigh equally"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.repeats, bool) or not isinstance(self.repeats, int) or self.repeats < 1:
            raise GrataError(f"must be a whole number of at least 1, got {self.repeats!r}.", key="protocol#repeats")

    def streams(self, sites: Mapping[str, Sequence[str]], seed: int, shuffle: bool = False) -> list[Stream]:
        (stream,) = super().streams(sites, seed, shuffle)
        items = (dataclasses.replace(item, round=k) for k in range(self.repeats) for item in stream.items)
        return [dataclasses.replace(stream, items=tuple(items))]


@dataclasses.dataclass(frozen=True)
class Mixed(Protocol):
    """One stream over the images of all sites, shuffled by the seed."""

    name = "mixed"
    summary = "one stream over all targets, shuffled, never reset; images weigh equally"
    weighting = "images"

    def streams(self, sites: Mapping[str, Sequence[str]], seed: int, shuffle: bool = False) -> list[Stream]:
        items = [Item(site, case) for site, cases in sites.items() for case in cases]
        return [Stream("all", tuple(_shuffled(items, seed, "mixed")), True)]


PROTOCOLS: dict[str, type[Protocol]] = {
    protocol.name: protocol for protocol in (PerTarget, Continual, Mixed, Recurring, Episodic)
}
"""Every protocol by the name that configs use."""


def make_protocol(setting: Any, targets: Sequence[str]) -> Protocol:
    """A protocol from what a config says: its name, or a mapping of ``name`` and its settings.

    Raises:
        GrataError: an unknown name or setting, or an order that does not name every target once.
    """
    settings = {"name": setting} if isinstance(setting, str) else setting
    if not isinstance(settings, Mapping) or settings.get("name") not in PROTOCOLS:
        raise GrataError(f"there is no {setting!r}; the protocols are {', '.join(PROTOCOLS)}.", key="protocol")
    settings = dict(settings)
    protocol = PROTOCOLS[settings.pop("name")]
    known = [field.name for field in dataclasses.fields(protocol)]
    for key in settings:
        if key not in known:
            raise GrataError(
                f"{protocol.name} has no such setting; its settings are {', '.join(known)}.", key=f"protocol#{key}"
            )
    if "order" in settings:
        order = settings["order"]
        if not isinstance(order, list | tuple) or sorted(map(str, order)) != sorted(targets):
            raise GrataError(f"must name each target once ({', '.join(targets)}), got {order!r}.", key="protocol#order")
        # YAML reads the name of a site as a number where it can, without quotes.
        settings["order"] = tuple(map(str, order))
    return protocol(**settings)


def _shuffled(items: list[Item], seed: int, purpose: str) -> list[Item]:
    # The site's name enters, so that another site more does not change the order in this one.
    generator = np.random.default_rng([seed, *purpose.encode()])
    return [items[i] for i in generator.permutation(len(items))]
