"""What connects methods with MONAI's engines and its bundle command line."""

from .adaptation import AdaptationHandler, GraTaHandler
from .journal import Journal
from .outputs import OutputHandler
from .run import AdaptationRun
from .windows import WindowSelection
from .workflow import check_device, start

__all__ = [
    "AdaptationHandler",
    "AdaptationRun",
    "GraTaHandler",
    "Journal",
    "OutputHandler",
    "WindowSelection",
    "check_device",
    "start",
]
