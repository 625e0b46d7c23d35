"""Former place of the catalogue of methods, which is in :mod:`grata.doctor.catalogue`."""

from ._moved import moved

__getattr__ = moved(__name__)
