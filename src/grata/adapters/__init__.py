"""What was learnt: saved, put back onto the same source weights, kept for each site or scanner, merged into checkpoints."""

from .bank import UNKNOWN, AdapterBank
from .command import run_bank
from .export import export_checkpoint
from .keeper import Keeper
from .saved import Adaptation, apply, load, save
from .tags import SCANNER, check_tags, scanner_tags

__all__ = [
    "SCANNER",
    "UNKNOWN",
    "Adaptation",
    "AdapterBank",
    "Keeper",
    "apply",
    "check_tags",
    "export_checkpoint",
    "load",
    "run_bank",
    "save",
    "scanner_tags",
]
