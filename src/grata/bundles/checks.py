"""Checks before a bundle is run with the overlay: mistyped keys, keys of the same name, plain messages."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from pydoc import locate
from typing import Any

from monai.bundle import ConfigComponent, ConfigParser
from monai.data import CacheDataset, LMDBDataset, SmartCacheDataset
from monai.utils import ensure_tuple

from .._moved import NAMES
from ..checks import constant, did_you_mean
from ..engines import EvaluatorRun
from ..errors import GrataError
from ..private import running_command, running_workflow
from ..session.faults import plain_errors
from .configuration import check_method_settings
from .paths import keep_typed, leaves
from .reader import Configuration, components, evaluators, read_files

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
    command = running_command()
    _prepare(running.parser, command.get("override", {}))
    check_method_settings(config)
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


def _prepare(parser: ConfigParser, overrides: Mapping[str, Any]) -> None:
    """Let the configuration hold what was typed, and read images one by one."""
    changed = [keep_typed(parser), read_words(parser, overrides), read_lazily(parser)]
    if any(changed) and (workflow := running_workflow()) is not None:
        # The bundle's own ``initialize`` has run with the old values, and its objects are gone with them.
        workflow.initialize()


def read_words(parser: ConfigParser, overrides: Mapping[str, Any]) -> bool:
    """Set what ``true``, ``false`` and ``null`` mean where a command line handed them over as text, which is true.

    Args:
        parser: parser of the running configuration.
        overrides: values of the command line, by key.

    Returns:
        Whether anything was changed.
    """
    words = {
        key.lstrip("+"): constant(value)
        for key, value in overrides.items()
        if any(constant(leaf) is not leaf for _, leaf in leaves(value))
    }
    for key, value in words.items():
        parser.set(value, key)
    return bool(words)


def read_lazily(parser: ConfigParser) -> bool:
    """Let data sets that fill a cache before the first image read each image when its turn comes.

    A file that cannot be read would end the run before it begins. The images are the same.

    Args:
        parser: parser of the running configuration.

    Returns:
        Whether anything was changed.
    """
    changed = False
    for key, item in list(components(parser.get())):
        kind = _data_set(item, parser)
        if kind is None:
            continue
        if issubclass(kind, SmartCacheDataset | LMDBDataset):
            plain = {name: value for name, value in item.items() if name in ("data", "transform")}
            parser.set({"_target_": "Dataset", **plain}, key)
            changed = True
        elif "runtime_cache" in signature(kind).parameters and not item.get("runtime_cache"):
            parser.set("threads", f"{key}#runtime_cache")
            changed = True
    return changed


def _data_set(item: Mapping[str, Any], parser: ConfigParser) -> type | None:
    """Return the class of a component that is a data set of MONAI with a cache; None: it is something else."""
    if "Dataset" not in str(item["_target_"]):
        return None
    # A class that cannot be imported is reported where it is used, if it is.
    with contextlib.suppress(Exception):
        kind = locate(ConfigComponent(config=item, locator=parser.locator).resolve_module_name())
        return kind if isinstance(kind, type) and issubclass(kind, CacheDataset | LMDBDataset) else None
    return None


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
