"""Test-time adaptation for medical image segmentation, as MONAI Bundles.

``import grata`` is light: a name below is imported when it is first used.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING

from ._lazy import lazy
from .errors import GrataError, RunError

if TYPE_CHECKING:
    from . import adapters as adapters
    from . import alignment as alignment
    from . import benchmark as benchmark
    from . import catalogue as catalogue
    from . import checks as checks
    from . import data as data
    from . import errors as errors
    from . import files as files
    from . import handlers as handlers
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
    from . import settings as settings
    from . import streaming as streaming
    from . import styles as styles
    from . import views as views
    from . import workflows as workflows
    from . import zoo as zoo
    from .adapters import Adaptation as Adaptation
    from .adapters import AdapterBank as AdapterBank
    from .benchmark import run_benchmark as run_benchmark
    from .handlers import AdaptationHandler as AdaptationHandler
    from .handlers import GraTaHandler as GraTaHandler
    from .handlers import WindowSelection as WindowSelection
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
    from .streaming import Adapted as Adapted
    from .streaming import AdaptedStream as AdaptedStream
    from .streaming import adapt as adapt
    from .views import StrongView as StrongView
    from .zoo import overlay as overlay

__version__ = version("grata")

_NAMES = {
    "adapters": ("Adaptation", "AdapterBank"),
    "benchmark": ("run_benchmark",),
    "handlers": ("AdaptationHandler", "GraTaHandler", "WindowSelection"),
    "methods": (
        *("METHODS", "PTBN", "GraTa", "GradientRecord", "Method"),
        *("Prepared", "Source", "StepRecord", "Tent", "create"),
    ),
    "streaming": ("Adapted", "AdaptedStream", "adapt"),
    "views": ("StrongView",),
    "zoo": ("overlay",),
}
_ROOMS = (
    *("adapters", "alignment", "benchmark", "catalogue", "checks", "data", "errors", "files", "handlers", "methods"),
    *("networks", "nnunet", "normalization", "objectives", "optimization", "predictions", "preparation", "prepared"),
    *("report", "resets", "settings", "streaming", "styles", "views", "workflows", "zoo"),
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
    "Source",
    "StepRecord",
    "StrongView",
    "Tent",
    "WindowSelection",
    "__version__",
    "adapt",
    "adapters",
    "alignment",
    "benchmark",
    "catalogue",
    "checks",
    "create",
    "data",
    "errors",
    "files",
    "handlers",
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
    "run_benchmark",
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
