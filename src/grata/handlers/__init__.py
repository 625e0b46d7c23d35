"""Handlers and inferers that plug methods into MONAI's engines."""

from .adaptation import AdaptationHandler, GraTaHandler
from .joint import JointInferer
from .journal import Journal
from .precision import AutocastInferer
from .steps import adapt_to_case, merged_record
from .windows import WindowSelection, window_selection

__all__ = [
    "AdaptationHandler",
    "AutocastInferer",
    "GraTaHandler",
    "JointInferer",
    "Journal",
    "WindowSelection",
    "adapt_to_case",
    "merged_record",
    "window_selection",
]
