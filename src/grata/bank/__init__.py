"""Adaptations: saved, put back onto the same source weights, kept by site or scanner, merged into checkpoints.

Names are imported when they are first used, so that a bank can be listed without torch.
"""

from typing import TYPE_CHECKING

from .._lazy import lazy

if TYPE_CHECKING:
    from .bank import UNKNOWN as UNKNOWN
    from .bank import AdapterBank as AdapterBank
    from .command import run_bank as run_bank
    from .export import export_checkpoint as export_checkpoint
    from .saved import Adaptation as Adaptation
    from .saved import apply as apply
    from .saved import load as load
    from .saved import save as save
    from .tags import SCANNER as SCANNER
    from .tags import check_tags as check_tags
    from .tags import scanner_tags as scanner_tags

_NAMES = {
    "bank": ("UNKNOWN", "AdapterBank"),
    "command": ("run_bank",),
    "export": ("export_checkpoint",),
    "saved": ("Adaptation", "apply", "load", "save"),
    "tags": ("SCANNER", "check_tags", "scanner_tags"),
}

__all__ = [
    "SCANNER",
    "UNKNOWN",
    "Adaptation",
    "AdapterBank",
    "apply",
    "check_tags",
    "export_checkpoint",
    "load",
    "run_bank",
    "save",
    "scanner_tags",
]

# Type checkers would take any name for one that is there.
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _NAMES)
