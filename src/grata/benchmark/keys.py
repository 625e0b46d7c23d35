"""The keys of a benchmark's configuration: default, allowed values and meaning of each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from ..checks import did_you_mean
from ..errors import GrataError
from ..files import expanded
from ..settings import KeywordSettings, Settings, choice, count, flag, setting

__all__ = [
    "BenchmarkKeys",
    "MetricSettings",
    "check_known",
    "check_name",
    "check_unique",
    "list_of_names",
    "take",
]

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
# These belong to the source network or to a row of methods: a stream crosses sites with one of each.
_NOT_OF_A_TARGET = {
    *("network", "network_def", "weights", "device", "amp", "inferer", "windows", "segments"),
    *("memory_format", "keep_pages", "activation", "prepared", "reset"),
}
# Keys that only the command `adapt` reads, with what to use in a benchmark.
_NOT_READ = {
    "output_dir": "The benchmark has its own at the top level.",
    "num_workers": "See workers at the top level.",
    "seed": "See seeds at the top level.",
    "method": "See methods at the top level.",
    "settings": "Set them in a row of methods.",
    **dict.fromkeys(
        ("resume", "overwrite"), "A benchmark always resumes; to start from the beginning, choose another output_dir."
    ),
    "compare": "Add the row source to methods.",
    "traceback": "Leave it out.",
}


class MetricSettings(Settings):
    """How predictions are scored.

    ``empty`` says what becomes of a structure that is missing from the prediction, the label or both. ``nan``: missing
    from both, it is not scored; missing from one, its Dice is 0 and its distances are infinite. ``reference``: missing
    from both, its Dice is 1; missing from either, its distances are 100. The latter is what the reference
    implementations of GraTa and VPTTA do.
    """

    name: ClassVar[str] = "metrics"

    space: str = choice(
        default="input",
        of=("input", "network"),
        help="grid of the scores: the image's own, or the one the network sees",
    )
    empty: str = choice(default="nan", of=("nan", "reference"), help="score of a structure that is missing")


def check_known(given: Iterable[object], known: Sequence[str]) -> None:
    """Check that every key is known.

    Raises:
        GrataError: one is not; the message names the nearest known key.
    """
    for key in given:
        if key not in known:
            hint = did_you_mean(key, known, f"The keys are {', '.join(known)}.")
            raise GrataError(f"there is no such key. {hint}", key=str(key))


def check_name(name: object) -> str:
    """Return a name that can be part of a file's name.

    Raises:
        GrataError: it is not text, or holds other characters than letters, digits and ``- _ . +``.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise GrataError(
            f"{name!r} becomes a file name; write it with letters, digits and - _ . + (a number in quotes)."
        )
    return name


def check_unique(values: Sequence[object], remedy: str) -> None:
    """Check that no value is there twice.

    Raises:
        GrataError: one is; the message ends with the remedy.
    """
    for value in values:
        if values.count(value) > 1:
            raise GrataError(f"{value!r} is there twice. {remedy}")


def list_of_names(value: object) -> list[str]:
    """Return a list of names from a list or a single name.

    Raises:
        GrataError: it is empty, or holds anything but text.
    """
    return _list(value, str, "names")


def take(named: Mapping[str, dict[str, Any]], key: str, check: Callable[[Any], T], parent: str) -> dict[str, T]:
    """Remove one key from the settings of every source or target and return its values by name.

    Args:
        named: settings by the name of the source or target.
        key: key to remove; null is as if it were not there.
        check: function that returns the value to keep.
        parent: key that ``named`` stands under, for messages.

    Raises:
        GrataError: the check refuses a value.
    """
    found = {}
    for name, settings in named.items():
        value = settings.pop(key, None)
        if value is not None:
            try:
                found[name] = check(value)
            except GrataError as error:
                raise GrataError(error.message, key=f"{parent}#{name}#{key}") from error
    return found


def _folder(value: object) -> Path:
    if not isinstance(value, str | Path):
        raise GrataError(f"must be a folder, got {value!r}. Write a name that is a number as ./20240611.")
    return expanded(value)


def _named(value: object) -> dict[str, dict[str, Any]]:
    """Return settings by name; a name without settings gets an empty dict."""
    if not isinstance(value, Mapping) or not value:
        raise GrataError(f"must hold names with the settings of each, got {value!r}.")
    for name, settings in value.items():
        check_name(name)
        if not isinstance(settings, Mapping | None):
            raise GrataError(f"must hold settings, got {settings!r}.", key=name)
    return {name: dict(settings or {}) for name, settings in value.items()}


def _sources(value: object) -> dict[str, dict[str, Any]]:
    sources = _named(value)
    for name, key, head in _heads(sources):
        if head in _NOT_READ:
            raise GrataError(f"a benchmark does not read it. {_NOT_READ[head]}", key=f"{name}#{key}")
    return sources


def _targets(value: object) -> dict[str, dict[str, Any]]:
    targets = _named(value)
    for name, key, head in _heads(targets):
        if head in _NOT_READ:
            raise GrataError(f"a benchmark does not read it. {_NOT_READ[head]}", key=f"{name}#{key}")
        if head in _NOT_OF_A_TARGET:
            raise GrataError(
                "is not a setting of a site. Set it in sources, or in a row of methods.", key=f"{name}#{key}"
            )
    return targets


def _heads(named: Mapping[str, Mapping[str, Any]]) -> Iterable[tuple[str, str, str]]:
    """Return each name and key, with the part of the key before any ``#``."""
    return ((name, key, str(key).partition("#")[0]) for name, settings in named.items() for key in settings)


def _name_or_null(value: object) -> str | None:
    return None if value is None else check_name(value)


def _settings_of_methods(value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise GrataError(f"must hold settings of methods, got {value!r}.")
    if "seed" in value:
        raise GrataError("the benchmark sets it. See seeds.", key="seed")
    return dict(value)


def _seeds(value: object) -> tuple[int, ...]:
    seeds = _list(value, int, "whole numbers")
    check_unique(seeds, "Name each once.")
    if any(not 0 <= seed < 2**32 for seed in seeds):
        raise GrataError(f"must be whole numbers of at least 0, got {seeds}.")
    return tuple(seeds)


def _list(value: object, kind: type[T], words: str) -> list[T]:
    given = list(value) if isinstance(value, list | tuple) else [value]
    items = [item for item in given if isinstance(item, kind) and not isinstance(item, bool)]
    if not given or len(items) < len(given):
        raise GrataError(f"must be a list of {words}, got {value!r}.")
    return items


def _metrics(value: object) -> MetricSettings:
    if not isinstance(value, Mapping):
        raise GrataError(f"must hold the settings space and empty, got {value!r}.")
    return MetricSettings(**{str(key): item for key, item in value.items()})


class BenchmarkKeys(KeywordSettings):
    """The keys of a benchmark's YAML or JSON file. Null in the file stands for the default.

    ``methods: all`` is one row for each method with its defaults; ``all`` among other rows adds them to these.
    """

    name: ClassVar[str] = "benchmark"

    bundle: Path = setting(
        check=_folder,
        range="folder",
        help="bundle whose configs/adapt.yaml gives network, preprocessing, inferer, postprocessing and segments",
    )
    output_dir: Path = setting(check=_folder, range="folder", help="folder of all results")
    sources: dict[str, dict[str, Any]] = setting(
        default={"bundle": {}},
        check=_sources,
        range="mapping",
        help="name of each source network, with overrides of the bundle's configuration, scored: labels of the "
        "segments to score, and stride: n for every n-th of the images of each site",
    )
    targets: dict[str, dict[str, Any]] = setting(
        check=_targets,
        range="mapping",
        help="name of each site, with overrides of the bundle's configuration, scored, groups, and stride: 1 for all "
        "images, n for every n-th from the first on",
    )
    exclude_same_site: bool = flag(default=True, help="whether a source is not tested on the target of its own name")
    methods: dict[str, dict[str, Any]] = setting(
        check=_named,
        range="mapping or all",
        help="name of each row of the tables, with method (if not its name) and settings over the bundle's",
    )
    common: dict[str, Any] = setting(
        default={}, check=_settings_of_methods, range="mapping", help="settings for every method that has them"
    )
    home: str | None = setting(
        default=None,
        check=_name_or_null,
        range="name of a target or null",
        help="target that holds images of the source's own site; it is left out of what is said of all targets",
    )
    reference_method: str = setting(
        default="grata", range="name of a row", help="row that the other methods are compared with"
    )
    protocol: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] = setting(
        default="per-target",
        range="name, mapping of name and settings, or list of these",
        help="order of the images, one block of the tables each",
    )
    seeds: tuple[int, ...] = setting(
        default=[0],
        check=_seeds,
        range="list of whole numbers",
        help="seeds of the methods' random generators and of random orders",
    )
    shuffle: bool = flag(default=False, help="whether the images of a site come in random order")
    limit: int | None = count(
        default=None,
        optional=True,
        help="number of first images of each site, counted after its stride; null: all",
    )
    metrics: MetricSettings = setting(
        default={}, check=_metrics, range="mapping", help="how predictions are scored: space and empty"
    )
    workers: int = count(
        default=1, at_least=0, help="number of processes; 0: the benchmark's own, which then ignores keep_pages"
    )
    threads: int | None = count(
        default=None, optional=True, help="number of torch threads in each process; null: the cores are shared out"
    )
