"""What plugs methods into MONAI's engines."""

from .adaptation import AdaptationHandler, GraTaHandler
from .journal import Journal
from .windows import WindowSelection

__all__ = ["AdaptationHandler", "GraTaHandler", "Journal", "WindowSelection"]
