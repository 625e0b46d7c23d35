"""The private parts of MONAI, ignite and highdicom that nothing public replaces, touched here and nowhere else."""

from __future__ import annotations

import functools
import gc
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from fire.parser import DefaultParseValue

if TYPE_CHECKING:
    from ignite.engine import Engine
    from monai.bundle import ConfigWorkflow

__all__ = [
    "attribute_types",
    "failed_item",
    "forget_run",
    "is_last_handler",
    "loaded_file",
    "put_first",
    "restore_seed",
    "running_command",
    "running_workflow",
    "silence",
    "typed_options",
]


@functools.cache
def attribute_types(module: str) -> Mapping[tuple[str, ...], Mapping[str, str]]:
    """Return the types of a DICOM module's attributes (1, 1C, 2, 2C or 3), by keyword, for each path of sequences.

    Args:
        module: name of the module as in the standard, in lower case with hyphens, for example ``general-study``.
    """
    from highdicom._standard_utils import get_module_attribute_map

    types: dict[tuple[str, ...], dict[str, str]] = {}
    for attribute in get_module_attribute_map()[module]:
        types.setdefault(tuple(attribute["path"]), {})[attribute["keyword"]] = attribute["type"]
    return types


def is_last_handler(engine: Engine, event: Any, handler: Callable[..., Any]) -> bool:
    """Return whether a handler is the last of an event: ignite drops an error that no handler raises again."""
    handlers = engine._event_handlers[event]
    return bool(handlers) and handlers[-1][0] == handler


def put_first(engine: Engine, event: Any, handler: Callable[..., Any]) -> None:
    """Let a handler of an event be called before all others: one that raises keeps those after it from being called."""
    handlers = engine._event_handlers[event]
    handlers.sort(key=lambda entry: entry[0] != handler)


def forget_run(engine: Engine) -> None:
    """Let the next ``engine.run()`` begin anew.

    Ignite would go on with the run that failed. Its loader's iterator must be gone before the next workers fork, which
    would inherit it and shut down its own.
    """
    engine._internal_run_generator = None
    engine._dataloader_iter = None
    gc.collect()


def silence(engine: Engine) -> None:
    """Turn off the logs of the engine and of MONAI, which would repeat each fault with its whole traceback."""
    from ignite.engine import Events
    from monai.handlers import StatsHandler

    engine.logger.disabled = True
    for handler, *_ in list(engine._event_handlers[Events.EXCEPTION_RAISED]):
        if isinstance(getattr(handler, "__self__", None), StatsHandler):
            engine.remove_event_handler(handler, Events.EXCEPTION_RAISED)


def restore_seed(seed: int | None) -> None:
    """Set MONAI's global seed, which it has no function for that sets it alone."""
    from monai.utils import misc

    misc._seed = seed  # type: ignore[assignment]


def running_workflow() -> ConfigWorkflow | None:
    """Return the workflow that evaluates the calling expression, found on the stack: MONAI passes no reference."""
    from monai.bundle import ConfigWorkflow

    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigWorkflow):
            return owner
        frame = frame.f_back
    return None


def running_command() -> Mapping[str, Any]:
    """Return the arguments of the running ``monai.bundle run``, found on the stack; empty if it is not running."""
    from monai.bundle import run

    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is run.__code__:
            return frame.f_locals
        frame = frame.f_back
    return {}


def typed_options() -> dict[str, tuple[str, Any]]:
    """Return the options of the running ``monai.bundle run`` by key: the word that was typed, and what fire read in it.

    Options that do not come from this process's command line are left out.
    """
    read = running_command().get("override", {})
    words = sys.argv[1:]
    typed: dict[str, str] = {}
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        if re.match("--|-[a-zA-Z]", word):
            key, equals, value = word.lstrip("-").partition("=")
            typed[key.replace("-", "_")] = value if equals else following
    return {
        key: (word, read[key]) for key, word in typed.items() if key in read and DefaultParseValue(word) == read[key]
    }


def loaded_file(error: BaseException) -> str | None:
    """Return the file that torch was loading when it failed: its messages name none. None: it was not."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "load" and frame.f_globals.get("__name__") in (
            "torch.serialization",
            "torch.jit._serialization",
        ):
            file = frame.f_locals.get("f")
            return os.fspath(file) if isinstance(file, str | os.PathLike) else None
    return None


def failed_item(error: BaseException) -> tuple[str, Any]:
    """Return key and class of what MONAI was building when it failed: its messages name no key.

    Args:
        error: what was raised.

    Returns:
        The key as users write it; empty where nothing was being built. And the class or function; None: unknown.
    """
    key, component = "", None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "_resolve_one_item":
            key = str(frame.f_locals.get("id", "")).replace("::", "#")
        elif frame.f_code.co_name == "instantiate":
            component = frame.f_locals.get("component", component)
    return key, component
