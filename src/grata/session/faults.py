"""Faults in plain words: what the user can put right, whatever raised it."""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import logging
import os
import re
import signal
import sys
import traceback as tracebacks
import warnings
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..checks import constant, did_you_mean
from ..console import fit_console, is_abandoned, leave_quietly, printable, say
from ..errors import GrataError
from ..files import undownloaded
from ..private import failed_item, loaded_file

if TYPE_CHECKING:
    import torch

__all__ = [
    "STOPPED",
    "TRACEBACK_HINT",
    "causes",
    "check_finite",
    "explain",
    "explained",
    "plain_errors",
    "quiet",
    "tensors_in",
    "unfit",
]

# Options of the bundles' `adapt`; other commands have other options.
TRACEBACK_HINT = "--traceback true"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
STOPPED = "Finished cases are kept; --resume true goes on with the rest."

_TRACEBACK = "Traceback (most recent call last):\n"
# What follows that line: the calls, then name and message of the exception, up to the next exception of the chain.
_RAISED = re.compile(
    r"(?:[ \t][^\n]*\n)*([^\s:]+)(?:: (.*?))?\s*(?:\n\n(?:Traceback|The above exception|During handling)|\Z)", re.DOTALL
)
# What torch says where a normalization layer has nothing to take statistics of.
_TOO_SMALL = re.compile(r"Expected more than 1 (?:spatial element|value per channel)")
_OTHER_CHANNELS = re.compile(r"to have (\d+) channels, but got (\d+) channels")
# Addresses differ between runs, and line numbers of a library do not help the user.
_NOISE = re.compile(r"\S+\.[ch]xx:\d+:\s+|\(0x[0-9a-fA-F]+\)| at 0x[0-9a-fA-F]+")


def plain_errors(traceback: bool | str | None = False, hint: str | None = None, stopped: str = "") -> None:
    """Report what ends the process in plain words from now on.

    Args:
        traceback: whether to leave Python's tracebacks as they are.
        hint: option that shows them, see :func:`explain`.
        stopped: sentence about the finished part of the work, shown on Ctrl-C.
    """
    fit_console()
    if constant(traceback) is not True:
        sys.excepthook = functools.partial(_plain_error, hint=hint, stopped=stopped)
    quiet()


def quiet() -> None:
    """Hide MONAI's warnings about an image decoder that is not used here, and show once where an old form is used."""
    warnings.filterwarnings("ignore", "NvImgCodecPydicomReader")
    # Python hides them outside of __main__, and a bundle's configuration is never there.
    warnings.filterwarnings("once", r".* goes with the next release\.", DeprecationWarning)
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)


def explain(error: BaseException, hint: str | None = None) -> str:
    """Return one sentence for the user: the :class:`GrataError` behind ``error``, or else its root cause.

    Args:
        error: exception that was raised.
        hint: option of the running command that shows the traceback, such as ``--traceback true``; None: there is none.
    """
    return printable(_explained(error, hint))


def _explained(error: BaseException, hint: str | None) -> str:
    if own_words := _own_words(error):
        return own_words
    root = list(causes(error))[-1]
    if _TRACEBACK in str(root) and (own := re.findall(r"^grata\.errors\.\w+: (.*)$", str(root), flags=re.MULTILINE)):
        return own[-1]
    if reason := _known(root):
        return reason
    key, component = failed_item(error)
    if wrong := _wrong_argument(root, key, component):
        return wrong
    where = f"{key}: " if key else ""
    shown = f" ({hint} shows where)" if hint else ""
    return f"{where}{_sentence(type(root).__name__, str(root))}{shown}"


def _own_words(error: BaseException) -> str:
    """Return the message that this project has for an exception; empty where it has none."""
    own = (link for link in causes(error) if isinstance(link, GrataError) and _TRACEBACK not in str(link))
    found = next(own, None) or unfit(error)
    return "" if found is None else str(found)


def _known(root: BaseException) -> str:
    """Return what is wrong where a library's message does not say what to do; empty for other causes."""
    if os.strerror(errno.ENAMETOOLONG) in str(root):
        return "A name would be too long for the disk. Give the scan a shorter file name."
    # of a file that is known by its name, its writer says more
    if isinstance(root, OSError) and root.errno in _FULL and root.filename is None:
        return (
            f"What is printed or a file could not be written ({root.strerror}). Free space where it goes, or send the "
            "output elsewhere."
        )
    weights = loaded_file(root)
    return "" if weights is None else undownloaded(weights)


def _wrong_argument(root: BaseException, key: str, component: Any) -> str:
    """Return which argument of a component is not known; empty where something else is wrong."""
    argument = re.search(r"unexpected keyword argument '(\w+)'", str(root))
    if argument is None or not callable(component) or argument[1] in inspect.signature(component).parameters:
        return ""
    known = list(inspect.signature(component).parameters)
    remedy = did_you_mean(argument[1], known, f"Its arguments are {', '.join(known)}.", f"{key}#")
    name = getattr(component, "__name__", component)
    return f"{key}#{argument[1]}: unexpected keyword argument '{argument[1]}' of {name}. {remedy}"


def _sentence(name: str, text: str) -> str:
    """Return an exception's name and message, with the first cause in place of the tracebacks that it quotes.

    A worker process of the data loader hands over its exception as the text of a traceback, and MONAI's ``LoadImage``
    quotes the traceback of each reader that it tried, that of the requested reader first.
    """
    own, _, quoted = text.partition(_TRACEBACK)
    found = _RAISED.match(quoted)
    cause = _sentence(found[1].rsplit(".", 1)[-1], found[2] or "") if found else ""
    if "in DataLoader worker process" in own:
        return cause or name
    own = own.split("\n")[0] if cause else own.split("The current registered:")[0]
    return " ".join(_NOISE.sub("", f"{name}: {own} {cause}").split())


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield ``error`` and what led to it, the first cause last."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def unfit(error: BaseException) -> GrataError | None:
    """Return what to do about images of a size or with channels that the network cannot take; None: another error."""
    if isinstance(error, GrataError):
        return None
    messages = [str(link) for link in causes(error)]
    if any(map(_TOO_SMALL.search, messages)):
        return GrataError(
            "The image is too small for this network: a normalization layer at its bottom sees a single voxel, which "
            "it cannot normalize. Use larger images or windows (roi_size), or pad the images."
        )
    if found := next(filter(None, map(_OTHER_CHANNELS.search, messages)), None):
        taken = f"{found[1]} channel{'s' * (found[1] != '1')}"
        return GrataError(
            f"A layer of the network takes {taken}, and got {found[2]}. Give images (B, C, ...) with the channels that "
            "the network was trained on."
        )
    return None


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Raise in plain words what torch says of images that the network cannot take, during a ``with`` block."""
    try:
        yield
    except Exception as error:
        if words := unfit(error):
            raise words from error
        raise


def _plain_error(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None, hint: str | None, stopped: str
) -> None:
    if isinstance(error, KeyboardInterrupt):
        say(f"\nstopped. {stopped}".rstrip(), sys.stderr)
        if os.name == "posix":
            # A shell sees by the signal that the user stopped the process; Python forgets it inside an evaluated
            # expression.
            sys.stdout.flush()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    elif any(isinstance(cause, BrokenPipeError) for cause in causes(error)) and is_abandoned():
        leave_quietly()
    elif isinstance(error, Exception):
        say(f"error: {explain(error, hint)}", sys.stderr)
    else:
        tracebacks.print_exception(kind, error, trace)


def check_finite(prediction: Iterable[torch.Tensor]) -> None:
    """Check that a prediction is finite: postprocessing turns NaN into an empty segmentation, which looks valid.

    Args:
        prediction: tensors of the prediction, of any shape.

    Raises:
        GrataError: a tensor holds values that are not finite.
    """
    if not all(tensor.isfinite().all() for tensor in prediction):
        raise GrataError(
            "The prediction holds NaN or infinite values. Export the scan again with values in their usual range, or "
            "check the weights."
        )


def tensors_in(prediction: Any) -> list[torch.Tensor]:
    """Return the tensors and arrays of a prediction: itself, or those in a mapping, list or tuple, at any depth."""
    if isinstance(prediction, Mapping):
        prediction = list(prediction.values())
    if isinstance(prediction, list | tuple):
        return [tensor for item in prediction for tensor in tensors_in(item)]
    if hasattr(prediction, "isfinite"):
        return [prediction]
    if not hasattr(prediction, "__array__"):
        return []
    import torch

    return [torch.as_tensor(prediction)]
