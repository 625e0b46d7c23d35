"""What a bundle's workflow needs around the run: checked configuration, a device, errors in plain words."""

from __future__ import annotations

import difflib
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
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from monai.bundle import ConfigExpression, ConfigWorkflow, ReferenceResolver
from monai.bundle.utils import ID_SEP_KEY

from ..data.identifiers import printable
from ..errors import GrataError
from ..methods import METHODS, check_settings

__all__ = [
    "STOPPED",
    "TRACEBACK_HINT",
    "causes",
    "check_device",
    "check_keys",
    "check_method_settings",
    "constant",
    "effective_settings",
    "explain",
    "plain_errors",
    "quiet",
    "running_workflow",
    "start",
]

# Options of the bundles' command `adapt`; other commands have others, or none.
TRACEBACK_HINT = "--traceback true"
STOPPED = "What is finished is kept; --resume true goes on with the rest."

# Keys that MONAI itself reads; all others must be used by some other key.
_READ_BY_MONAI = {
    "_meta_",
    "imports",
    "bundle_root",
    "device",
    "dataset_dir",
    "dataset",
    "evaluator",
    "network_def",
    "inferer",
    "preprocessing",
    "postprocessing",
    "key_metric",
}
_REFERENCE = re.compile(r"[@%]([A-Za-z_]\w*)")
_TRACEBACK = "Traceback (most recent call last):\n"
# What follows that line: calls, then the name and message of the exception, up to the next one of the chain.
_RAISED = re.compile(
    r"(?:[ \t][^\n]*\n)*([^\s:]+)(?:: (.*?))?\s*(?:\n\n(?:Traceback|The above exception|During handling)|\Z)", re.DOTALL
)
# Addresses differ between runs, and lines of a library's source tell a user nothing.
_NOISE = re.compile(r"\S+\.[ch]xx:\d+:\s+|\(0x[0-9a-fA-F]+\)| at 0x[0-9a-fA-F]+")


def start(
    traceback: bool | str = False,
    flags: Mapping[str, Any] | None = None,
    counts: Mapping[str, Any] | None = None,
    numbers: Mapping[str, Any] | None = None,
    sizes: Mapping[str, Any] | None = None,
    paths: Mapping[str, Any] | None = None,
) -> None:
    """First line of a bundle's ``initialize``: plain messages, no unknown key, and true, false and null as in YAML.

    Args:
        traceback: leave Python's tracebacks as they are.
        flags: keys that are true or false, with their values.
        counts: keys that are whole numbers of at least 0, with their values.
        numbers: keys that are numbers above 0 and of at most 1000, with their values.
        sizes: keys that are a list of two sides in pixels, 1 to 8192, with their values.
        paths: keys that name a file or a folder, with their values; null is left to those who read them.

    Raises:
        GrataError: a key of the configuration or of the command line is used by nothing, as a mistyped one; a reference
            leads nowhere; a value is of the wrong kind.
    """
    plain_errors(traceback, hint=TRACEBACK_HINT, stopped=STOPPED)
    for key, value in {"traceback": traceback, **(flags or {})}.items():
        if not isinstance(constant(value), bool):
            raise GrataError(f"must be true or false, got {value!r}.", key=key)
    for key, value in (counts or {}).items():
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
            raise GrataError(f"must be a whole number of at least 0, got {value!r}.", key=key)
    for key, value in (numbers or {}).items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1000:
            raise GrataError(f"must be a number above 0 and of at most 1000, got {value!r}.", key=key)
    for key, value in (sizes or {}).items():
        sides = value if isinstance(value, list | tuple) else []
        if len(sides) != 2 or not all(type(side) is int and 1 <= side <= 8192 for side in sides):
            raise GrataError(f"must be a list of two sides in pixels, such as '[512, 512]', got {value!r}.", key=key)
    for key, value in (paths or {}).items():
        if not isinstance(constant(value), str | Path | None):
            raise GrataError(
                f"the command line reads {value!r} as a {type(value).__name__}. Write ./ before the name.", key=key
            )
    workflow = running_workflow()
    if workflow is not None:
        config = workflow.parser.get()
        check_keys(config, {workflow.init_id, workflow.run_id, workflow.final_id})
        check_method_settings(config)
        # the command line hands these words over as text, and the text "false" counts as true
        for key, value in list(_leaves(config)):
            if constant(value) is not value:
                workflow.parser.set(constant(value), key)


def plain_errors(traceback: bool | str | None = False, hint: str | None = None, stopped: str = "") -> None:
    """Tell what ends the process in plain words from now on.

    Args:
        traceback: leave Python's tracebacks as they are.
        hint: option that shows them, see :func:`explain`.
        stopped: what to say on Ctrl-C of what was done so far.
    """
    if constant(traceback) is not True:
        sys.excepthook = functools.partial(_plain_error, hint=hint, stopped=stopped)
    quiet()


def quiet() -> None:
    """Leave out what MONAI's image loading says of a decoder that no scan is read with here."""
    warnings.filterwarnings("ignore", "NvImgCodecPydicomReader")
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)


def effective_settings(ignored: Iterable[str] = ()) -> dict[str, Any]:
    """The running workflow's configuration with all overrides, unresolved, for the record of a run.

    Args:
        ignored: top-level keys to leave out.

    Returns:
        Plain values by id, such as ``{"settings#lr": 0.0001}``; empty when no workflow is running.
    """
    workflow = running_workflow()
    leaves = _leaves(workflow.parser.get()) if workflow is not None else ()
    left_out = {*ignored, "imports", "_meta_"}
    return {_shown(key): value for key, value in leaves if key.split(ID_SEP_KEY)[0] not in left_out}


def check_method_settings(config: Mapping[str, Any]) -> None:
    """Raise :class:`GrataError` for a setting that the selected method does not have."""
    method, settings = config.get("method"), config.get("settings")
    if settings is not None and not isinstance(settings, Mapping | str):
        raise GrataError(
            f"must hold the settings of the method, got {settings!r}. Override one as --settings#<setting>.",
            key="settings",
        )
    if isinstance(method, str) and method in METHODS and isinstance(settings, Mapping):
        check_settings(method, settings)


def check_keys(config: dict[str, Any], run_ids: set[str]) -> None:
    """Check that every reference leads to a key, and every top-level key is used by something.

    Args:
        config: a whole configuration, unresolved.
        run_ids: the keys that the workflow runs; further lists of expressions count as such too.

    Raises:
        GrataError: a reference to a key that is not there, or a top-level key that nothing refers to, which MONAI
            would ignore in silence.
    """
    for key, text in _leaves(config):
        for reference in ReferenceResolver.match_refs_pattern(text) if isinstance(text, str) else ():
            name = reference.split(ID_SEP_KEY)[0]
            if name not in config:
                near = difflib.get_close_matches(name, list(config), n=1)
                hint = f"Did you mean @{near[0]}?" if near else "Define that key, or correct the reference."
                raise GrataError(f"it refers to @{name}, and there is no such key. {hint}", key=_shown(key))
    used = {match for _, text in _leaves(config) if isinstance(text, str) for match in _REFERENCE.findall(text)}
    workflows = {key for key, value in config.items() if isinstance(value, list) and all(map(_is_expression, value))}
    known = used | _READ_BY_MONAI | run_ids | workflows
    for key in config:
        if key.lstrip("+") not in known:
            near = difflib.get_close_matches(key, sorted(set(config) & known), n=1)
            hint = f"Did you mean {near[0]}?" if near else "Nothing in the configuration refers to it."
            raise GrataError(f"there is no such key. {hint}", key=f"--{key}")


def check_device(device: str | torch.device) -> torch.device:
    """``device`` as torch has it.

    Raises:
        GrataError: it is no device, or this machine does not have it.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise GrataError(f"{device!r} is not a device; give cpu, cuda or cuda:0.", key="device") from error
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found.type not in ("cpu", "cuda"):
        try:
            torch.zeros(1, device=found).item()
        except (RuntimeError, NotImplementedError, AssertionError) as error:
            raise GrataError(
                f"{found} was asked for, but torch {torch.__version__} cannot compute on it here. Use --device cpu.",
                key="device",
            ) from error
    if found.type == "cuda" and (found.index or 0) >= count:
        raise GrataError(
            f"{found} was asked for, but torch {torch.__version__} sees {count} CUDA devices here. "
            "Use --device cpu, or install a CUDA build of torch and its driver.",
            key="device",
        )
    return found


def explain(error: BaseException, hint: str | None = None) -> str:
    """One sentence for a person: the message of the :class:`GrataError` behind ``error``, or the root cause's own.

    Args:
        error: what was raised.
        hint: option of the running command that shows the traceback, such as ``--traceback true``; None where it has
            none.
    """
    return printable(_explained(error, hint))


def _explained(error: BaseException, hint: str | None) -> str:
    chain = list(causes(error))
    for link in chain:
        if isinstance(link, GrataError) and _TRACEBACK not in str(link):
            return str(link)
    root = chain[-1]
    if _TRACEBACK in str(root) and (own := re.findall(r"^grata\.errors\.\w+: (.*)$", str(root), flags=re.MULTILINE)):
        return own[-1]
    key, component = _config_item(error)
    argument = re.search(r"unexpected keyword argument '(\w+)'", str(root))
    if argument and callable(component) and argument[1] not in inspect.signature(component).parameters:
        known = list(inspect.signature(component).parameters)
        near = difflib.get_close_matches(argument[1], known, n=1)
        remedy = f"Did you mean {key}#{near[0]}?" if near else f"Its arguments are {', '.join(known)}."
        name = getattr(component, "__name__", component)
        return f"{key}#{argument[1]}: unexpected keyword argument '{argument[1]}' of {name}. {remedy}"
    where = f"{key}: " if key else ""
    shown = f" ({hint} shows where)" if hint else ""
    return f"{where}{_sentence(type(root).__name__, str(root))}{shown}"


def _sentence(name: str, text: str) -> str:
    """An exception's name and message, with the first cause in place of tracebacks that the message quotes.

    A worker process of the data loader hands its exception over as the text of its traceback, and MONAI's ``LoadImage``
    quotes that of each reader which it tried, the one that was asked for first.
    """
    own, _, quoted = text.partition(_TRACEBACK)
    found = _RAISED.match(quoted)
    cause = _sentence(found[1].rsplit(".", 1)[-1], found[2] or "") if found else ""
    if "in DataLoader worker process" in own:
        return cause or name
    own = own.split("\n")[0] if cause else own.split("The current registered:")[0]
    return " ".join(_NOISE.sub("", f"{name}: {own} {cause}").split())


def _config_item(error: BaseException) -> tuple[str, Any]:
    """Key and class of what MONAI was building from the configuration when it failed: its messages tell no key."""
    key, component = "", None
    for frame, _ in tracebacks.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "_resolve_one_item":
            key = _shown(str(frame.f_locals.get("id", "")))
        elif frame.f_code.co_name == "instantiate":
            component = frame.f_locals.get("component", component)
    return key, component


def causes(error: BaseException) -> Iterator[BaseException]:
    """``error`` and what led to it, the first cause last."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _plain_error(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None, hint: str | None, stopped: str
) -> None:
    if isinstance(error, KeyboardInterrupt):
        print(f"\nstopped. {stopped}".rstrip(), file=sys.stderr, flush=True)
        if os.name == "posix":
            # A shell tells by the signal that it was the user who stopped it; Python forgets it where the interrupt
            # came in the middle of an evaluated expression.
            sys.stdout.flush()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    elif isinstance(error, Exception):
        print(f"error: {explain(error, hint)}", file=sys.stderr)
    else:
        tracebacks.print_exception(kind, error, trace)


def running_workflow() -> ConfigWorkflow | None:
    """The workflow that evaluates the expression we are called from: MONAI hands no reference to it."""
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigWorkflow):
            return owner
        frame = frame.f_back
    return None


def _leaves(config: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """All values that are neither dict nor list, with their ids."""
    if not isinstance(config, dict | list | tuple):
        yield key, config
        return
    items = config.items() if isinstance(config, dict) else enumerate(config)
    for name, value in items:
        yield from _leaves(value, f"{key}{ID_SEP_KEY}{name}" if key else str(name))


def _is_expression(value: Any) -> bool:
    return isinstance(value, str) and ConfigExpression.is_expression(value)


def _shown(key: str) -> str:
    """An id as users write it on the command line."""
    return key.replace(ID_SEP_KEY, "#")


def constant(value: Any) -> Any:
    """``true``, ``false`` and ``null`` as the command line hands them over, as what they mean; others as they are.

    Args:
        value: of one key, or a mapping or a list of such values, at any depth.

    Returns:
        The value; of a mapping a new dict, of a list or tuple a new list.
    """
    if isinstance(value, Mapping):
        return {key: constant(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [constant(item) for item in value]
    return {"true": True, "false": False, "null": None}.get(value.lower(), value) if isinstance(value, str) else value
