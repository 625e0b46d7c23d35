"""Checks before a bundle is run with the overlay: mistyped keys, keys of the same name, plain messages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from .._moved import NAMES
from ..checks import did_you_mean
from ..engines import EvaluatorRun
from ..errors import GrataError
from ..private import running_command, running_workflow
from ..session.faults import plain_errors
from .configuration import check_method_settings
from .paths import keep_typed
from .reader import Configuration, evaluators, read_files

__all__ = ["begin", "bundle_postprocessing", "check_collisions", "check_overrides", "overlay"]

_OF_MONAI = ("bundle_root", "workflow_type", "workflow_name", "properties_path")
"""Options of the command line that MONAI itself reads."""


def overlay() -> Path:
    """Return the path of the overlay that adapts any bundle in Model Zoo layout. Its first lines say how to use it."""
    return Path(__file__).with_name("adapt.yaml")


def begin() -> None:
    """Check the running configuration, as the first expression of the overlay's ``adapt``.

    Raises:
        GrataError: the bundle has a key that the overlay would replace, nothing reads a key of the command line (it may
            be mistyped), or there is no evaluator.
    """
    running = Configuration.running()
    if running is None:
        return
    config = running.raw()
    plain_errors(
        config["adaptation"].get("traceback"),
        EvaluatorRun.hint,
        "The bundle's outputs and the saved adaptation are kept. A bank goes on by itself; without a bank give "
        "--adaptation#start_from.",
    )
    if (workflow := running_workflow()) is not None and keep_typed(workflow.parser):
        # What the bundle made for itself was made of other texts.
        workflow.initialize()
    check_method_settings(config)
    command = running_command()
    files = [Path(file) for file in ensure_tuple(command.get("config_file") or ())]
    check_collisions(files)
    check_overrides(files, command.get("override", {}))
    reference = config["adaptation"].get("evaluator")
    if isinstance(reference, str) and reference.startswith("@") and reference[1:] not in running:
        engines = ", ".join(sorted(evaluators(config))) or "none"
        raise GrataError(
            f"the configuration has no {reference[1:]}; its evaluators: {engines}. Run the "
            "overlay after the bundle's configs/inference.json, or name the engine, for example --adaptation#evaluator "
            "@validate#evaluator.",
            key="adaptation#evaluator",
        )


def bundle_postprocessing() -> Any:
    """Return the postprocessing of the running workflow's evaluator.

    If it has none, the configuration's ``postprocessing`` is returned, which a handler may apply, or else None.
    """
    running = Configuration.running()
    if running is None:
        return None
    return running.postprocessing(str(running.raw("adaptation").get("evaluator")).removeprefix("@"))


def check_collisions(files: list[Path]) -> None:
    """Check that the overlay replaces no key of the configuration files before it.

    Args:
        files: configuration files in their order, the overlay among them or not.

    Raises:
        GrataError: a file has a key of the overlay.
    """
    (ours,) = read_files([overlay()])
    for path, keys in zip(files, read_files(files), strict=True):
        adaptation = keys.get("adaptation")
        target = adaptation.get("_target_") if isinstance(adaptation, Mapping) else None
        if NAMES.get(str(target), target) == ours["adaptation"]["_target_"]:
            return
        taken = sorted(ours.keys() & keys.keys())
        if taken:
            own = " The file has its own workflow for adaptation: run that one." if "adapt" in taken else ""
            raise GrataError(
                f"{path} has a key {taken[0]}, which the overlay would replace.{own} Rename that key, or leave the "
                "file out."
            )


def check_overrides(files: list[Path], overrides: Mapping[str, Any]) -> None:
    """Check that every key of the command line is read by something; MONAI accepts any key.

    Args:
        files: all configuration files, the overlay among them; without any, nothing is checked.
        overrides: values of the command line, by key.

    Raises:
        GrataError: nothing reads a key.
    """
    config: dict[str, Any] = {}
    for keys in read_files(files):
        config |= keys
    known = {*config, *_OF_MONAI} if config else set()
    arguments = config.get("adaptation") or {}
    for key in overrides if config else ():
        head, _, rest = key.lstrip("+").partition("#")
        if head not in known:
            hint = did_you_mean(head, known, "Nothing in the configuration has that name.", "--")
            if head in arguments:
                hint = f"Did you mean --adaptation#{head}?"
            raise GrataError(f"there is no such key. {hint}", key=f"--{key}")
        name = rest.split("#")[0]
        if head == "adaptation" and name not in arguments:
            hint = did_you_mean(name, arguments, f"The keys are {', '.join(arguments)}.", "--adaptation#")
            raise GrataError(f"there is no such key. {hint}", key=f"--{key}")
