"""Bundles of the MONAI Model Zoo and in its layout: one overlay adapts them and changes none of their files."""

from .adaptation import ZooAdaptation
from .head import Head, find_head, is_unit_range
from .run import EvaluatorRun
from .start import begin, overlay

__all__ = ["EvaluatorRun", "Head", "ZooAdaptation", "begin", "find_head", "is_unit_range", "overlay"]
