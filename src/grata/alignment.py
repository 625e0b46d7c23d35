"""Former place of gradients and laws, which are in :mod:`grata.optimization`."""

from ._moved import moved

__getattr__ = moved(__name__)
