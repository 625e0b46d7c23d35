"""How a command declares its options, and what their values are."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from ..checks import check_count, check_flag, check_number, constant, option_constant
from ..errors import GrataError
from ..files import absence, expanded
from .spelling import literal, parsed

__all__ = [
    "DIMENSIONS",
    "NUMBER",
    "PATH",
    "SITE",
    "SWITCH",
    "TEXT",
    "VALUE",
    "Kind",
    "Groups",
    "LabelsDir",
    "Work",
    "argument",
    "check_bundle",
    "check_exists",
    "count",
    "given",
    "option",
]

Work = Callable[[], int]
"""What a command does, when its options are read; it returns the exit status."""


@dataclass(frozen=True)
class Kind:
    """A kind of value.

    Attributes:
        placeholder: what stands for a value in the help.
        read: returns the value that a text means.
        check: returns the value, or raises :class:`GrataError` without a key.
    """

    placeholder: str
    read: Callable[[str], Any]
    check: Callable[[Any], Any]


def _unquoted(written: str) -> str:
    value = parsed(written)
    return value if isinstance(value, str) else written


def _unquoted_or_mapping(written: str) -> Any:
    if not written.lstrip().startswith("{"):
        return _unquoted(written)
    import yaml

    # names of cases may have a hyphen, which only YAML takes without quotes
    try:
        value = yaml.safe_load(written)
    except yaml.YAMLError as error:
        raise GrataError(f"must be a name or a mapping such as '{{case-1: north}}', got {written!r}.") from error
    return {str(key): str(item) for key, item in value.items()}


def _same(value: Any) -> Any:
    return value


def _dimensions(value: Any) -> Any:
    if value not in (2, 3):
        raise GrataError(f"must be 2 or 3, got {value!r}.")
    return value


TEXT = Kind("TEXT", _unquoted, _same)
PATH = Kind("PATH", str, _same)
"""The name of a file or folder: any character in it is its own."""
SWITCH = Kind("true|false", literal, check_flag)
NUMBER = Kind("NUMBER", literal, check_number)
VALUE = Kind("VALUE", literal, _same)
SITE = Kind("TEXT", _unquoted_or_mapping, _same)
DIMENSIONS = Kind("2|3", literal, _dimensions)


def count(at_least: int) -> Kind:
    """Return the kind of whole numbers of at least ``at_least``."""
    return Kind("INTEGER", literal, lambda value: check_count(value, at_least))


def check_exists(path: str, remedy: str, key: str | None = None) -> None:
    """Check that a file or folder exists, before torch is imported for what reads it.

    Raises:
        GrataError: there is nothing of that name.
    """
    if not expanded(path).exists():
        raise GrataError(f"{path} {absence(expanded(path))}. {remedy}", key)


def check_bundle(folder: str) -> None:
    """Check that a folder holds a bundle with an ``adapt.yaml``.

    Raises:
        GrataError: it does not.
    """
    remedy = "Name the folder of a bundle that has it."
    if os.path.islink(expanded(folder)):
        check_exists(folder, remedy, "bundle")
    check_exists(f"{folder}/configs/adapt.yaml", remedy, "bundle")


def argument(help: str, kind: Kind = TEXT) -> Any:
    """Declare what a command takes by position.

    Args:
        help: meaning in one line.
        kind: kind of its value, which is text.
    """
    return typer.Argument(parser=kind.read, help=help, show_default=False)


def option(name: str, kind: Kind, help: str, default: str | None = None, none: bool = False) -> Any:
    """Declare an option.

    Args:
        name: name of the option and of the function's parameter.
        kind: kind of its value; null is a value of every kind.
        help: meaning in one line.
        default: default in words; None: there is none.
        none: whether the word ``none`` is still taken for null.
    """

    def parse(written: Any) -> Any:
        value = kind.read(str(written))
        if isinstance(value, str):
            word = option_constant(value, name) if none else constant(value)
            # Text that reads like a constant is still text, but for null.
            value = value if kind in (TEXT, PATH) and word is not None else word
        try:
            return None if value is None else kind.check(value)
        except GrataError as error:
            raise error.under(name) from error

    meaning = help if default is None else f"{help}  [default: {default}]"
    return typer.Option(f"--{name}", parser=parse, metavar=kind.placeholder, help=meaning, show_default=False)


LabelsDir = Annotated[
    str | None,
    option("labels_dir", PATH, "Label maps of the images.", default="where they are found beside the images"),
]
"""The option of commands that read a labelled source set."""

Groups = Annotated[
    str | None,
    option(
        "groups",
        TEXT,
        "Regular expression for the patient in a case's name, or CSV file: the stride then counts patients.",
        default="each case by itself",
    ),
]
"""The option of commands that tell held-out cases by their patients."""


def given(context: typer.Context, *but: str) -> dict[str, Any]:
    """Return the values that were given, by name, with those of options that are not declared.

    Args:
        context: context of the command.
        but: names to leave out.
    """
    sources = {name: context.get_parameter_source(name) for name in context.params if name not in but}
    declared = {
        name: context.params[name] for name, source in sources.items() if source and source.name == "COMMANDLINE"
    }
    return {**declared, **(context.obj or {})}
