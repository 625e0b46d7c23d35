"""Test-time adaptation for medical image segmentation, as MONAI Bundles."""

import importlib
from importlib.metadata import version
from typing import Any

__version__ = version("grata")

_ROOMS = (
    "adapters",
    "alignment",
    "benchmark",
    "data",
    "files",
    "handlers",
    "methods",
    "networks",
    "nnunet",
    "normalization",
    "objectives",
    "preparation",
    "prepared",
    "report",
    "resets",
    "streaming",
    "styles",
    "views",
    "workflows",
    "zoo",
)
_FUNCTIONS = {"adapt": "streaming", "overlay": "zoo"}

__all__ = ["__version__", *_ROOMS, *_FUNCTIONS]


def __getattr__(name: str) -> Any:
    """``import grata`` stays light: a room is imported when it, or what it gives, is first used."""
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f"{__name__}.{_FUNCTIONS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
