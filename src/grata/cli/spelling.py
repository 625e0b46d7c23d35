"""A command line in any of the spellings that are taken, as the one that typer reads."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fire.parser import DefaultParseValue

from ..checks import constant, did_you_mean
from ..console import say
from ..errors import GrataError

__all__ = ["Grammar", "literal", "parsed", "spelled"]

_HELP = ("--help", "-h")


@dataclass(frozen=True)
class Grammar:
    """What a command takes.

    Attributes:
        command: name of the command, for messages.
        arguments: names of what is given by position, in order; they can be given by name too.
        options: names of the options.
        required: names of the arguments that must be given.
        switches: names of the options that are true or false; without a value they are true.
        texts: names of the options whose value must be written out.
        by_position: options that can stand after the arguments without their name.
        nested: options whose parts can be given one by one, such as ``settings#lr``.
        others: whether options that are not declared are taken, such as keys of a bundle's configuration.
    """

    command: str
    arguments: tuple[str, ...]
    options: tuple[str, ...]
    required: tuple[str, ...] = ()
    switches: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    by_position: tuple[str, ...] = ()
    nested: tuple[str, ...] = ()
    others: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """All names that are declared."""
        return (*self.arguments, *self.options)


def spelled(given: Sequence[str], grammar: Grammar) -> tuple[list[str], dict[str, Any]]:
    """Return the command line in typer's spelling, and the options that are not declared.

    ``--key value`` and ``--key=value`` are the same, ``-`` and ``_`` in a name too. Without a value an option is true;
    ``--nokey`` is false. Among several values of one option the last counts.

    Args:
        given: arguments after the name of the command.
        grammar: what the command takes.

    Returns:
        ``--key=value`` for each declared option, then what is given by position; and the values of other options by
        name, nested ones joined by ``#``.

    Raises:
        GrataError: an option is not known, an argument is missing, or there are too many.
    """
    if any(word in _HELP for word in given):
        return ["--help"], {}
    named, others, values = _read(given, grammar)
    _place(values, named, grammar)
    options = [f"--{name}={value}" for name, value in named.items() if name in grammar.options]
    positional = [named[name] for name in grammar.arguments if name in named]
    return [*options, *(["--", *positional] if positional else [])], others


def _read(given: Sequence[str], grammar: Grammar) -> tuple[dict[str, str], dict[str, Any], list[str]]:
    """Return the declared options, the other options and the values without a name, in the order of the line."""
    named: dict[str, str] = {}
    others: dict[str, Any] = {}
    values: list[str] = []
    rest = list(given)
    while rest:
        word = rest.pop(0)
        if not _is_flag(word):
            values.append(word)
            continue
        name, value = _option(word, rest, grammar)
        if name in grammar.names:
            named[name] = value
        else:
            others[name] = literal(value)
    return named, others, values


def _option(word: str, rest: list[str], grammar: Grammar) -> tuple[str, str]:
    """Return name and value of the option ``word``, whose value may be the first of ``rest``, which is then taken."""
    key, equals, value = word.lstrip("-").partition("=")
    bare = not equals and (not rest or _is_flag(rest[0]))
    if not equals:
        value = "true" if bare else rest.pop(0)
    name, negated = _name(key.replace("-", "_"), bare, grammar)
    if bare and name in (*grammar.arguments, *grammar.texts) and not negated:
        raise GrataError("needs a value.", f"--{name}")
    if name in grammar.names:
        _refuse_empty(value, f"--{name}")
    return name, "false" if negated else value


def _refuse_empty(value: str, key: str) -> None:
    # An empty path, as from a shell variable that is not set, would be the current folder.
    if not value:
        raise GrataError("needs a value, got ''.", key)


def literal(text: str) -> Any:
    """Return the value of a Python literal, or the text where it is none; true, false and null are constants.

    Example:
        >>> literal("0,1"), literal("{lr: 0.1, entropy: null}"), literal("model.pt")
        ((0, 1), {'lr': 0.1, 'entropy': None}, 'model.pt')
    """
    return _constants(parsed(text))


def parsed(text: str) -> Any:
    """Return the value of a Python literal as fire reads it, or the text; what fire takes for a comment is text too."""
    value = DefaultParseValue(text)
    return text if "#" in text and "#" not in str(value) else value


def _constants(value: Any) -> Any:
    # A tuple stays one: methods show it in their state.
    if isinstance(value, Mapping):
        return {key: _constants(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_constants(item) for item in value]
    return constant(value) if isinstance(value, str) else value


def _is_flag(word: str) -> bool:
    return word.startswith("--") or re.match("-[a-zA-Z]", word) is not None


def _name(key: str, bare: bool, grammar: Grammar) -> tuple[str, bool]:
    """Return the name that an option means, and whether it is negated."""
    head, _, parts = key.partition("#")
    if key in grammar.names or (parts and head in grammar.nested):
        return key, False
    negated = key.removeprefix("no").removeprefix("_")
    if bare and key.startswith("no") and negated in grammar.switches:
        return negated, True
    with_dots = key.partition(".")[0] in grammar.nested
    if grammar.others and not with_dots:
        return key, False
    if len(beginning := _beginning_with(key, grammar)) == 1:
        return beginning[0], False
    raise _unknown(key, with_dots, grammar)


def _unknown(key: str, with_dots: bool, grammar: Grammar) -> GrataError:
    hint = f"Did you mean --{key.replace('.', '#')}?"
    if not with_dots:
        otherwise = f"grata {grammar.command} --help lists all."
        hint = did_you_mean(key.partition("#")[0], grammar.names, otherwise, prefix="--")
    return GrataError(f"there is no such option. {hint}", f"--{key}")


def _beginning_with(letter: str, grammar: Grammar) -> list[str]:
    return [name for name in grammar.names if name[0] == letter]


def _place(values: Sequence[str], named: dict[str, str], grammar: Grammar) -> None:
    """Give each value that has no name the next one that is free."""
    free = [name for name in (*grammar.arguments, *grammar.by_position) if name not in named]
    if len(values) > len(free):
        places = " ".join((*grammar.arguments, *grammar.by_position))
        raise GrataError(
            f"there is no place for {values[len(free)]!r}; the arguments of grata {grammar.command} are {places}."
        )
    for name, value in zip(free, values, strict=False):
        _refuse_empty(value, name)
        if name in grammar.by_position:
            say(f"note: {value} is read as --{name}; the next release will ask for that name.", sys.stderr)
        named[name] = value
    for name in grammar.required:
        if name not in named:
            raise GrataError(f"is missing. grata {grammar.command} --help shows what it takes.", name)
