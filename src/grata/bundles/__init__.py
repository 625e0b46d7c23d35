"""Bundles in Model Zoo layout: what their configurations say, and one overlay that adapts any of them."""

from .adaptation import ZooAdaptation
from .checks import begin, overlay
from .cleaning import CleanRegionsd
from .configuration import effective_settings, keep_paths, start
from .head import Head, find_head, is_unit_range

__all__ = [
    "CleanRegionsd",
    "Head",
    "ZooAdaptation",
    "begin",
    "effective_settings",
    "find_head",
    "is_unit_range",
    "keep_paths",
    "overlay",
    "start",
]
