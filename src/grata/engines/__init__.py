"""What plugs a session into the engines of MONAI and ignite: a handler, a run that faults do not stop, inferers."""

from .adaptation import AdaptationHandler, GraTaHandler
from .durable import AdaptationRun
from .joint import JointInferer
from .outputs import OutputHandler
from .precision import AutocastInferer
from .run import EvaluatorRun

__all__ = [
    "AdaptationHandler",
    "AdaptationRun",
    "AutocastInferer",
    "EvaluatorRun",
    "GraTaHandler",
    "JointInferer",
    "OutputHandler",
]
