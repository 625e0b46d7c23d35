"""Networks and their source weights."""

from .branches import BRANCHES
from .checkpoints import Conversion, convert_checkpoint, to_reference_names
from .heads import HEADS, AuxiliaryHeads
from .resunet import ResUNet
from .weights import load_encoder, load_source

__all__ = [
    "BRANCHES",
    "HEADS",
    "AuxiliaryHeads",
    "Conversion",
    "ResUNet",
    "convert_checkpoint",
    "load_encoder",
    "load_source",
    "to_reference_names",
]
