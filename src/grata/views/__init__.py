"""Weak views: flips and rotations of an image, each with an exact inverse."""

from .weak import VIEWS, View, default_views, resolve_views

__all__ = ["VIEWS", "View", "default_views", "resolve_views"]
