"""Quality of predictions without labels: signals, the Dice that they let expect, and the verdict on an image."""

from .calibration import Calibration, Expected
from .decision import Decision, Thresholds, decide
from .distance import LayerStatistics, layer_statistics
from .image import image_features, thumbnail
from .judgement import (
    OK,
    REJECT,
    REJECTED,
    REVIEW,
    UNEXPECTED,
    UNJUDGED,
    VERDICTS,
    Judgement,
    exit_status,
    verdict_in_words,
    worst,
)
from .measures import Measures, measure
from .signals import (
    Segmentation,
    adic,
    class_compactness,
    overlap,
    segmentation,
    shape_signals,
    soft_overlap,
)

__all__ = [
    "OK",
    "REJECT",
    "REJECTED",
    "REVIEW",
    "UNEXPECTED",
    "UNJUDGED",
    "VERDICTS",
    "Calibration",
    "Decision",
    "Expected",
    "Judgement",
    "LayerStatistics",
    "Measures",
    "Segmentation",
    "Thresholds",
    "adic",
    "class_compactness",
    "decide",
    "exit_status",
    "image_features",
    "layer_statistics",
    "measure",
    "overlap",
    "segmentation",
    "shape_signals",
    "soft_overlap",
    "thumbnail",
    "verdict_in_words",
    "worst",
]
