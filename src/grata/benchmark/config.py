"""The benchmark's configuration: one file, checked before anything runs."""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..bundles.groups import Groups, make_groups
from ..checks import check_count, did_you_mean, option_constant
from ..config_files import read_config
from ..errors import GrataError
from ..files import expanded
from ..methods import METHODS, check_settings, settings_of
from ..settings import MISSING
from .keys import BenchmarkKeys, MetricSettings, check_known, check_name, check_unique, list_of_names, take
from .protocols import Protocol, make_protocol

__all__ = ["BenchmarkConfig", "MethodRow", "MetricSettings", "load_config", "make_config"]


@dataclass(frozen=True)
class MethodRow:
    """One row of the tables: a method with settings that differ from the bundle's.

    Attributes:
        name: name of the row.
        method: key of :data:`grata.methods.METHODS`.
        settings: settings of the method, which take precedence over the bundle's.
        reset: reset policy; None: the bundle's.
        affine: treatment of normalization layers without affine parameters; None: the bundle's.
        guard: settings of the guard, or whether there is one; None: as in the source network's overrides.
        stride: step between the images of each site that the row is run on: 1 for all that the others are run on.
    """

    name: str
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    reset: Any = None
    affine: str | None = None
    guard: Any = None
    stride: int = 1


OF_ROWS = ("reset", "affine", "guard", "stride")
"""Keys of a row that are no settings of its method."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """A checked configuration.

    The attributes ``bundle``, ``output_dir``, ``home``, ``exclude_same_site``, ``reference_method``, ``seeds``,
    ``shuffle``, ``limit``, ``metrics``, ``workers`` and ``threads`` are the values of the keys of the same names, see
    :class:`~grata.benchmark.keys.BenchmarkKeys`.

    Attributes:
        sources: overrides of the bundle's configuration, by the name of the source network.
        targets: overrides of the bundle's configuration, by the name of the site.
        scored: labels of the segments that are scored, by site.
        source_scored: labels of the segments that are scored, by source network, for sites without labels of their own.
            Without either, the bundle's key ``scored`` counts, and without that all segments are scored.
        source_strides: factor by which a source network's steps between the images are larger than ``strides``, by the
            name of the network.
        groups: what tells which images of a site belong together, such as those of one patient, by site; see
            :func:`grata.bundles.groups.make_groups`.
        strides: step between the images that are used, by site, counted from the first image; with groups the step
            between these. With the stride of a bundle's training these are the source's held-out images.
        methods: rows of the tables in order, each with the settings in ``common`` that its method has.
        protocols: protocols in order, one block of the tables each.
        given: the configuration as it was given, as plain values.
    """

    bundle: Path
    output_dir: Path
    sources: dict[str, dict[str, Any]]
    targets: dict[str, dict[str, Any]]
    scored: dict[str, list[str]]
    source_scored: dict[str, list[str]]
    source_strides: dict[str, int]
    groups: dict[str, Groups]
    home: str | None
    strides: dict[str, int]
    exclude_same_site: bool
    methods: tuple[MethodRow, ...]
    reference_method: str
    protocols: tuple[Protocol, ...]
    seeds: tuple[int, ...]
    shuffle: bool
    limit: int | None
    metrics: MetricSettings
    workers: int
    threads: int | None
    given: dict[str, Any]

    def targets_of(self, source: str) -> list[str]:
        """Return the names of the sites that a source is tested on."""
        return [target for target in self.targets if not (self.exclude_same_site and target == source)]

    def protocols_of(self, source: str) -> list[Protocol]:
        """Return the protocols that are run for a source network."""
        return [protocol for protocol in self.protocols if protocol.sources is None or source in protocol.sources]

    def rows_of(self, protocol: Protocol) -> list[MethodRow]:
        """Return the rows that a protocol is run for."""
        return [row for row in self.methods if protocol.rows is None or row.name in protocol.rows]


_KEYS = BenchmarkKeys.settings()
_NAMED = ("sources", "targets", "methods")
"""Keys that hold names of the user's choice."""


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> BenchmarkConfig:
    """Read and check a YAML or JSON file.

    Args:
        path: configuration file, see :class:`~grata.benchmark.keys.BenchmarkKeys` for its keys. Paths in it are
            relative to the working directory.
        overrides: values by key, nested keys joined by ``#`` (``{"methods#grata#lr": 1e-3}``). Overrides of a whole
            are applied before overrides of its parts. In the first two names ``-`` and ``_`` are the same, because the
            command line does not keep them apart.

    Raises:
        GrataError: the file cannot be read, a key is unknown (the message names the nearest known one) or has no effect
            where it stands, an override belongs to a source, target or method that is not in the file, or a value is of
            the wrong kind.
    """
    return make_config(read_config(expanded(str(path)), as_yaml=True), overrides)


def make_config(given: dict[str, Any], overrides: Mapping[str, Any] | None = None) -> BenchmarkConfig:
    """Check what a file holds, see :func:`load_config`.

    Args:
        given: content of the file, which is changed.
        overrides: values by key.
    """
    _expand_all(given)
    # The whole first: otherwise it would undo what is given for its parts.
    for key, value in sorted((overrides or {}).items(), key=lambda item: item[0].count("#")):
        _override(given, key, value)
        _expand_all(given)
    keys = _checked(given)
    methods = _rows(keys)
    # These are the benchmark's, not the bundle's, so they are taken out of its overrides.
    strides = take(keys.targets, "stride", check_count, "targets")
    groups = take(keys.targets, "groups", make_groups, "targets")
    scored = take(keys.targets, "scored", list_of_names, "targets")
    source_scored = take(keys.sources, "scored", list_of_names, "sources")
    source_strides = take(keys.sources, "stride", check_count, "sources")
    config = BenchmarkConfig(
        bundle=keys.bundle,
        output_dir=keys.output_dir,
        sources=keys.sources,
        targets=keys.targets,
        scored=scored,
        source_scored=source_scored,
        source_strides=dict.fromkeys(keys.sources, 1) | source_strides,
        groups=groups,
        home=keys.home,
        strides=dict.fromkeys(keys.targets, 1) | strides,
        exclude_same_site=keys.exclude_same_site,
        methods=methods,
        reference_method=keys.reference_method,
        protocols=_protocols(keys, [row.name for row in methods]),
        seeds=keys.seeds,
        shuffle=keys.shuffle,
        limit=keys.limit,
        metrics=keys.metrics,
        workers=keys.workers,
        threads=keys.threads,
        given=json.loads(json.dumps({key: given[key] for key in _KEYS if key in given}, default=str)),
    )
    if not any(config.targets_of(source) for source in config.sources):
        raise GrataError(
            "none is left, since a source is not tested on its own site. See exclude_same_site.", key="targets"
        )
    return config


def _checked(given: Mapping[str, Any]) -> BenchmarkKeys:
    check_known(given, list(_KEYS))
    values = {key: value for key, value in given.items() if value is not None}
    for key, declared in _KEYS.items():
        if declared.default is MISSING and key not in values:
            raise GrataError("is missing from the configuration.", key=key)
    keys = BenchmarkKeys(**values)
    if keys.home is not None and keys.home not in keys.targets:
        raise GrataError(f"{keys.home!r} is not among the targets, which are {', '.join(keys.targets)}.", key="home")
    return keys


def _rows(keys: BenchmarkKeys) -> tuple[MethodRow, ...]:
    rows = tuple(_row(name, settings, keys.common) for name, settings in keys.methods.items())
    for key in keys.common:
        if key not in OF_ROWS and all(key not in settings_of(row.method) for row in rows):
            raise GrataError("no method of the benchmark has such a setting.", key=f"common#{key}")
    names = [row.name for row in rows]
    if keys.reference_method not in names:
        raise GrataError(
            f"{keys.reference_method!r} is not a row of methods, which are {', '.join(names)}. Name one of these.",
            key="reference_method",
        )
    return rows


def _row(name: str, settings: dict[str, Any], common: Mapping[str, Any]) -> MethodRow:
    method = settings.pop("method", name)
    if method not in METHODS:
        hint = did_you_mean(method, METHODS, f"The methods are {', '.join(METHODS)}.")
        raise GrataError(f"there is no method {method!r}. {hint}", key=f"methods#{name}")
    of_row = {key: settings.pop(key, common.get(key)) for key in OF_ROWS}
    try:
        of_row["stride"] = check_count(of_row["stride"] or 1)
    except GrataError as error:
        raise GrataError(error.message, key=f"methods#{name}#stride") from error
    check_settings(method, settings, f"methods#{name}")
    if "seed" in settings:
        raise GrataError("the benchmark sets it. See seeds.", key=f"methods#{name}#seed")
    settings = {key: value for key, value in common.items() if key in settings_of(method)} | settings
    return MethodRow(name, method, settings, **of_row)


def _protocols(keys: BenchmarkKeys, rows: Sequence[str]) -> tuple[Protocol, ...]:
    given = keys.protocol if isinstance(keys.protocol, list | tuple) else [keys.protocol]
    protocols = tuple(make_protocol(item, list(keys.targets)) for item in given)
    labels = [protocol.label for protocol in protocols]
    try:
        check_unique(labels, "Give one of them another label.")
        for label in labels:
            check_name(label)
        for protocol in protocols:
            _check_names("rows", protocol.rows, rows)
            _check_names("sources", protocol.sources, list(keys.sources))
    except GrataError as error:
        raise error.under("protocol") from error
    return protocols


def _check_names(key: str, names: Sequence[str] | None, known: Sequence[str]) -> None:
    for name in names or ():
        if name not in known:
            hint = did_you_mean(name, known, f"There are {', '.join(known)}.")
            raise GrataError(f"there is no {name!r}. {hint}", key=key)


def _expand_all(given: dict[str, Any]) -> None:
    """Replace ``all`` among the methods by one row for each method."""
    methods = given.get("methods")
    if methods == "all" or (isinstance(methods, Mapping) and "all" in methods):
        rows = {name: settings for name, settings in methods.items() if name != "all"} if methods != "all" else {}
        given["methods"] = {name: {} for name in METHODS} | rows


def _override(given: dict[str, Any], key: str, value: Any) -> None:
    if isinstance(value, str):
        value = option_constant(value, key)
    head, *rest = key.split("#")
    head = head.replace("-", "_")
    check_known([head], list(_KEYS))
    if not rest:
        given[head] = value
        return
    if given.get(head) is None and isinstance(_KEYS[head].default, dict):
        # Names in the default can be overridden too; a copy, so that the default itself stays as it is.
        given[head] = copy.deepcopy(_KEYS[head].default)
    if head in _NAMED and isinstance(given[head], dict):
        rest[0] = _existing_name(given[head], head, rest[0], key)
        if head != "methods" and len(rest) > 2:
            # Kept as one key of the bundle: a nested mapping would replace everything that the bundle has there.
            rest[1:] = ["#".join(rest[1:])]
    *parents, last = rest
    place: Any = given
    for parent in (head, *parents):
        if place.get(parent) is None:
            place[parent] = {}
        place = place[parent]
        if not isinstance(place, dict):
            raise GrataError(f"{parent} is not a mapping in the configuration.", key=f"--{key}")
    if head != "methods" and parents:
        # The bundle applies its overrides in order: the last one wins.
        place.pop(last, None)
    place[last] = value


def _existing_name(names: Mapping[str, Any], head: str, name: str, key: str) -> str:
    """Return the name in the file that an override means; the command line turns ``-`` into ``_``."""
    spelt: dict[str, list[str]] = {}
    for known in names:
        spelt.setdefault(str(known).replace("-", "_"), []).append(known)
    wanted = name.replace("-", "_")
    alike = spelt.get(wanted, [])
    if len(alike) == 1:
        return alike[0]
    if alike:
        raise GrataError(
            f"may mean any of {', '.join(alike)}, because - and _ are the same here. Set it in the file.",
            key=f"--{key}",
        )
    near = difflib.get_close_matches(wanted, spelt, n=1)
    hint = f"Did you mean {head}#{spelt[near[0]][0]}?" if near else f"They are {', '.join(map(str, names)) or 'none'}."
    raise GrataError(f"{name} is not among the {head} of the file. {hint}", key=f"--{key}")
