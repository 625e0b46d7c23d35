"""Errors that are written for the person who runs the command, not for the developer."""

from __future__ import annotations

from typing import Self

__all__ = ["GrataError", "OutputError", "RunError"]


class GrataError(Exception):
    """Something the user can put right.

    ``str(error)`` is ``key: message``, or the message alone where no key is at fault. Commands print that line; the
    traceback appears only when it was asked for.

    Args:
        message: what is wrong and what to do about it; it names the file where a file is at fault.
        key: setting, option or argument that is at fault, nested ones joined by ``#``, such as ``settings#lr``.

    Attributes:
        message: the message without the key.
        key: the key; None where none is at fault.

    Example:
        >>> error = GrataError("must be a finite number of at least 0, got -1.", key="lr")
        >>> print(error.under("settings"))
        settings#lr: must be a finite number of at least 0, got -1.
    """

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message, key)
        self.message = message
        self.key = key

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message

    @property
    def head(self) -> str:
        """The first part of the key, before any ``#``; empty where no key is at fault."""
        return (self.key or "").partition("#")[0]

    def under(self, parent: str) -> Self:
        """Return the same error with its key below ``parent``, as when the setting stands inside another key.

        Args:
            parent: key above; an error without a key gets it alone.
        """
        # An option keeps its dashes, and has them in front.
        key = self.key or ""
        dashes = "--" if key.startswith("--") else ""
        return type(self)(self.message, f"{dashes}{parent}#{key.removeprefix('--')}" if key else parent)


class RunError(GrataError):
    """A fault of the run, not of one image: no later case could be done either."""


class OutputError(RunError):
    """The output folder cannot be written: no later case could be kept either."""
