"""Former place of the parts of a bundle's run, which are in :mod:`grata.engines` and :mod:`grata.bundles`."""

from ._moved import moved

__getattr__ = moved(__name__)
