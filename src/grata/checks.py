"""Checks of single values, each with one sentence for what it refuses.

A check returns the value to keep, or raises a :class:`grata.errors.GrataError` without key; :func:`checked` adds one.
Nothing here imports torch, so that a command line can check what it was given before it loads anything.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .console import say
from .errors import GrataError

__all__ = [
    "check_choice",
    "check_count",
    "check_flag",
    "check_number",
    "checked",
    "constant",
    "did_you_mean",
    "is_finite",
    "option_constant",
    "range_in_words",
]

_CONSTANTS = {"true": True, "false": False, "null": None}
_DEPRECATED = {"none": "null"}
"""Words that some commands took for a constant, and take for one more release, by the word to write."""


def constant(value: Any) -> Any:
    """Return what ``true``, ``false`` and ``null`` mean where a command line hands them over as text.

    Args:
        value: value of one key, or a mapping or list of such values, at any depth.

    Returns:
        The constant; other values as they are; a new dict for a mapping, a new list for a list or tuple.

    Example:
        >>> constant({"overwrite": "true", "limit": "null", "name": "x"})
        {'overwrite': True, 'limit': None, 'name': 'x'}
    """
    if isinstance(value, Mapping):
        return {key: constant(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [constant(item) for item in value]
    return _CONSTANTS.get(value.lower(), value) if isinstance(value, str) else value


def option_constant(value: Any, key: str) -> Any:
    """Return :func:`constant` of an option's value; the word ``none`` is still null, with a note on standard error.

    Args:
        value: value that a command line hands over.
        key: name of the option, for the note.
    """
    if isinstance(value, str) and value.lower() in _DEPRECATED:
        word = _DEPRECATED[value.lower()]
        say(f"note: {key}: the next release will not take {value} for {word}. Write {word}.", sys.stderr)
        value = word
    return constant(value)


def did_you_mean(given: object, known: Iterable[str], otherwise: str = "", prefix: str = "") -> str:
    """Return a hint at the known name that is nearest to the one given.

    Args:
        given: name that is not known.
        known: names that are.
        otherwise: what to return where no name is near.
        prefix: what stands before a name in the hint.

    Example:
        >>> did_you_mean("tnet", ["test", "tent", "ptbn"])
        'Did you mean tent?'
    """
    word, names = str(given).lower(), {str(name).lower(): str(name) for name in known}
    # Two letters in the wrong order are the likeliest slip, and difflib counts it as two.
    near = sorted(difflib.get_close_matches(word, names, n=3), key=lambda name: sorted(name) != sorted(word))
    return f"Did you mean {prefix}{names[near[0]]}?" if near else otherwise


def check_number(
    value: Any,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    why: str = "",
) -> float:
    """Return ``value`` as a float.

    Raises:
        GrataError: it is not a finite number within the bounds.
    """
    wrong = GrataError(
        f"must be a finite number{_of_range(range_in_words(at_least, above, at_most, below))}, got {value!r}."
    )
    if isinstance(value, bool) or not isinstance(value, int | float) or not is_finite(value):
        raise wrong
    if why and value in (above, below):
        raise GrataError(f"must be {range_in_words(None, above, None, below)}, {why}, got {value!r}.")
    if not _is_inside(value, at_least, above, at_most, below):
        raise wrong
    return float(value)


def is_finite(value: float) -> bool:
    """Return whether a number is one that a float can hold."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def check_count(value: Any, at_least: int = 1, or_null: bool = False) -> int:
    """Return ``value``.

    Raises:
        GrataError: it is not a whole number of at least ``at_least``.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise GrataError(f"must be a whole number of at least {at_least}{', or null' * or_null}, got {value!r}.")
    return value


def check_flag(value: Any) -> bool:
    """Return ``value``.

    Raises:
        GrataError: it is neither true nor false.
    """
    if not isinstance(value, bool):
        raise GrataError(f"must be true or false, got {value!r}.")
    return value


def check_choice(value: Any, of: Iterable[str], or_null: bool = False) -> str:
    """Return ``value``.

    Raises:
        GrataError: it is not among the names ``of``.
    """
    names = list(of)
    if not isinstance(value, str) or value not in names:
        raise GrataError(f"must be one of {', '.join(names)}{', or null' * or_null}, got {value!r}.")
    return value


def checked(check: Callable[[Any], Any], value: Any, key: str) -> Any:
    """Return what ``check`` returns for a value; its error gets the key of the value.

    Args:
        check: function that returns the value to keep, or raises :class:`GrataError` without a key.
        value: value to check.
        key: key of the value in the configuration.

    Raises:
        GrataError: the check refuses the value.
    """
    try:
        return check(value)
    except GrataError as error:
        raise error.under(key) from error


def range_in_words(at_least: float | None, above: float | None, at_most: float | None, below: float | None) -> str:
    """Return the bounds of a number in words, empty where there are none."""
    bounds = (("at least", at_least), ("above", above), ("at most", at_most), ("below", below))
    return " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)


def _is_inside(
    value: float, at_least: float | None, above: float | None, at_most: float | None, below: float | None
) -> bool:
    return (
        (at_least is None or value >= at_least)
        and (above is None or value > above)
        and (at_most is None or value <= at_most)
        and (below is None or value < below)
    )


def _of_range(words: str) -> str:
    """Return bounds as they follow the word number in a sentence."""
    return f" of {words}" if words.startswith("at ") else f" {words}" if words else ""
