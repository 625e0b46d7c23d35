"""Before a bundle is run with the overlay: plain messages, and what a mistyped key or a collision would hide."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, run
from monai.bundle.utils import ID_SEP_KEY
from monai.utils import ensure_tuple

from ..errors import GrataError
from ..workflows.configuration import check_method_settings, plain_errors, running_workflow
from .run import TRACEBACK

__all__ = ["begin", "bundle_postprocessing", "check_collisions", "check_overrides", "evaluators", "overlay"]


_OF_MONAI = ("bundle_root", "workflow_type", "workflow_name", "properties_path")
"""Keys of the command line that MONAI reads itself."""


def overlay() -> Path:
    """Where the overlay lies that adapts any bundle in Model Zoo layout, see its first lines."""
    return Path(__file__).with_name("adapt.yaml")


def begin() -> None:
    """First expression of the overlay's ``adapt``.

    Raises:
        GrataError: the bundle has a key of the overlay's name, which would be lost; a key of the command line that
            nothing knows, as a mistyped one; no evaluator.
    """
    workflow = running_workflow()
    if workflow is None:
        return
    config = workflow.parser.get()
    plain_errors(
        config["adaptation"].get("traceback"),
        TRACEBACK,
        "What the bundle wrote is kept, and so is what was learnt: a bank goes on by itself, without one give "
        "--adaptation#start_from.",
    )
    check_method_settings(config)
    files, overrides = _command()
    check_collisions(files)
    check_overrides(files, overrides)
    reference = config["adaptation"].get("evaluator")
    if isinstance(reference, str) and reference.startswith("@") and _id(reference) not in workflow.parser:
        engines = ", ".join(sorted(evaluators(config))) or "none"
        raise GrataError(
            f"the configuration has no {reference[1:]}; its evaluators: {engines}. Run the "
            "overlay after the bundle's configs/inference.json, or name the engine, for example --adaptation#evaluator "
            "@validate#evaluator.",
            key="adaptation#evaluator",
        )


def bundle_postprocessing() -> Any:
    """What the running workflow's evaluator puts predictions through, or else the configuration's ``postprocessing``,
    which a handler may apply; None where there is neither.
    """
    workflow = running_workflow()
    if workflow is None:
        return None
    evaluator = _id(str(workflow.parser.get()["adaptation"].get("evaluator")))
    for key in (f"{evaluator}{ID_SEP_KEY}postprocessing", "postprocessing"):
        if key in workflow.parser:
            return workflow.parser.get_parsed_content(key)
    return None


def check_collisions(files: list[Path]) -> None:
    """Raise :class:`GrataError` where one of the configuration files before the overlay has a key of its name."""
    ours = ConfigParser.load_config_file(overlay())
    for path in files:
        keys = ConfigParser.load_config_file(path)
        adaptation = keys.get("adaptation")
        if isinstance(adaptation, Mapping) and adaptation.get("_target_") == ours["adaptation"]["_target_"]:
            return
        taken = sorted(ours.keys() & {key.lstrip("+") for key in keys})
        if taken:
            own = " It has a workflow of its own for this: run that one." if "adapt" in taken else ""
            raise GrataError(
                f"{path}: it has a key {taken[0]}, which the overlay would replace.{own} Rename that key, or leave the "
                "file out."
            )


def check_overrides(files: list[Path], overrides: Mapping[str, Any]) -> None:
    """Raise :class:`GrataError` for a key that nothing reads, which MONAI takes without a word.

    Args:
        files: all configuration files, the overlay among them; none: nothing can be said.
        overrides: of the command line, by key.
    """
    config: dict[str, Any] = {}
    for path in files:
        config |= {key.lstrip("+"): value for key, value in ConfigParser.load_config_file(path).items()}
    known = {*config, *_OF_MONAI} if config else set()
    arguments = config.get("adaptation") or {}
    for key in overrides if config else ():
        head, _, rest = key.lstrip("+").partition("#")
        if head not in known:
            near = [f"adaptation#{head}"] if head in arguments else difflib.get_close_matches(head, known, n=1)
            hint = f"Did you mean --{near[0]}?" if near else "Nothing in the configuration has that name."
            raise GrataError(f"there is no such key. {hint}", key=f"--{key}")
        name = rest.split("#")[0]
        if head == "adaptation" and name not in arguments:
            near = difflib.get_close_matches(name, arguments, n=1)
            hint = f"Did you mean --adaptation#{near[0]}?" if near else f"There are {', '.join(arguments)}."
            raise GrataError(f"there is no such key. {hint}", key=f"--{key}")


def _command() -> tuple[list[Path], Mapping[str, Any]]:
    """Configuration files and overrides of the running ``monai.bundle run``; none where it was called in another way."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is run.__code__:
            files = frame.f_locals["config_file"]
            return list(map(Path, ensure_tuple(files) if files else ())), frame.f_locals["override"]
        frame = frame.f_back
    return [], {}


def evaluators(config: Any, key: str = "") -> list[str]:
    """Keys of the components that are evaluators."""
    if not isinstance(config, Mapping):
        return []
    found = [key] if "Evaluator" in str(config.get("_target_", "")) else []
    return found + [name for k, v in config.items() for name in evaluators(v, f"{key}#{k}" if key else str(k))]


def _id(reference: str) -> str:
    return reference.removeprefix("@").replace("#", ID_SEP_KEY)
