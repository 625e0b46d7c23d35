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

__all__ = ["METHODS", "PTBN", "GraTa", "GraTaRecord", "Method", "Source", "StepRecord", "create"]

METHODS: dict[str, type[Method]] = {method.name: method for method in (Source, PTBN, GraTa)}
"""Every method by the name that configs use; a class tells what it is in ``summary`` and ``changes``."""


def create(name: str, network: nn.Module, settings: Mapping[str, Any] | None = None) -> Method:
    """The method called ``name`` for ``network``.

    Args:
        name: a key of :data:`METHODS`.
        network: the source network.
        settings: keyword arguments of the method's class.

    Raises:
        GrataError: unknown name or setting (with the nearest known one), or whatever the method refuses.
    """
    if name not in METHODS:
        raise GrataError(f"method: there is no {name!r}; the methods are {', '.join(METHODS)}.")
    known = [p for p in inspect.signature(METHODS[name]).parameters if p != "network"]
    for key in settings or {}:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {name}#{near[0]}?" if near else f"the settings are {', '.join(known) or 'none'}."
            raise GrataError(f"{name}#{key}: {METHODS[name].__name__} has no such setting; {hint}")
    return METHODS[name](network, **(settings or {}))
