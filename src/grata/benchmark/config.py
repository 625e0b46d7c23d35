"""The benchmark's configuration: one file, checked before anything runs."""

from __future__ import annotations

import copy
import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import GrataError
from ..methods import METHODS, check_settings, settings_of
from ..settings import option_constant
from .protocols import Protocol, make_protocol

__all__ = ["BenchmarkConfig", "MethodRow", "MetricSettings", "load_config"]

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")


@dataclass(frozen=True)
class MethodRow:
    """One row of the tables: a method with settings that differ from the bundle's.

    Attributes:
        name: of the row.
        method: key of :data:`grata.methods.METHODS`.
        settings: over those of the bundle.
    """

    name: str
    method: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MetricSettings:
    """How predictions are scored.

    Args:
        space: ``input``: on the picture's own grid; ``network``: on the grid that the network sees.
        empty: what becomes of a structure that a map lacks: ``nan`` (both lack it: not scored; one lacks it: Dice 0,
            distances infinite), or ``reference`` (both lack it: Dice 1; either lacks it: distances 100), as the
            reference implementations of GraTa and VPTTA have it.
    """

    space: str = "input"
    empty: str = "nan"

    def __post_init__(self) -> None:
        for name, known in (("space", ("input", "network")), ("empty", ("nan", "reference"))):
            if getattr(self, name) not in known:
                raise GrataError(f"must be {' or '.join(known)}, got {getattr(self, name)!r}.", key=f"metrics#{name}")


@dataclass(frozen=True)
class BenchmarkConfig:
    """A checked configuration.

    Attributes:
        bundle: folder of the bundle whose ``configs/adapt.yaml`` tells network, preprocessing, inferer, postprocessing
            and segments.
        output_dir: where everything goes.
        sources: overrides of the bundle's configuration by the name of each source network.
        targets: overrides by the name of each site.
        scored: labels of the segments that are scored, by site.
        source_scored: the same by source network, for the sites that say nothing of it. Where neither does the bundle's
            own key ``scored`` counts, and without that all are scored.
        strides: which images of a site are taken, by site: every so-many-th from the first on. With the stride of a
            bundle's training these are the source's held-out images.
        exclude_same_site: a source is not tested on the target of its own name.
        methods: the rows, in order; those that have them were given the settings in ``common``.
        reference_method: name of the row that the others are compared with.
        protocols: one block of the tables each.
        seeds: of the methods' generators and of what the protocols draw.
        shuffle: draw the order of the images of a site.
        limit: first images of each site, of those that its stride leaves; None: all.
        metrics: how predictions are scored.
        workers: processes; 0: everything in this one, whose allocator is then left alone (``keep_pages`` counts for
            processes of their own).
        threads: of torch in each process; None: the cores are shared out.
        given: what was configured, as plain values.
    """

    bundle: Path
    output_dir: Path
    sources: dict[str, dict[str, Any]]
    targets: dict[str, dict[str, Any]]
    scored: dict[str, list[str]]
    source_scored: dict[str, list[str]]
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
        """Names of the sites that a source is tested on."""
        return [target for target in self.targets if not (self.exclude_same_site and target == source)]


_DEFAULTS: dict[str, Any] = {
    "bundle": None,
    "output_dir": None,
    "sources": {"bundle": {}},
    "targets": None,
    "exclude_same_site": True,
    "methods": None,
    "common": {},
    "reference_method": "grata",
    "protocol": "per-target",
    "seeds": [0],
    "shuffle": False,
    "limit": None,
    "metrics": {},
    "workers": 1,
    "threads": None,
}
# These belong to the source network or to a method's row; a stream crosses sites with one of each.
_NOT_A_TARGETS = {
    *("network", "network_def", "weights", "device", "amp", "inferer", "windows", "segments"),
    *("memory_format", "keep_pages", "activation", "prepared", "reset"),
}
# What only the command `adapt` reads, with what a benchmark has in its place.
_NOT_READ = {
    "output_dir": "The benchmark has its own at the top level.",
    "num_workers": "See workers at the top level.",
    "seed": "See seeds at the top level.",
    "method": "See methods at the top level.",
    "settings": "Set them in a row of methods.",
    **dict.fromkeys(("resume", "overwrite"), "A benchmark goes on where it stopped; start anew in another output_dir."),
    "compare": "Add the row source to methods.",
    "traceback": "Leave it out.",
}
_NAMED = ("sources", "targets", "methods")
"""Keys that hold names of the user's choice."""


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> BenchmarkConfig:
    """Read a YAML or JSON file.

    Args:
        path: of the file; paths in it are relative to the working directory. ``methods: all`` is a row of each method
            that there is, with its defaults; ``all`` beside other rows, which may be of the same name, is the same.
        overrides: by key, nested ones by ``#`` (``{"methods#grata#lr": 1e-3}``), which come after those of a whole. In
            the first two names ``-`` and ``_`` are the same, since the command line does not keep them apart.

    Raises:
        GrataError: the file cannot be read, a key is unknown (with the nearest known one) or has no effect where it is,
            an override is of a source, target or method that is not in the file, a value is of the wrong kind.
    """
    given = _read(Path(str(path)))
    _expand_all(given)
    # What is given as a whole comes first: it would undo what is given of its parts.
    for key, value in sorted((overrides or {}).items(), key=lambda item: item[0].count("#")):
        _override(given, key, value)
        _expand_all(given)
    _check_keys(given, _DEFAULTS)
    values = {key: default if given.get(key) is None else given[key] for key, default in _DEFAULTS.items()}
    for key in ("bundle", "output_dir", "targets", "methods"):
        if values[key] is None:
            raise GrataError("is missing from the configuration.", key=key)

    sources, targets = (_mappings(values, key) for key in ("sources", "targets"))
    for name, settings in sources.items():
        for key in settings:
            _check_source_key(f"sources#{name}#{key}", key)
    for name, settings in targets.items():
        for key in settings:
            _check_target_key(f"targets#{name}#{key}", key)
    if not isinstance(values["common"], Mapping):
        raise GrataError(f"must hold settings of methods, got {values['common']!r}.", key="common")
    methods = tuple(_row(name, settings, values["common"]) for name, settings in _mappings(values, "methods").items())
    for key in values["common"]:
        if key == "seed":
            raise GrataError("the seeds of the benchmark are those of its methods. See seeds.", key="common#seed")
        if all(key not in settings_of(row.method) for row in methods):
            raise GrataError("no method of the benchmark has such a setting.", key=f"common#{key}")
    names = [row.name for row in methods]
    if values["reference_method"] not in names:
        raise GrataError(
            f"{values['reference_method']!r} is not a row of methods, which are {', '.join(names)}.",
            key="reference_method",
        )
    strides = {name: _take_stride(name, settings) for name, settings in targets.items()}
    source_scored, scored = _take_scored("sources", sources), _take_scored("targets", targets)
    protocols = values["protocol"] if isinstance(values["protocol"], list | tuple) else [values["protocol"]]
    made = tuple(make_protocol(setting, list(targets)) for setting in protocols)
    _check_unique("protocol", [protocol.label for protocol in made], "Give one of them another label.")
    for protocol in made:
        _check_name("protocol", protocol.label)
    seeds = _list("seeds", values["seeds"], int)
    _check_unique("seeds", seeds, "Name each once.")
    if any(not 0 <= seed < 2**32 for seed in seeds):
        raise GrataError(f"must be whole numbers of at least 0, got {seeds}.", key="seeds")
    if not isinstance(values["metrics"], Mapping):
        raise GrataError(f"must hold the settings space and empty, got {values['metrics']!r}.", key="metrics")
    _check_keys(values["metrics"], MetricSettings.__dataclass_fields__, "metrics#")

    config = BenchmarkConfig(
        bundle=_path("bundle", values["bundle"]),
        output_dir=_path("output_dir", values["output_dir"]),
        sources=sources,
        targets=targets,
        scored=scored,
        source_scored=source_scored,
        strides=strides,
        exclude_same_site=_flag(values, "exclude_same_site"),
        methods=methods,
        reference_method=str(values["reference_method"]),
        protocols=made,
        seeds=tuple(seeds),
        shuffle=_flag(values, "shuffle"),
        limit=_count(values, "limit", low=1),
        metrics=MetricSettings(**values["metrics"]),
        workers=_count(values, "workers", low=0) or 0,
        threads=_count(values, "threads", low=1),
        given=json.loads(json.dumps({key: given[key] for key in _DEFAULTS if key in given}, default=str)),
    )
    if not any(config.targets_of(source) for source in sources):
        raise GrataError(
            "none is left, since a source is not tested on its own site. See exclude_same_site.", key="targets"
        )
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        # YAML includes JSON, apart from numbers that no benchmark needs.
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GrataError(
            f"{path}: cannot be read ({error.strerror}). Name the benchmark's configuration file."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise GrataError(f"{path}: is neither YAML nor JSON: {' '.join(str(error).split())}.") from error
    if not isinstance(given, dict):
        raise GrataError(f"{path}: holds a {type(given).__name__}, not a mapping of keys such as bundle and targets.")
    return given


def _expand_all(given: dict[str, Any]) -> None:
    """Replace ``all`` among the methods by a row of each."""
    methods = given.get("methods")
    if methods == "all" or (isinstance(methods, Mapping) and "all" in methods):
        rows = {name: settings for name, settings in methods.items() if name != "all"} if methods != "all" else {}
        given["methods"] = {name: {} for name in METHODS} | rows


def _override(given: dict[str, Any], key: str, value: Any) -> None:
    if isinstance(value, str):
        value = option_constant(value, key)
    head, *rest = key.split("#")
    head = head.replace("-", "_")
    _check_keys([head], _DEFAULTS)
    if not rest:
        given[head] = value
        return
    if given.get(head) is None and isinstance(_DEFAULTS[head], dict):
        # The default's own names can be overridden as well; a copy, since it is there for the next one, too.
        given[head] = copy.deepcopy(_DEFAULTS[head])
    if head in _NAMED and isinstance(given[head], dict):
        rest[0] = _existing_name(given[head], head, rest[0], key)
        if head != "methods" and len(rest) > 2:
            # A bundle's own id: as a nested mapping it would replace all that the bundle has there.
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
        # The bundle is given them in their order, and this one is to win.
        place.pop(last, None)
    place[last] = value


def _existing_name(names: Mapping[str, Any], head: str, name: str, key: str) -> str:
    """The name in the file that an override means; the command line turns ``-`` into ``_``."""
    spelt: dict[str, list[str]] = {}
    for known in names:
        spelt.setdefault(str(known).replace("-", "_"), []).append(known)
    wanted = name.replace("-", "_")
    alike = spelt.get(wanted, [])
    if len(alike) == 1:
        return alike[0]
    if alike:
        raise GrataError(
            f"it may mean any of {', '.join(alike)}, as - and _ are the same here. Set it in the file.", key=f"--{key}"
        )
    near = difflib.get_close_matches(wanted, spelt, n=1)
    hint = f"Did you mean {head}#{spelt[near[0]][0]}?" if near else f"They are {', '.join(map(str, names)) or 'none'}."
    raise GrataError(f"{name} is not among the {head} of the file. {hint}", key=f"--{key}")


def _check_keys(given: Iterable[str], known: Iterable[str], prefix: str = "") -> None:
    known = list(known)
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"Did you mean {prefix}{near[0]}?" if near else f"The keys are {', '.join(known)}."
            raise GrataError(f"there is no such key. {hint}", key=f"{prefix}{key}")


def _mappings(values: Mapping[str, Any], key: str) -> dict[str, dict[str, Any]]:
    given = values[key]
    if not isinstance(given, Mapping) or not given:
        raise GrataError(f"must hold names with the settings of each, got {given!r}.", key=key)
    for name, settings in given.items():
        _check_name(key, name)
        if not isinstance(settings, Mapping | None):
            raise GrataError(f"must hold settings, got {settings!r}.", key=f"{key}#{name}")
    return {str(name): dict(settings or {}) for name, settings in given.items()}


def _check_source_key(where: str, key: str) -> None:
    head = key.split("#")[0]
    if head in _NOT_READ:
        raise GrataError(f"a benchmark does not read it. {_NOT_READ[head]}", key=where)


def _check_target_key(where: str, key: str) -> None:
    head = key.split("#")[0]
    if head in _NOT_READ:
        raise GrataError(f"this is not a site's, and a benchmark does not read it. {_NOT_READ[head]}", key=where)
    if head in _NOT_A_TARGETS:
        raise GrataError("this is not a site's. Set it in sources, or in a row of methods.", key=where)


def _take_stride(name: str, settings: dict[str, Any]) -> int:
    stride = settings.pop("stride", 1)
    if isinstance(stride, bool) or not isinstance(stride, int) or stride < 1:
        raise GrataError(f"must be a whole number of at least 1, got {stride!r}.", key=f"targets#{name}#stride")
    return stride


def _take_scored(key: str, named: Mapping[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Take the labels to score out of the settings of sources or targets."""
    found = {name: settings.pop("scored", None) for name, settings in named.items()}
    return {name: _list(f"{key}#{name}#scored", labels, str) for name, labels in found.items() if labels is not None}


def _row(name: str, settings: dict[str, Any], common: Mapping[str, Any]) -> MethodRow:
    method = settings.pop("method", name)
    if method not in METHODS:
        near = difflib.get_close_matches(str(method), METHODS, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"The methods are {', '.join(METHODS)}."
        raise GrataError(f"there is no method {method!r}. {hint}", key=f"methods#{name}")
    check_settings(method, settings, f"methods#{name}")
    if "seed" in settings:
        raise GrataError("the seeds of the benchmark are those of its methods. See seeds.", key=f"methods#{name}#seed")
    settings = {key: value for key, value in common.items() if key in settings_of(method)} | settings
    return MethodRow(name, method, settings)


def _check_name(key: str, name: Any) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise GrataError(
            f"{name!r} becomes a file name; write it with letters, digits and - _ . + (a number in quotes).", key=key
        )


def _check_unique(key: str, values: Sequence[Any], remedy: str) -> None:
    for value in values:
        if values.count(value) > 1:
            raise GrataError(f"{value!r} is there twice. {remedy}", key=key)


def _list(key: str, value: Any, kind: type) -> list[Any]:
    items = list(value) if isinstance(value, list | tuple) else [value]
    if not items or any(not isinstance(item, kind) or isinstance(item, bool) for item in items):
        raise GrataError(f"must be a list of {'whole numbers' if kind is int else 'names'}, got {value!r}.", key=key)
    return items


def _path(key: str, value: Any) -> Path:
    if not isinstance(value, str | Path):
        raise GrataError(f"must be a folder, got {value!r}. (Of a name that is a number: ./20240611.)", key=key)
    return Path(value).expanduser()


def _flag(values: Mapping[str, Any], key: str) -> bool:
    if not isinstance(values[key], bool):
        raise GrataError(f"must be true or false, got {values[key]!r}.", key=key)
    return values[key]


def _count(values: Mapping[str, Any], key: str, low: int) -> int | None:
    value = values[key]
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < low):
        raise GrataError(f"must be a whole number of at least {low}, or null, got {value!r}.", key=key)
    return value
