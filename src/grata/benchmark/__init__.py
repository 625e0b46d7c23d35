"""Benchmarks of methods on sites, which can be stopped and resumed."""

from .config import BenchmarkConfig, load_config
from .protocols import PROTOCOLS
from .run import run_benchmark

__all__ = ["PROTOCOLS", "BenchmarkConfig", "load_config", "run_benchmark"]
