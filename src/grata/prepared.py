"""Former place of what is prepared from the source set, which is in :mod:`grata.methods.prepared`."""

from ._moved import moved

__getattr__ = moved(__name__)
