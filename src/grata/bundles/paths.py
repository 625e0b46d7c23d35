"""Paths and other texts as a person wrote them, where MONAI's parser would read its own signs in them.

The parser turns ``#`` into ``::`` in every text, runs a text that begins with ``$``, and follows one that begins with
``@`` or ``%``; the command line before it takes what follows a ``#`` for a comment, and takes off brackets and quotes.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from monai.bundle import ConfigExpression, ConfigParser, ReferenceResolver
from monai.bundle.utils import ID_SEP_KEY, MACRO_KEY

from ..console import say
from ..errors import GrataError
from ..files import expanded
from ..private import running_command, typed_options

__all__ = ["as_given", "as_written", "keep_texts", "keep_typed", "leaves", "shown_key", "verbatim"]

_PATHS = re.compile(r"(?:.+_)?(?:dir|file|folder|path|root)|bank|start_from|save_to|prepared|quality|weights|ckpt")
"""Last part of a key whose text is a path."""
_SIGNS = ("$", "@", MACRO_KEY)


def verbatim(text: str) -> str:
    """Return what MONAI's parser reads as exactly this text.

    Example:
        >>> verbatim("/data/scans"), verbatim("/data/Study #12")
        ('/data/scans', "$'/data/Study \\\\x2312'")
    """
    if "#" not in text and not text.startswith(_SIGNS):
        return text
    return "$" + repr(text).replace("#", r"\x23").replace("@", r"\x40")


def as_given(key: str, value: Any) -> Any:
    """Return what MONAI reads as an override of a key: a path that begins like code is one where its folder exists."""
    if not (isinstance(value, str) and value.startswith(_SIGNS) and _is_path(key)):
        return value
    parent = os.path.dirname(value)
    is_there = os.path.lexists(value) or (parent and os.path.isdir(parent))
    return verbatim(value) if is_there else value


def as_written(value: Any) -> Any:
    """Return the text behind a value that :func:`verbatim` made; other values as they are."""
    if isinstance(value, str) and re.match(r"\$['\"]", value):
        try:
            return ast.literal_eval(value[1:])
        except (SyntaxError, ValueError):
            pass
    return value


def keep_texts(parser: ConfigParser) -> bool:
    """Keep each text of a configuration that has a ``#`` and is neither code nor a reference; expand ``~`` in paths.

    Returns:
        Whether anything was changed.
    """
    return _keep(parser, leaves(parser.get()))


def _keep(parser: ConfigParser, texts: Iterable[tuple[str, Any]]) -> bool:
    """Keep texts, given by their key as they were before MONAI parsed them; see :func:`keep_texts`."""
    changed = False
    for key, text in texts:
        if not isinstance(text, str) or (kept := _kept(key, text)) == text:
            continue
        # Another file or the command line may have replaced it, and it may be kept already.
        if parser.get(key) in (text, ReferenceResolver.normalize_id(text)):
            parser.set(kept, key)
            changed = True
    return changed


def _sources() -> Iterator[tuple[str, Any]]:
    """Yield what the running command was given, in files and on the command line, by key."""
    command = running_command()
    arguments = ConfigParser.load_config_file(command.get("args_file") or "")
    files = command.get("config_file") or arguments.pop("config_file", None)
    yield from leaves(ConfigParser.load_config_files(files or {}))
    for key, value in {**arguments, **command.get("override", {})}.items():
        yield from leaves(value, key)


def _kept(key: str, value: str) -> str:
    parts = shown_key(key).split("#")
    # MONAI's own keys have an underscore: the metadata, and remarks in components.
    if parts[0] in (ConfigParser.meta_key, "imports") or parts[-1].startswith("_"):
        return value
    if value.startswith("~") and _is_path(key):
        return verbatim(str(expanded(value)))
    return verbatim(value) if "#" in value and not _is_code(value) else value


def keep_typed(parser: ConfigParser) -> bool:
    """Keep the texts of the running ``monai.bundle run`` as they were typed, those of its files as they stand there.

    A path of the command line is never run as code. Where it begins like a reference to a key of the configuration, it
    is one, and a note says so.

    Returns:
        Whether anything was changed.

    Raises:
        GrataError: a path begins with ``$``, and there is nothing of that name.
    """
    changed = False
    for key, (typed, value) in typed_options().items():
        if not _is_text(key, typed, value):
            continue
        text = _path(key, typed, parser) if _is_path(key) else verbatim(typed)
        if text is not None and text != parser.get(key):
            parser.set(text, key)
            changed = True
    return _keep(parser, _sources()) or changed


def _is_text(key: str, typed: str, value: Any) -> bool:
    """Return whether a word of the command line is a text as it stands, and not what fire read in it."""
    if "#" in typed and "#" not in str(value):
        return True
    # A list or a number is one, unless there is a file or folder of that name.
    return _is_path(key) and (isinstance(value, str) or os.path.lexists(typed))


def _path(key: str, typed: str, parser: ConfigParser) -> str | None:
    """Return what MONAI reads as the path that was typed; None: it is a reference, and MONAI has followed it."""
    if typed.startswith(_SIGNS) and not os.path.lexists(typed):
        if typed.startswith("$"):
            raise GrataError(
                f"{typed} begins with $, which marks code in a configuration, and there is no such file or folder. "
                "Write ./ before a name that begins with $.",
                key=f"--{key}",
            )
        if typed.startswith(MACRO_KEY) or (name := typed[1:].partition("#")[0]) and name in parser:
            say(
                f"note: --{key} {typed} is read as a reference in the configuration. Write ./ before a name.",
                sys.stderr,
            )
            return None
    return verbatim(str(expanded(typed)) if typed.startswith("~") else typed)


def leaves(config: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the id and value of everything that is neither dict nor list."""
    if not isinstance(config, dict | list | tuple):
        yield key, config
        return
    items = config.items() if isinstance(config, dict) else enumerate(config)
    for name, value in items:
        yield from leaves(value, f"{key}{ID_SEP_KEY}{name}" if key else str(name))


def shown_key(key: str) -> str:
    """Return an id as users write it on the command line."""
    return key.replace(ID_SEP_KEY, "#")


def _is_path(key: str) -> bool:
    return _PATHS.fullmatch(shown_key(key).rpartition("#")[2]) is not None


def _is_code(text: str) -> bool:
    is_reference = bool(ReferenceResolver.match_refs_pattern(text))
    return is_reference or text.startswith((MACRO_KEY, "@")) or ConfigExpression.is_expression(text)
