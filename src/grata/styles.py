"""Former place of the strong view, which is in :mod:`grata.views`."""

from ._moved import moved

_NAMES = ("StrongView", "brightness", "contrast", "gamma_inverted", "gaussian_blur", "min_max")

__getattr__ = moved(__name__, dict.fromkeys(_NAMES, "grata.views"))
