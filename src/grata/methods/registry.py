"""All methods by name: those of this folder, one file each, and those of other packages, added by entry points."""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

from torch import nn

from ..checks import did_you_mean
from ..errors import GrataError
from ..normalization import AttachedAffine, ensure_affine
from ..normalization.affine import ATTACHED
from ..settings import MISSING
from .base import Method

__all__ = ["ENTRY_POINTS", "METHODS", "check_settings", "create", "method_class", "needs_activation", "settings_of"]

ENTRY_POINTS = "grata.methods"
"""Group of entry points by which other packages add methods: ``name = "package.module:Class"``."""


class _Methods(Mapping[str, type[Method]]):
    """Classes of methods by name, from this folder and from other packages, sorted by year and name.

    Entry points are read only when all names are requested, or a name that this folder does not have.
    """

    def __init__(self, own: Mapping[str, type[Method]]) -> None:
        self._own = own
        self._others: dict[str, type[Method]] | None = None

    def __getitem__(self, name: str) -> type[Method]:
        # a configuration may give a list, which is no key of a dict
        if not isinstance(name, str):
            raise KeyError(name)
        return self._own[name] if name in self._own else self._of_others()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_in_order([*self._own.values(), *self._of_others().values()]))

    def __len__(self) -> int:
        return len(self._own) + len(self._of_others())

    def _of_others(self) -> dict[str, type[Method]]:
        if self._others is None:
            self._others = {}
            for point in entry_points(group=ENTRY_POINTS):
                method = _loaded(point, {*self._own, *self._others})
                if method is not None:
                    self._others[method.name] = method
        return self._others


def _loaded(point: EntryPoint, taken: set[str]) -> type[Method] | None:
    """Return the class that an entry point names; None, with a warning, if it is not a method with a new name."""
    try:
        method = point.load()
    # a broken package must not make the other methods unavailable
    except Exception as error:  # noqa: BLE001
        why = f"its import fails ({type(error).__name__}: {error})"
    else:
        if not (isinstance(method, type) and issubclass(method, Method) and "card" in vars(method)):
            why = f"{point.value} is not a subclass of grata.methods.Method with a card"
        elif method.name != point.name:
            why = f"the class is named {method.name}, the entry point {point.name}"
        elif method.name in taken:
            why = "there is a method of that name already"
        else:
            return method
    package = point.dist.name if point.dist is not None else "another package"
    warnings.warn(f"method {point.name} of {package} is left out: {why}.", stacklevel=2)
    return None


def _found() -> list[type[Method]]:
    """Return the classes of this folder's files that have a card."""
    package = __name__.rpartition(".")[0]
    modules = (importlib.import_module(f"{package}.{m.name}") for m in pkgutil.iter_modules(_path(package)))
    return [method for module in modules for method in vars(module).values() if _is_method(method, module)]


def _in_order(methods: Iterable[type[Method]]) -> dict[str, type[Method]]:
    return {method.name: method for method in sorted(methods, key=lambda method: (method.card.year, method.name))}


def _path(package: str) -> list[str]:
    return list(importlib.import_module(package).__path__)


def _is_method(value: Any, module: ModuleType) -> bool:
    if not (isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__):
        return False
    return "card" in vars(value)


METHODS: Mapping[str, type[Method]] = _Methods(_in_order(_found()))
"""Every method by its name in configurations; ``METHODS[name].card`` describes it."""


def method_class(method: str | type[Method]) -> type[Method]:
    """Return the class of a method.

    Args:
        method: name of the method, or the class itself.

    Raises:
        GrataError: there is no such method.
    """
    if isinstance(method, type) and issubclass(method, Method):
        return method
    if not isinstance(method, str) or method not in METHODS:
        hint = did_you_mean(method, METHODS)
        raise GrataError(
            f"there is no {method!r}; the methods are {', '.join(METHODS)}.{hint and ' ' + hint}", key="method"
        )
    return METHODS[method]


def create(
    method: str | type[Method],
    network: nn.Module,
    settings: Mapping[str, Any] | None = None,
    affine: str = "own",
    **common: Any,
) -> Method:
    """Return a method for a network.

    Args:
        method: name of the method, a key of :data:`METHODS`, or its class.
        network: source network.
        settings: settings of the method.
        affine: choice of what is adapted where normalization layers have no affine parameters, see
            :func:`grata.normalization.ensure_affine`. Methods that do not learn attach none. The method's ``attached``
            holds the attached parameters.
        common: settings that a bundle gives to all methods (``activation``, ``seed``, ``prepared``). A method gets
            those that it has, unless ``settings`` contains them or the value is None.

    Raises:
        GrataError: the name or a setting is not known (with the most similar known one), or the method refuses the
            network or a value. The network is unchanged then.
    """
    made = method_class(method)
    settings = _checked(made, settings)
    known = made.settings()
    # the reset policy stood among them until version 0.1
    given = {key: value for key, value in common.items() if key in (*known, "reset") and value is not None} | settings
    earlier = any(hasattr(module, ATTACHED) for module in network.modules())
    attached: AttachedAffine | None = None
    try:
        if made.learns:
            attached = ensure_affine(network, affine)
        instance = made(network, **given)
    except GrataError as error:
        # parameters that another method attached stay attached
        if attached is not None and not earlier:
            attached.detach()
        if error.head in settings:
            raise error.under("settings") from error
        raise
    instance.attached = attached
    instance.told = _told(common)
    return instance


def _told(common: Mapping[str, Any]) -> dict[str, Any]:
    return {key: common[key] for key in ("activation", "output") if common.get(key) is not None}


def _checked(method: type[Method], settings: Any) -> dict[str, Any]:
    if not isinstance(settings, Mapping | None):
        raise GrataError(f"must be a mapping of settings by name, got {settings!r}.", key="settings")
    method.check_names(settings or {}, "settings")
    return dict(settings or {})


def check_settings(name: str, settings: Mapping[str, Any], key: str = "settings") -> None:
    """Raise :class:`GrataError` for a setting that a method does not have, with the most similar name.

    Args:
        name: name of the method.
        settings: settings by name.
        key: configuration key of the settings, for the message.
    """
    METHODS[name].check_names(settings, key)


def needs_activation(name: str, settings: Mapping[str, Any]) -> bool:
    """Return whether a method with these settings must know the activation of the network's output.

    Args:
        name: name of the method; for one that there is not, nothing is needed.
        settings: settings by name.
    """
    if name not in METHODS:
        return False
    return settings_of(name).get("activation") is MISSING or settings.get("predict", "network") != "network"


def settings_of(name: str) -> dict[str, Any]:
    """Return the defaults of all settings of the method called ``name``: its own first, then those of its bases."""
    return {key: item.default for key, item in METHODS[name].settings().items()}
