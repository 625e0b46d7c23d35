"""Test-time adaptation methods, one file each; plain PyTorch, usable without any engine."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import GrataError
from .base import Method, StepRecord
from .grata import GraTa, GraTaRecord
from .ptbn import PTBN
from .source import Source
from .tent import Tent, TentRecord

__all__ = ["METHODS", "PTBN", "GraTa", "GraTaRecord", "Method", "Source", "StepRecord", "Tent", "TentRecord", "check_settings", "create"]

METHODS: dict[str, type[Method]] = {method.name: method for method in (Source, PTBN, Tent, GraTa)}
"""Every method by the name that configs use; a class tells what it is in ``summary`` and ``changes``."""


def create(name: str, network: nn.Module, settings: Mapping[str, Any] | None = None) -> Method:
    """The method called ``name`` for ``network``.

    Args:
        name: a key of :data:`METHODS`.
        network: the source network.
        settings: keyword arguments of the method's class.

    Raises:
        GrataError: unknown name or setting (with the nearest known one), or whatever the method refuses; no activation,
            where the method needs one: what a network ends in cannot be guessed.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise GrataError(f"method: there is no {name!r}; the methods are {', '.join(METHODS)}.")
    settings = dict(settings or {})
    check_settings(name, settings)
    if "activation" in _settings(name) and "activation" not in settings:
        raise GrataError(
            f"{name}#activation: say sigmoid or softmax, as the network was trained. (On the command line --{name} "
            f"replaces all settings at once; override one as --{name}#<setting>.)"
        )
    try:
        return METHODS[name](network, **settings)
    except GrataError as error:
        key = str(error).split(" ")[0].rstrip(":")
        raise GrataError(f"{name}#{error}" if key in settings else str(error)) from error


def check_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Raise :class:`GrataError` for a setting that method ``name`` does not have, naming the one that may be meant."""
    known = _settings(name)
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {name}#{near[0]}?" if near else f"the settings are {', '.join(known) or 'none'}."
            raise GrataError(f"{name}#{key}: {METHODS[name].__name__} has no such setting; {hint}")


def _settings(name: str) -> list[str]:
    return [parameter for parameter in inspect.signature(METHODS[name]).parameters if parameter != "network"]
