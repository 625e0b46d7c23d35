"""Former place of the stream of a notebook, which is in :mod:`grata.session`."""

from ._moved import moved

__getattr__ = moved(__name__)
