"""Normalization layers: find them, collect their affine parameters, choose their statistics."""

from .affine import TrackedNorm, batch_norm_layers, collect_affine_parameters, normalization_layers
from .attached import AFFINE, AttachedAffine, attach_affine, ensure_affine
from .excess import ImageSpread, excess_rule, spread_of
from .features import deepest_feature, deepest_module, replaced_output
from .rules import RULES, Rule
from .scripted import ScriptedNetwork, switchable
from .statistics import BatchStatistics, channel_affine, check_running_statistics

__all__ = [
    "AFFINE",
    "RULES",
    "AttachedAffine",
    "BatchStatistics",
    "ImageSpread",
    "Rule",
    "ScriptedNetwork",
    "TrackedNorm",
    "attach_affine",
    "batch_norm_layers",
    "channel_affine",
    "check_running_statistics",
    "collect_affine_parameters",
    "deepest_feature",
    "deepest_module",
    "ensure_affine",
    "excess_rule",
    "normalization_layers",
    "replaced_output",
    "spread_of",
    "switchable",
]
