"""Former place of saved adaptations and banks, which are in :mod:`grata.bank`."""

from ._moved import moved

__getattr__ = moved(__name__)
