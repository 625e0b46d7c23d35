"""Former place of handlers and inferers, which are in :mod:`grata.engines`."""

from ._moved import moved

__getattr__ = moved(__name__)
