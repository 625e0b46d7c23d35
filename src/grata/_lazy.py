"""Names of a package that are imported when they are first used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = ["lazy"]


def lazy(
    package: str, names: Mapping[str, Iterable[str]], modules: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the ``__getattr__`` and the ``__dir__`` of a package.

    Args:
        package: name of the package.
        names: what each of its modules gives, by the module's name.
        modules: modules of the package that can be reached through it themselves.
    """
    module_of = {name: module for module, given in names.items() for name in given}
    reachable = frozenset(modules)

    def get(name: str) -> Any:
        if name in module_of:
            return getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)
        if name in reachable:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def listed() -> list[str]:
        module = vars(sys.modules[package])
        return sorted({*module_of, *reachable, *module.get("__all__", ()), *(n for n in module if n.startswith("__"))})

    return get, listed
