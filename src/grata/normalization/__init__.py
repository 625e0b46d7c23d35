"""Normalization layers: find them, collect their affine parameters, choose their statistics."""

from .affine import collect_affine_parameters, normalization_layers
from .statistics import BatchStatistics

__all__ = ["BatchStatistics", "collect_affine_parameters", "normalization_layers"]
