"""Preparation: what methods need from the source set, taken once by ``python -m grata prepare``."""

from .run import prepare

__all__ = ["prepare"]
