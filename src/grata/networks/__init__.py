"""Networks and their source weights."""

from .branches import BRANCHES
from .checkpoints import Conversion, convert_checkpoint, to_reference_names
from .efficientnet import EfficientNetLite0, EfficientUNet
from .heads import HEADS, AuxiliaryHeads, SavedHeads
from .parameters import network_digest, weights_digest
from .resunet import ResUNet
from .weights import load_encoder, load_source

__all__ = [
    "BRANCHES",
    "HEADS",
    "AuxiliaryHeads",
    "Conversion",
    "EfficientNetLite0",
    "EfficientUNet",
    "ResUNet",
    "SavedHeads",
    "convert_checkpoint",
    "load_encoder",
    "load_source",
    "network_digest",
    "to_reference_names",
    "weights_digest",
]
