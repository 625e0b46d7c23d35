"""Former place of the strong view, which is in :mod:`grata.views`."""

from ._moved import moved

__getattr__ = moved(__name__)
