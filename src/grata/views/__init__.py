"""Weak views: geometric views of an image whose inverse is exact."""

from .weak import VIEWS, View, default_views, resolve_views

__all__ = ["VIEWS", "View", "default_views", "resolve_views"]
