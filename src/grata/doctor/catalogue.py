"""The methods as a catalogue: their cards, settings and documentation, without importing torch.

``methods/catalogue.json`` holds what :func:`build` collects from the classes; ``scripts/generate.py`` writes it, and a
test compares the two. :func:`load` takes the file where it still belongs to the code, else the classes themselves.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..settings import KeywordSettings

if TYPE_CHECKING:
    from ..methods import Method

__all__ = ["PATH", "MethodEntry", "SettingEntry", "build", "digest", "load", "to_json", "written"]

_METHODS = Path(__file__).parents[1] / "methods"
PATH = _METHODS / "catalogue.json"
"""The file of the catalogue."""

_GROUP = "grata.methods"


@dataclasses.dataclass(frozen=True)
class SettingEntry:
    """A setting of a method.

    Attributes:
        default: the default as a plain value; a list for a tuple.
        range: allowed values in words.
        help: meaning in one line.
    """

    default: Any
    range: str = ""
    help: str = ""


@dataclasses.dataclass(frozen=True)
class MethodEntry:
    """A method.

    Attributes:
        name: name that configurations use.
        title, reference, year, rule, changes, needs, spatial_dims, episodic, forwards, backwards: the method's card,
            see :class:`grata.methods.Card`.
        prepared: what of its needs is prepared from the source set.
        settings: the settings by name, its own first, then those of its bases.
        own: names of the settings that the method itself declares.
        documentation: docstring of the class.
    """

    name: str
    title: str
    reference: str
    year: int
    rule: str
    changes: str
    needs: tuple[str, ...]
    spatial_dims: tuple[int, ...]
    episodic: bool
    forwards: int
    backwards: int
    prepared: tuple[str, ...]
    settings: dict[str, SettingEntry]
    own: tuple[str, ...]
    documentation: str


def load() -> dict[str, MethodEntry]:
    """Return the methods by name, by the year of their publication.

    They are read from the file, unless the code has changed since it was written, or another package gives methods.
    """
    if not entry_points(group=_GROUP):
        try:
            stored = json.loads(PATH.read_text(encoding="utf-8"))
            if stored["sha256"] == digest():
                return {entry["name"]: _from_json(entry) for entry in stored["methods"]}
        except (OSError, ValueError, KeyError, TypeError):
            # What cannot be read is made anew.
            pass
    return build()


def build(own: bool = False) -> dict[str, MethodEntry]:
    """Return the methods by name as their classes declare them; this imports torch.

    Args:
        own: whether to leave out the methods of other packages.
    """
    from ..methods import METHODS

    package = "grata.methods."
    return {
        name: _entry(method) for name, method in METHODS.items() if not own or method.__module__.startswith(package)
    }


def digest() -> str:
    """Return the SHA-256 of the files that declare methods and settings."""
    found = hashlib.sha256()
    for path in (*sorted(_METHODS.glob("*.py")), _METHODS.parent / "settings.py"):
        found.update(f"{path.name}\n".encode() + path.read_bytes())
    return found.hexdigest()


def to_json(entries: dict[str, MethodEntry]) -> str:
    """Return the text of the catalogue's file."""
    methods = [dataclasses.asdict(entry) for entry in entries.values()]
    return json.dumps({"sha256": digest(), "methods": methods}, indent=1, ensure_ascii=False) + "\n"


def written(value: Any) -> str:
    """Return a plain value as one writes it in YAML and on the command line.

    Example:
        >>> print(written(None), written(1e-5), written([0.9, True]), written({"momentum": 0.9}))
        null 0.00001 [0.9, true] {momentum: 0.9}
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, float) and "e" in (text := repr(value)):
        digits, _, exponent = text.partition("e")
        decimals = max(0, len(digits.partition(".")[2]) - int(exponent))
        plain = f"{value:.{decimals}f}"
        return plain if float(plain) == value and "." in plain else text
    return str(value)


def _entry(method: type[Method]) -> MethodEntry:
    declared = method.settings()
    of_bases = {
        id(item) for base in method.__bases__ if issubclass(base, KeywordSettings) for item in base.settings().values()
    }
    return MethodEntry(
        method.name,
        **dataclasses.asdict(method.card),
        prepared=method.card.prepared,
        settings={key: SettingEntry(_plain(item.default), item.range, item.help) for key, item in declared.items()},
        own=tuple(key for key, item in declared.items() if id(item) not in of_bases),
        # The settings stand in the docstring too.
        documentation=inspect.cleandoc(method.__doc__ or "").partition("\n\nSettings:\n")[0],
    )


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


def _from_json(entry: dict[str, Any]) -> MethodEntry:
    lists = {key: tuple(entry[key]) for key in ("needs", "spatial_dims", "prepared", "own")}
    settings = {name: SettingEntry(**setting) for name, setting in entry["settings"].items()}
    return MethodEntry(**{**entry, **lists, "settings": settings})
