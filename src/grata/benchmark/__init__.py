"""Methods by sites: a benchmark that can be stopped, repeated and trusted."""

from .config import BenchmarkConfig, load_config
from .fit import fitting_methods
from .protocols import PROTOCOLS
from .run import run_benchmark

__all__ = ["PROTOCOLS", "BenchmarkConfig", "fitting_methods", "load_config", "run_benchmark"]
