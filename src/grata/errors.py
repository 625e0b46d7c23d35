"""Errors that are written for the person who runs the command, not for the developer."""

__all__ = ["GrataError", "OutputError", "RunError"]


class GrataError(Exception):
    """Something the user can put right: the message names the file or the key, what is wrong with it and the remedy.

    Commands print the message alone; the traceback appears only when it was asked for.
    """


class RunError(GrataError):
    """No image's fault: no later case could be done either."""


class OutputError(RunError):
    """The output folder cannot be written: no later case could be kept either."""
