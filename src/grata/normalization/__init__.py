"""Normalization layers: find them, collect their affine parameters, choose their statistics."""

from .affine import collect_affine_parameters, normalization_layers
from .scripted import ScriptedNetwork
from .statistics import BatchStatistics

__all__ = ["BatchStatistics", "ScriptedNetwork", "collect_affine_parameters", "normalization_layers"]
