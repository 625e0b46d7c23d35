"""Benchmarks of methods on sites, which can be stopped and resumed."""

from .config import BenchmarkConfig, load_config
from .fit import fitting_methods
from .protocols import PROTOCOLS
from .run import run_benchmark

__all__ = ["PROTOCOLS", "BenchmarkConfig", "fitting_methods", "load_config", "run_benchmark"]
