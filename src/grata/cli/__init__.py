"""The command ``grata``, one module a command; nothing here imports torch before a command needs it."""

from .app import main

__all__ = ["main"]
