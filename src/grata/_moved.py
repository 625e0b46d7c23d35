"""Names that moved to another module, and are found under their old one for one more release."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["moved"]


def moved(old: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a module that names moved away from.

    Args:
        old: name of the module.
        places: full name of the module that a name is in now, by name.
    """

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        now = f"{places[name]}.{name}"
        warnings.warn(
            f"{old}.{name} is now {now}, and its old name goes with the next release.",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(importlib.import_module(places[name]), name)

    return get
