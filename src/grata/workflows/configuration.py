"""Checks of a bundle's configuration and device, and errors in plain words."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import re
import signal
import sys
import traceback as tracebacks
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from monai.bundle import ConfigExpression, ConfigWorkflow, ReferenceResolver
from monai.bundle.utils import ID_SEP_KEY

from ..checks import check_count, check_flag, check_number, checked, constant, did_you_mean
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
    "check_settings_kind",
    "constant",
    "effective_settings",
    "explain",
    "plain_errors",
    "quiet",
    "running_workflow",
    "start",
]

# Options of the bundles' `adapt`; other commands have other options.
TRACEBACK_HINT = "--traceback true"
STOPPED = "Finished cases are kept; --resume true goes on with the rest."

# Keys that MONAI itself reads; another key must refer to all others.
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
# What follows that line: the calls, then name and message of the exception, up to the next exception of the chain.
_RAISED = re.compile(
    r"(?:[ \t][^\n]*\n)*([^\s:]+)(?:: (.*?))?\s*(?:\n\n(?:Traceback|The above exception|During handling)|\Z)", re.DOTALL
)
# Addresses differ between runs, and line numbers of a library do not help the user.
_NOISE = re.compile(r"\S+\.[ch]xx:\d+:\s+|\(0x[0-9a-fA-F]+\)| at 0x[0-9a-fA-F]+")


def start(
    traceback: bool | str = False,
    flags: Mapping[str, Any] | None = None,
    counts: Mapping[str, Any] | None = None,
    numbers: Mapping[str, Any] | None = None,
    sizes: Mapping[str, Any] | None = None,
    paths: Mapping[str, Any] | None = None,
) -> None:
    """Check the running configuration, as the first line of a bundle's ``initialize``, and set plain messages.

    The values true, false and null of the command line become those of YAML.

    Args:
        traceback: whether to leave Python's tracebacks as they are.
        flags: values that must be true or false, by key.
        counts: values that must be whole numbers of at least 0, by key.
        numbers: values that must be numbers above 0 and of at most 1000, by key.
        sizes: values that must be a list of two sides in pixels, 1 to 8192, by key.
        paths: values that must name a file or a folder, by key; null is left to what reads them.

    Raises:
        GrataError: nothing uses a key of the configuration or of the command line (it may be mistyped), a reference
            leads nowhere, or a value is of the wrong kind.
    """
    plain_errors(traceback, hint=TRACEBACK_HINT, stopped=STOPPED)
    groups: tuple[tuple[Mapping[str, Any] | None, Callable[[Any], Any]], ...] = (
        ({"traceback": traceback, **(flags or {})}, lambda value: check_flag(constant(value))),
        (counts, _check_count),
        (numbers, lambda value: check_number(value, above=0, at_most=1000)),
        (sizes, _check_size),
        (paths, _check_path),
    )
    for values, check in groups:
        for key, value in (values or {}).items():
            checked(check, value, key)
    workflow = running_workflow()
    if workflow is not None:
        _check_running(workflow)


def _check_count(value: Any) -> None:
    if check_count(value, at_least=0) >= 2**32:
        raise GrataError(f"must be a whole number below {2**32}, got {value!r}.")


def _check_size(value: Any) -> None:
    sides = value if isinstance(value, list | tuple) else []
    if len(sides) != 2 or not all(type(side) is int and 1 <= side <= 8192 for side in sides):
        raise GrataError(f"must be a list of two sides in pixels, such as '[512, 512]', got {value!r}.")


def _check_path(value: Any) -> None:
    if value == "":
        # As from a shell variable that is not set; it would be the current folder, or the bundle's own scans.
        raise GrataError("needs a value, got ''.")
    if not isinstance(constant(value), str | Path | None):
        raise GrataError(f"the command line reads {value!r} as {type(value).__name__}. Write ./ before the name.")


def _check_running(workflow: ConfigWorkflow) -> None:
    config = workflow.parser.get()
    check_keys(config, {workflow.init_id, workflow.run_id, workflow.final_id})
    check_method_settings(config)
    # The command line hands these words over as text, and the text "false" counts as true.
    for key, value in list(_leaves(config)):
        if constant(value) is not value:
            workflow.parser.set(constant(value), key)


def plain_errors(traceback: bool | str | None = False, hint: str | None = None, stopped: str = "") -> None:
    """Report what ends the process in plain words from now on.

    Args:
        traceback: whether to leave Python's tracebacks as they are.
        hint: option that shows them, see :func:`explain`.
        stopped: sentence about the finished part of the work, shown on Ctrl-C.
    """
    if constant(traceback) is not True:
        sys.excepthook = functools.partial(_plain_error, hint=hint, stopped=stopped)
    quiet()


def quiet() -> None:
    """Hide MONAI's warnings about an image decoder that is not used here."""
    warnings.filterwarnings("ignore", "NvImgCodecPydicomReader")
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)


def effective_settings(ignored: Iterable[str] = ()) -> dict[str, Any]:
    """Return the running workflow's configuration with all overrides, unresolved, for the record of a run.

    Args:
        ignored: top-level keys to leave out.

    Returns:
        Plain values by key, such as ``{"settings#lr": 0.0001}``; empty if no workflow is running.
    """
    workflow = running_workflow()
    leaves = _leaves(workflow.parser.get()) if workflow is not None else ()
    left_out = {*ignored, "imports", "_meta_"}
    return {_shown(key): value for key, value in leaves if key.split(ID_SEP_KEY)[0] not in left_out}


def check_method_settings(config: Mapping[str, Any]) -> None:
    """Check that the selected method has all settings of a configuration.

    Raises:
        GrataError: the method has no such setting, or ``settings`` is not a mapping.
    """
    method, settings = config.get("method"), config.get("settings")
    if not isinstance(settings, str):
        check_settings_kind(settings)
    if isinstance(method, str) and method in METHODS and isinstance(settings, Mapping):
        check_settings(method, settings)


def check_settings_kind(settings: object) -> None:
    """Check that the settings of a method are a mapping, or None.

    Raises:
        GrataError: they are anything else.
    """
    if not isinstance(settings, Mapping | None):
        raise GrataError(
            f"must hold the settings of the method, got {settings!r}. Override a setting as --settings#<setting>.",
            key="settings",
        )


def check_keys(config: dict[str, Any], run_ids: set[str]) -> None:
    """Check that every reference leads to a key, and that something uses every top-level key.

    Args:
        config: whole configuration, unresolved.
        run_ids: keys that the workflow runs; other lists of expressions count as such too.

    Raises:
        GrataError: a reference leads nowhere, or nothing refers to a top-level key, which MONAI would silently ignore.
    """
    for key, text in _leaves(config):
        for reference in ReferenceResolver.match_refs_pattern(text) if isinstance(text, str) else ():
            name = reference.split(ID_SEP_KEY)[0]
            if name not in config:
                hint = did_you_mean(name, config, "Define that key, or correct the reference.", "@")
                raise GrataError(f"it refers to @{name}, and there is no such key. {hint}", key=_shown(key))
    used = {match for _, text in _leaves(config) if isinstance(text, str) for match in _REFERENCE.findall(text)}
    workflows = {key for key, value in config.items() if isinstance(value, list) and all(map(_is_expression, value))}
    known = used | _READ_BY_MONAI | run_ids | workflows
    for key in config:
        if key.lstrip("+") not in known:
            hint = did_you_mean(key, sorted(set(config) & known), "Nothing in the configuration refers to it.")
            raise GrataError(f"there is no such key. {hint}", key=f"--{key}")


def check_device(device: str | torch.device) -> torch.device:
    """Return ``device`` as a ``torch.device``.

    Raises:
        GrataError: it is not a device, or this machine does not have it.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise GrataError(f"{device!r} is not a device. Give cpu, cuda or cuda:0.", key="device") from error
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
    """Return one sentence for the user: the :class:`GrataError` behind ``error``, or else its root cause.

    Args:
        error: exception that was raised.
        hint: option of the running command that shows the traceback, such as ``--traceback true``; None: there is none.
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
        remedy = did_you_mean(argument[1], known, f"Its arguments are {', '.join(known)}.", f"{key}#")
        name = getattr(component, "__name__", component)
        return f"{key}#{argument[1]}: unexpected keyword argument '{argument[1]}' of {name}. {remedy}"
    where = f"{key}: " if key else ""
    shown = f" ({hint} shows where)" if hint else ""
    return f"{where}{_sentence(type(root).__name__, str(root))}{shown}"


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


def _config_item(error: BaseException) -> tuple[str, Any]:
    """Return key and class of what MONAI was building when it failed: its messages name no key."""
    key, component = "", None
    for frame, _ in tracebacks.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "_resolve_one_item":
            key = _shown(str(frame.f_locals.get("id", "")))
        elif frame.f_code.co_name == "instantiate":
            component = frame.f_locals.get("component", component)
    return key, component


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield ``error`` and what led to it, the first cause last."""
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
            # A shell sees by the signal that the user stopped the process; Python forgets it inside an evaluated
            # expression.
            sys.stdout.flush()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    elif isinstance(error, Exception):
        print(f"error: {explain(error, hint)}", file=sys.stderr)
    else:
        tracebacks.print_exception(kind, error, trace)


def running_workflow() -> ConfigWorkflow | None:
    """Return the workflow that evaluates the calling expression, found on the stack: MONAI passes no reference."""
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigWorkflow):
            return owner
        frame = frame.f_back
    return None


def _leaves(config: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the id and value of everything that is neither dict nor list."""
    if not isinstance(config, dict | list | tuple):
        yield key, config
        return
    items = config.items() if isinstance(config, dict) else enumerate(config)
    for name, value in items:
        yield from _leaves(value, f"{key}{ID_SEP_KEY}{name}" if key else str(name))


def _is_expression(value: Any) -> bool:
    return isinstance(value, str) and ConfigExpression.is_expression(value)


def _shown(key: str) -> str:
    """Return an id as users write it on the command line."""
    return key.replace(ID_SEP_KEY, "#")
