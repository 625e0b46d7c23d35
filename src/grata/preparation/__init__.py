"""Preparation: what methods and the guard need from the source set, taken once by ``prepare`` and ``calibrate``."""

from .calibration import calibrate
from .run import prepare

__all__ = ["calibrate", "prepare"]
