"""What a bundle's `adapt.yaml` runs: a checked configuration, a run that survives faults, and what each case leaves."""

from .allocator import keep_pages
from .configuration import check_device, effective_settings, start
from .outputs import OutputHandler
from .run import AdaptationRun

__all__ = ["AdaptationRun", "OutputHandler", "check_device", "effective_settings", "keep_pages", "start"]
