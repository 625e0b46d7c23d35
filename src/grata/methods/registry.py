"""All methods by name: found in this folder, one file each, described by their cards."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import nn

from ..errors import GrataError
from ..normalization import ensure_affine
from ..normalization.affine import ATTACHED
from .base import Method

__all__ = ["METHODS", "check_settings", "create", "settings_of"]


def _found() -> dict[str, type[Method]]:
    """Classes of this folder's files that have a card, by the year of their publication."""
    package = __name__.rpartition(".")[0]
    modules = (importlib.import_module(f"{package}.{m.name}") for m in pkgutil.iter_modules(_path(package)))
    found = {method for module in modules for method in vars(module).values() if _is_method(method, module)}
    return {method.name: method for method in sorted(found, key=lambda method: (method.card.year, method.name))}


def _path(package: str) -> list[str]:
    return list(importlib.import_module(package).__path__)


def _is_method(value: Any, module: ModuleType) -> bool:
    if not (isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__):
        return False
    return "card" in vars(value)


METHODS: dict[str, type[Method]] = _found()
"""Every method by the name that configs use; ``METHODS[name].card`` tells what it is."""


def create(
    name: str,
    network: nn.Module,
    settings: Mapping[str, Any] | None = None,
    affine: str = "own",
    **common: Any,
) -> Method:
    """The method called ``name`` for ``network``.

    Args:
        name: a key of :data:`METHODS`.
        network: the source network.
        settings: keyword arguments of the method's class.
        affine: what is adapted where normalization layers have no affine parameters, see
            :func:`grata.normalization.ensure_affine`; methods that do not learn attach none. What is attached is the
            method's ``attached``.
        common: what a bundle says for all methods (``activation``, ``seed``, ``reset``, ``prepared``): given to a
            method that has such a setting, where ``settings`` does not say otherwise and the value is not None.

    Raises:
        GrataError: unknown name or setting (with the nearest known one), or whatever the method refuses; no activation,
            where the method needs one: what a network ends in cannot be guessed. The network is as it was then.
    """
    if not isinstance(name, str) or name not in METHODS:
        near = difflib.get_close_matches(str(name), METHODS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise GrataError(f"there is no {name!r}; the methods are {', '.join(METHODS)}.{hint}", key="method")
    settings = dict(settings or {})
    check_settings(name, settings)
    known = settings_of(name)
    given = {key: value for key, value in common.items() if key in known and value is not None} | settings
    if "activation" in known and "activation" not in given:
        raise GrataError("say sigmoid or softmax, as the network was trained.", key="activation")
    earlier = any(hasattr(module, ATTACHED) for module in network.modules())
    attached = None
    try:
        if METHODS[name].learns:
            attached = ensure_affine(network, affine)
        method = METHODS[name](network, **given)
    except GrataError as error:
        # what another method attached stays its own
        if attached is not None and not earlier:
            attached.detach()
        if error.head in settings:
            raise error.under("settings") from error
        raise
    method.attached = attached
    return method


def check_settings(name: str, settings: Mapping[str, Any], key: str = "settings") -> None:
    """Raise :class:`GrataError` for a setting that a method does not have, naming the one that may be meant.

    Args:
        name: of the method.
        settings: by name.
        key: where they stand, for the message.
    """
    known = settings_of(name)
    for setting in settings:
        if setting not in known:
            near = difflib.get_close_matches(setting, known, n=1)
            hint = f"did you mean {key}#{near[0]}?" if near else f"the settings are {', '.join(known) or 'none'}."
            raise GrataError(f"method {name} has no such setting; {hint}", key=f"{key}#{setting}")


def settings_of(name: str) -> dict[str, Any]:
    """All settings of the method called ``name`` with their defaults, its own first, then those of its bases."""
    return METHODS[name].settings()
