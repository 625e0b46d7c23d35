"""Test-time adaptation for medical image segmentation, as MONAI Bundles."""

import importlib
from importlib.metadata import version
from types import ModuleType

__version__ = version("grata")

_ROOMS = (
    "alignment",
    "benchmark",
    "data",
    "files",
    "handlers",
    "methods",
    "networks",
    "normalization",
    "objectives",
    "preparation",
    "prepared",
    "report",
    "resets",
    "styles",
    "views",
    "workflows",
)

__all__ = ["__version__", *_ROOMS]


def __getattr__(name: str) -> ModuleType:
    """``import grata`` stays light: a room is imported when it is first used."""
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
