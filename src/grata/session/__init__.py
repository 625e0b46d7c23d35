"""A method on a stream of cases: what every entrance drives, and what is promised at all of them.

Names are imported when they are first used, so that faults can be reported without torch.
"""

from typing import TYPE_CHECKING

from .._lazy import lazy

if TYPE_CHECKING:
    from .faults import causes as causes
    from .faults import check_finite as check_finite
    from .faults import explain as explain
    from .guard import Again as Again
    from .guard import Guard as Guard
    from .guard import Verdict as Verdict
    from .journal import Journal as Journal
    from .judge import QualityGuard as QualityGuard
    from .judge import make_guard as make_guard
    from .mark import restore as restore
    from .record import merged_record as merged_record
    from .resets import RESETS as RESETS
    from .resets import ResetPolicy as ResetPolicy
    from .resets import make_reset as make_reset
    from .session import Case as Case
    from .session import Session as Session
    from .session import judged_together as judged_together
    from .session import together as together
    from .stream import Adapted as Adapted
    from .stream import AdaptedStream as AdaptedStream
    from .stream import adapt as adapt
    from .windows import WindowSelection as WindowSelection
    from .windows import window_selection as window_selection

_NAMES = {
    "faults": ("causes", "check_finite", "explain"),
    "guard": ("Again", "Guard", "Verdict"),
    "journal": ("Journal",),
    "judge": ("QualityGuard", "make_guard"),
    "mark": ("restore",),
    "record": ("merged_record",),
    "resets": ("RESETS", "ResetPolicy", "make_reset"),
    "session": ("Case", "Session", "judged_together", "together"),
    "stream": ("Adapted", "AdaptedStream", "adapt"),
    "windows": ("WindowSelection", "window_selection"),
}

__all__ = [
    "RESETS",
    "Adapted",
    "AdaptedStream",
    "Again",
    "Case",
    "Guard",
    "Journal",
    "QualityGuard",
    "ResetPolicy",
    "Session",
    "Verdict",
    "WindowSelection",
    "adapt",
    "causes",
    "check_finite",
    "explain",
    "judged_together",
    "make_guard",
    "make_reset",
    "merged_record",
    "restore",
    "together",
    "window_selection",
]

# Type checkers would take any name for one that is there.
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _NAMES)
