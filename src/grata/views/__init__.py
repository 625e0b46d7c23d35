"""Views of an image: weak ones (flips and rotations with exact inverses), the strong one, and both together."""

from .augmentation import augmentations
from .strong import StrongView, brightness, contrast, gamma_inverted, gaussian_blur, min_max
from .weak import ROTATION_VIEWS, VIEWS, View, default_views, resolve_views

__all__ = [
    "ROTATION_VIEWS",
    "VIEWS",
    "StrongView",
    "View",
    "augmentations",
    "brightness",
    "contrast",
    "default_views",
    "gamma_inverted",
    "gaussian_blur",
    "min_max",
    "resolve_views",
]
