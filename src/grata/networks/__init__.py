"""Networks and their source weights."""

from .branches import BRANCHES
from .checkpoints import Conversion, convert_checkpoint, to_reference_names
from .resunet import ResUNet
from .weights import load_encoder, load_source

__all__ = [
    "BRANCHES",
    "Conversion",
    "ResUNet",
    "convert_checkpoint",
    "load_encoder",
    "load_source",
    "to_reference_names",
]
