"""Former place of the overlay, which is in :mod:`grata.bundles`."""

from ._moved import moved

__getattr__ = moved(__name__)
