"""Bundles of the MONAI Model Zoo, and any in that layout: adapted by one overlay, without a change to their files."""

from .adaptation import ZooAdaptation
from .head import Head, find_head, is_unit_range
from .run import EvaluatorRun
from .start import begin, overlay

__all__ = ["EvaluatorRun", "Head", "ZooAdaptation", "begin", "find_head", "is_unit_range", "overlay"]
