"""Normalization layers: find them, collect their affine parameters, choose their statistics."""

from .affine import collect_affine_parameters, normalization_layers
from .scripted import ScriptedNetwork
from .statistics import BatchStatistics, channel_affine

__all__ = [
    "BatchStatistics",
    "ScriptedNetwork",
    "channel_affine",
    "collect_affine_parameters",
    "normalization_layers",
]
