"""Networks and their source weights."""

from .branches import BRANCHES
from .resunet import ResUNet
from .weights import load_source

__all__ = ["BRANCHES", "ResUNet", "load_source"]
