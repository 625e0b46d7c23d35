"""Parts of a bundle's ``adapt.yaml``: configuration checks, a fault-tolerant run, and the outputs of each case."""

from .allocator import keep_pages
from .configuration import check_device, effective_settings, start
from .outputs import OutputHandler
from .run import AdaptationRun

__all__ = ["AdaptationRun", "OutputHandler", "check_device", "effective_settings", "keep_pages", "start"]
