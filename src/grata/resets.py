"""Former place of reset policies, which are in :mod:`grata.session.resets`."""

from ._moved import moved

__getattr__ = moved(__name__)
