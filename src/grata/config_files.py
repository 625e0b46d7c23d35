"""Configuration files that people write, YAML or JSON: an error names the file and the line."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from .errors import GrataError

__all__ = ["read_config"]

_DEEPEST = 64
"""Greatest number of values inside each other: what reads a configuration calls itself for each."""

_MOST_COPIES = 10_000
"""Greatest number of values that aliases repeat: those of a few hundred bytes can repeat billions."""

_CANNOT_BE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
"""What PyYAML raises for a value that its tag or form does not allow, such as the date 2026-13-45."""

_LARGEST = 32 << 20
"""Greatest size of a file in bytes."""


def read_config(
    path: Path, key: str | None = None, as_yaml: bool = False, remedy: str = "Correct it."
) -> dict[str, Any]:
    """Return the content of a configuration file.

    Args:
        path: file to read; its ending says whether it is JSON.
        key: key of the configuration that names the file, for messages.
        as_yaml: whether a file that ends in ``.json`` is read as YAML, which includes JSON, too.
        remedy: what to do about a file that is wrong.

    Raises:
        GrataError: the file cannot be read, is not UTF-8, YAML or JSON, is not a mapping of keys, is nested too deeply,
            or its aliases repeat too much.
    """
    data = _data(path, key)
    is_json = path.suffix.lower() == ".json" and not as_yaml
    try:
        text = _text(data)
        content = json.loads(text) if is_json else yaml.load(text, _Loader)
        _check(content)
    except GrataError as error:
        raise GrataError(f"{path} {error.message}. {remedy}", key=key) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        kind = "not JSON" if is_json else "neither YAML nor JSON" if as_yaml else "not YAML"
        raise GrataError(f"{path} is {kind}: {_in_words(error)}. {remedy}", key=key) from error
    return content


def _data(path: Path, key: str | None) -> bytes:
    try:
        # a pipe would be waited for
        if not stat.S_ISREG((status := path.stat()).st_mode):
            raise GrataError(f"{path} cannot be read: it is not a file. Name a configuration file.", key=key)
        if status.st_size > _LARGEST:
            raise GrataError(f"{path} has more than {_LARGEST >> 20} MB. Name a configuration file.", key=key)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise GrataError(f"{path} cannot be read ({why}). Name a configuration file.", key=key) from error


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise GrataError(f"is not text in UTF-8: line {line} has the byte 0x{data[error.start]:02x}") from error


class _Loader(yaml.SafeLoader):
    """PyYAML's loader with bounds, and with the line of a value that cannot be."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._deepest = self._values = self._copies = 0
        # number of values and levels below each anchor
        self._anchored: dict[str, tuple[int, int]] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        before, deepest = self._values, self._deepest
        self._depth += 1
        self._values += 1
        self._deepest = self._depth
        if isinstance(event, yaml.AliasEvent):
            self._copy(event)
        if self._deepest > _DEEPEST:
            raise yaml.MarkedYAMLError(None, None, f"more than {_DEEPEST} values inside each other", event.start_mark)
        node = super().compose_node(parent, index)
        if event.anchor is not None and not isinstance(event, yaml.AliasEvent):
            self._anchored[event.anchor] = (self._values - before, self._deepest - self._depth)
        self._depth -= 1
        self._deepest = max(deepest, self._deepest)
        return node

    def _copy(self, event: yaml.AliasEvent) -> None:
        name = event.anchor
        if name in self.anchors and name not in self._anchored:
            raise yaml.MarkedYAMLError(None, None, f"*{name} stands inside &{name} itself", event.start_mark)
        # PyYAML reports a name that is not known
        values, levels = self._anchored.get(name, (0, 0))
        self._values += values
        self._copies += values
        self._deepest += levels
        if self._copies > _MOST_COPIES:
            what = f"*{name} and the aliases before it repeat more than {_MOST_COPIES} values"
            raise yaml.MarkedYAMLError(None, None, what, event.start_mark)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int):
                # raises where Python reads a hexadecimal number that it refuses to print
                str(value)
            return value
        except _CANNOT_BE as error:
            raise yaml.MarkedYAMLError(None, None, str(error), node.start_mark) from error

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_mapping(node, deep)
        except _CANNOT_BE as error:
            raise yaml.MarkedYAMLError(None, None, str(error), node.start_mark) from error


def _check(content: Any) -> None:
    """Check that a content is a mapping, and not nested too deeply."""
    if not isinstance(content, dict):
        kind = "nothing" if content is None else f"a {type(content).__name__}"
        raise GrataError(f"holds {kind}, not a mapping of keys")
    level: list[Any] = [content]
    for _ in range(_DEEPEST):
        level = [item for value in level for item in _inside(value)]
    if level:
        raise GrataError(f"has more than {_DEEPEST} values inside each other")


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else ()


def _in_words(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}, column {error.colno}: {error.msg}"
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark or error.context_mark) is not None:
        what = " ".join(str(part) for part in (error.context, error.problem) if part)
        return f"line {mark.line + 1}, column {mark.column + 1}: {' '.join(what.split())}"
    if isinstance(error, RecursionError):
        return f"more than {_DEEPEST} values inside each other"
    return " ".join(str(error).split())
