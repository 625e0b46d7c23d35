"""What a person reads in a terminal: any console can show it, and names from files cannot steer it."""

from __future__ import annotations

import contextlib
import io
import os
import re
import select
import signal
import sys
from typing import TextIO

__all__ = ["CLOSED_PIPE", "fit_console", "is_abandoned", "leave_quietly", "printable", "say", "say_beside_bar"]

CLOSED_PIPE = 141
"""Exit status of a command whose reader is gone, as shells count it: 128 + SIGPIPE."""

# Control characters, and those that turn the direction of the text around them; a scan or a DICOM header may hold any.
_STEERING = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def printable(text: str) -> str:
    """Return a text that can be encoded and shown on one line.

    Bytes of file names that are not UTF-8, control characters and marks of direction are replaced.
    """
    return _STEERING.sub(_REPLACEMENT, text.encode(errors="surrogateescape").decode(errors="replace"))


def fit_console() -> None:
    """Let the consoles show what their encoding lacks as an escape, such as ``\\u60a3``, instead of raising.

    A standard output or error that is closed (``>&-``) is replaced by one that goes nowhere: libraries expect a stream,
    and the next file that is opened would take its number.
    """
    closed = sys.stdout is None
    sys.stdout, sys.stderr = sys.stdout or _nowhere(), sys.stderr or _nowhere()
    if closed:
        say("note: standard output is closed, so what is printed is lost. To keep it, add > FILE.", sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _nowhere() -> TextIO:
    return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")


def say(text: object = "", file: TextIO | None = None) -> None:
    """Print lines at once; characters in them that would steer the terminal are replaced.

    Args:
        text: one line, or several.
        file: where to print; None: standard output.
    """
    print(_shown(text), file=file, flush=True)


def say_beside_bar(text: object) -> None:
    """Print like :func:`say`, above a progress bar."""
    from tqdm import tqdm

    tqdm.write(_shown(text))


def _shown(text: object) -> str:
    return "\n".join(map(printable, str(text).split("\n")))


def is_abandoned() -> bool:
    """Return whether nobody reads any more what is printed; what is left to print then goes nowhere."""
    abandoned = [stream for stream in (sys.stdout, sys.stderr) if _is_closed(stream)]
    for stream in abandoned:
        # The interpreter flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return bool(abandoned)


def _is_closed(stream: TextIO) -> bool:
    # There is no poll on Windows, and no file behind a notebook's stream.
    with contextlib.suppress(AttributeError, OSError, ValueError):
        pipe = select.poll()
        pipe.register(stream, select.POLLOUT)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in pipe.poll(0))
    return False


def leave_quietly() -> None:
    """End the process as one whose reader is gone."""
    if os.name == "posix":
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)
    os._exit(CLOSED_PIPE)
