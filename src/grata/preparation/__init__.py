"""What methods need of the source set, taken from it once: ``python -m grata prepare``."""

from .run import prepare

__all__ = ["prepare"]
