"""Networks and their source weights."""

from .weights import load_source

__all__ = ["load_source"]
