"""Test-time adaptation methods, one file each; plain PyTorch, usable without any engine."""

from .base import Method, StepRecord
from .card import NEEDS, Card
from .gradient import GradientMethod, GradientRecord
from .grata import GraTa
from .predictive import PredictionNetwork, PredictiveMethod
from .prepared import Prepared
from .ptbn import PTBN
from .registry import METHODS, check_settings, create, needs_activation, settings_of
from .source import Source
from .state import Remembered
from .tent import Tent

__all__ = [
    "METHODS",
    "NEEDS",
    "PTBN",
    "Card",
    "GraTa",
    "GradientMethod",
    "GradientRecord",
    "Method",
    "PredictionNetwork",
    "PredictiveMethod",
    "Prepared",
    "Remembered",
    "Source",
    "StepRecord",
    "Tent",
    "check_settings",
    "create",
    "needs_activation",
    "settings_of",
]
