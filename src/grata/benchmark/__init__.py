"""Benchmarks of methods on sites, which can be stopped and resumed."""

from typing import TYPE_CHECKING

from .._moved import moved
from .config import BenchmarkConfig, load_config
from .protocols import PROTOCOLS
from .run import run_benchmark

__all__ = ["PROTOCOLS", "BenchmarkConfig", "load_config", "run_benchmark"]

# Type checkers would take any name for one that is there.
if not TYPE_CHECKING:
    __getattr__ = moved(__name__)
