"""Test-time adaptation for medical image segmentation, as MONAI Bundles.

``import grata`` is light: a name below is imported when it is first used.
"""

from typing import TYPE_CHECKING

from ._lazy import lazy
from ._version import __version__
from .errors import GrataError, RunError

if TYPE_CHECKING:
    from . import adapters as adapters
    from . import alignment as alignment
    from . import bank as bank
    from . import benchmark as benchmark
    from . import bundles as bundles
    from . import catalogue as catalogue
    from . import checks as checks
    from . import data as data
    from . import doctor as doctor
    from . import engines as engines
    from . import errors as errors
    from . import files as files
    from . import handlers as handlers
    from . import machine as machine
    from . import methods as methods
    from . import networks as networks
    from . import nnunet as nnunet
    from . import normalization as normalization
    from . import objectives as objectives
    from . import optimization as optimization
    from . import predictions as predictions
    from . import preparation as preparation
    from . import prepared as prepared
    from . import report as report
    from . import resets as resets
    from . import session as session
    from . import settings as settings
    from . import streaming as streaming
    from . import styles as styles
    from . import views as views
    from . import workflows as workflows
    from . import zoo as zoo
    from .bank import Adaptation as Adaptation
    from .bank import AdapterBank as AdapterBank
    from .benchmark import run_benchmark as run_benchmark
    from .bundles import overlay as overlay
    from .engines import AdaptationHandler as AdaptationHandler
    from .engines import GraTaHandler as GraTaHandler
    from .methods import METHODS as METHODS
    from .methods import PTBN as PTBN
    from .methods import GradientRecord as GradientRecord
    from .methods import GraTa as GraTa
    from .methods import Method as Method
    from .methods import Prepared as Prepared
    from .methods import Source as Source
    from .methods import StepRecord as StepRecord
    from .methods import Tent as Tent
    from .methods import create as create
    from .session import Adapted as Adapted
    from .session import AdaptedStream as AdaptedStream
    from .session import Session as Session
    from .session import WindowSelection as WindowSelection
    from .session import adapt as adapt
    from .session import restore as restore
    from .views import StrongView as StrongView

_NAMES = {
    "bank": ("Adaptation", "AdapterBank"),
    "benchmark": ("run_benchmark",),
    "bundles": ("overlay",),
    "engines": ("AdaptationHandler", "GraTaHandler"),
    "methods": (
        *("METHODS", "PTBN", "GraTa", "GradientRecord", "Method"),
        *("Prepared", "Source", "StepRecord", "Tent", "create"),
    ),
    "session": ("Adapted", "AdaptedStream", "Session", "WindowSelection", "adapt", "restore"),
    "views": ("StrongView",),
}
_ROOMS = (
    *("adapters", "alignment", "bank", "benchmark", "bundles", "catalogue", "checks", "data", "doctor", "engines"),
    *("errors", "files", "handlers", "machine", "methods", "networks", "nnunet", "normalization", "objectives"),
    *("optimization", "predictions", "preparation", "prepared", "report", "resets", "session", "settings"),
    *("streaming", "styles", "views", "workflows", "zoo"),
)

__all__ = [
    "Adaptation",
    "AdaptationHandler",
    "Adapted",
    "AdaptedStream",
    "AdapterBank",
    "GraTa",
    "GraTaHandler",
    "GradientRecord",
    "GrataError",
    "METHODS",
    "Method",
    "PTBN",
    "Prepared",
    "RunError",
    "Session",
    "Source",
    "StepRecord",
    "StrongView",
    "Tent",
    "WindowSelection",
    "__version__",
    "adapt",
    "adapters",
    "alignment",
    "bank",
    "benchmark",
    "bundles",
    "catalogue",
    "checks",
    "create",
    "data",
    "doctor",
    "engines",
    "errors",
    "files",
    "handlers",
    "machine",
    "methods",
    "networks",
    "nnunet",
    "normalization",
    "objectives",
    "optimization",
    "overlay",
    "predictions",
    "preparation",
    "prepared",
    "report",
    "resets",
    "restore",
    "run_benchmark",
    "session",
    "settings",
    "streaming",
    "styles",
    "views",
    "workflows",
    "zoo",
]

# Type checkers would take any name for one that is there.
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _NAMES, _ROOMS)
