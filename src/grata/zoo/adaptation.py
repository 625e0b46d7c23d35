"""A method plugged into a bundle's own evaluator: what the bundle tells is found, what it does not tell is asked for."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.engines import SupervisedEvaluator
from torch import nn

from ..adapters.saved import card_path, saved_path
from ..errors import GrataError
from ..files import JOURNAL, check_output_dir
from ..methods import METHODS, Method, create, settings_of
from ..workflows.configuration import constant, running_workflow
from .head import Head, find_head, is_unit_range
from .run import EvaluatorRun, NamedCases
from .start import bundle_postprocessing

__all__ = ["ADAPTED", "ZooAdaptation", "describe_changes", "make_method", "prepared_of"]

_KEYS = ("windows", "bank", "start_from")
ADAPTED = "adapted.safetensors"
"""What a run without a bank has learnt, in its folder."""


class ZooAdaptation:
    """Plugs a method into a bundle's evaluator, after the bundle's own handlers, and runs it.

    What the network's output means is read off the bundle's postprocessing, the scale of its images off its
    preprocessing. The bundle's outputs stay its own; beside them there is a journal, and what was learnt. How images
    that fail are dealt with, see :class:`EvaluatorRun`.

    Args:
        evaluator: of the bundle; its network, inferer and data loader are in place.
        method: name of a method, see :data:`grata.methods.METHODS`.
        settings: of the method.
        postprocessing: what predictions go through; None: what the running workflow gives the evaluator.
        bundle_root: folder of the bundle; None: it is not known.
        output_dir: for the journal and the saved adaptation; None: neither is written.
        reset: when to start from the source network again; None: as the method's paper has it.
        seed: of the method's own random generator.
        activation: ``softmax`` or ``sigmoid``; None: as the postprocessing has it.
        output: key or index of the logits in what the network returns; None: as the postprocessing has it.
        affine: ``auto``, ``own`` or ``attach``, see :func:`grata.normalization.ensure_affine`.
        prepared: file of ``python -m grata prepare``; None: ``models/prepared.safetensors`` where the bundle has it.
        windows: see :class:`grata.handlers.WindowSelection`.
        bank: folder with one adaptation per site or scanner, or settings of :class:`grata.adapters.AdapterBank`.
        start_from: a saved adaptation to go on from.
        overwrite: remove what an earlier run has left in ``output_dir``.
        traceback: show the Python traceback of each fault.

    Raises:
        GrataError: what the bundle does not tell was not given, a setting is refused, the method cannot adapt the
            network.
    """

    def __init__(
        self,
        evaluator: SupervisedEvaluator,
        method: str = "grata",
        settings: Mapping[str, Any] | None = None,
        *,
        postprocessing: Any = None,
        bundle_root: str | Path | None = None,
        output_dir: str | Path | None = None,
        reset: str | Mapping[str, Any] | None = None,
        seed: int = 0,
        activation: str | None = None,
        output: str | int | None = None,
        affine: str = "auto",
        prepared: str | Path | None = None,
        windows: Mapping[str, Any] | None = None,
        bank: str | Path | Mapping[str, Any] | None = None,
        start_from: str | Path | None = None,
        overwrite: bool = False,
        traceback: bool = False,
    ) -> None:
        if not isinstance(evaluator, SupervisedEvaluator):
            raise GrataError(
                f"must be a SupervisedEvaluator, got a {type(evaluator).__name__}. Name the engine "
                "that predicts, for example --adaptation#evaluator @validate#evaluator.",
                key="adaptation#evaluator",
            )
        # The command line hands true, false and null over as text, here as in settings and windows.
        settings, common, windows, bank, start_from, folder, flags = constant(
            (
                settings,
                {"activation": activation, "output": output, "prepared": prepared, "reset": reset, "seed": seed},
                windows,
                bank,
                start_from,
                output_dir,
                {"overwrite": overwrite, "traceback": traceback},
            )
        )
        for key, flag in flags.items():
            if not isinstance(flag, bool):
                raise GrataError(f"must be true or false, got {flag!r}.", key=f"adaptation#{key}")
        self.evaluator = evaluator
        self.head = find_head(bundle_postprocessing() if postprocessing is None else postprocessing)
        unit_range = is_unit_range(getattr(getattr(evaluator.data_loader, "dataset", None), "transform", None))
        common["prepared"] = _existing(common["prepared"]) or prepared_of(bundle_root)
        self.method = make_method(
            _bare(evaluator.network), method, settings, self.head, unit_range, affine=affine, **common
        )
        if not isinstance(folder, str | Path | None):
            raise GrataError(
                f"must be a folder, got {folder!r}. Write ./ before its name.", key="adaptation#output_dir"
            )
        self._folder = None if folder is None else check_output_dir(folder)
        saves = self._folder is not None and bank is None and bool(self.method.parameters)
        try:
            self.handler = NamedCases(
                self.method,
                windows=windows,
                journal=self._folder and self._folder / JOURNAL,
                bank=bank,
                start_from=start_from,
                save_to=self._folder / ADAPTED if saves else None,
            )
        except GrataError as error:
            if error.head in _KEYS:
                raise error.under("adaptation") from error
            raise
        self._replaced = [] if bank is not None else _replaced(self._folder, start_from, flags["overwrite"])
        self._traceback = flags["traceback"]

    def run(self) -> None:
        """Run the evaluator over all images that the bundle finds.

        Where one failed the process ends with status 1, after the ``finalize`` of the bundle's own workflow.

        Raises:
            GrataError: the bundle finds no image.
        """
        run = EvaluatorRun(self.evaluator, self.handler, self._traceback)
        for path in self._replaced:
            path.unlink(missing_ok=True)
        head = f", {self.head.activation} as in {self.head.source}" if self.head.activation else ""
        print(
            f"{self.method.name} on {type(self.method.given).__name__}: changes {describe_changes(self.method)}{head}."
        )
        run.run()
        print(f"{self.method.name}: {run.finished} of {run.images} images done.")
        for line in (*(f"{name}: {message}" for name, message in run.faults.items()), *self.handler.remarks()):
            print(f"  {line}")
        if run.finished < run.images:
            if (workflow := running_workflow()) is not None:
                workflow.finalize()
            sys.exit(1)


def make_method(
    network: nn.Module,
    name: str,
    settings: Mapping[str, Any] | None,
    head: Head,
    unit_range: bool,
    affine: str = "auto",
    **common: Any,
) -> Method:
    """A method for a bundle's network.

    Args:
        network: of the bundle.
        name: of the method.
        settings: of it.
        head: as the bundle's postprocessing has it; what ``common`` says comes first.
        unit_range: whether the network's images lie in 0..1: the strong view is then kept there.
        affine: see :func:`grata.normalization.ensure_affine`.
        common: what is said for all methods, see :func:`grata.methods.create`; None: nothing is said.

    Raises:
        GrataError: nothing tells the activation, or whatever the method refuses.
    """
    settings = dict(settings or {})
    known = settings_of(name) if name in METHODS else {}
    if common.get("activation") is None:
        common["activation"] = head.activation
    if common.get("output") is None:
        common["output"] = head.output
    if "strong_view" in known and not unit_range:
        common["strong_view"] = {"output_range": "input"}
    if "activation" in known and common["activation"] is None and "activation" not in settings:
        raise GrataError(
            "the bundle's postprocessing does not tell what the network's output means. Give "
            "--adaptation#activation softmax (one class a voxel) or sigmoid (each channel for itself), as the network "
            "was trained.",
            key="adaptation#activation",
        )
    try:
        return create(name, network, settings, affine=affine, **common)
    except GrataError as error:
        # the keys that a bundle's own adapt.yaml has at its top lie one level down in an overlay
        if error.head in (*common, "affine"):
            raise error.under("adaptation") from error
        raise


def describe_changes(method: Method) -> str:
    """What a method changes, in words."""
    own = sum(parameter.numel() for parameter in method.parameters.values())
    attached = 0 if method.attached is None else method.attached.count
    parts = [f"{own - attached:,} parameters of the network"] * (own > attached)
    parts += [f"{attached:,} parameters attached to norms that have none"] * (attached > 0)
    return " and ".join(parts) or "no parameters"


def _bare(network: nn.Module) -> nn.Module:
    """The network inside what compiles or distributes it: what is learnt belongs to its own names and weights."""
    if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
        network = network.module
    return getattr(network, "_orig_mod", network)


def _replaced(folder: Path | None, start_from: str | Path | None, overwrite: bool) -> list[Path]:
    """Files of an earlier run that are to be removed when this one begins.

    Raises:
        GrataError: an earlier run has learnt something there, which this one neither goes on from nor replaces.
    """
    if folder is None:
        return []
    journal, saved = folder / JOURNAL, folder / ADAPTED
    if start_from is not None and saved.is_file() and saved_path(start_from).resolve() == saved.resolve():
        return []
    if overwrite:
        return [journal, saved, card_path(saved)]
    if journal.is_file() or saved.is_file():
        go_on = f"--adaptation#start_from {saved} to go on from it, " if saved.is_file() else ""
        raise GrataError(
            f"{folder} holds what an earlier run has left. Add {go_on}--adaptation#overwrite true to "
            "start anew, or name another --adaptation#output_dir.",
            key="adaptation#output_dir",
        )
    return []


def _existing(prepared: str | Path | None) -> str | Path | None:
    """``prepared``, which a method reads only when it needs it; :class:`GrataError` unless it is a file."""
    if prepared is not None and not Path(prepared).is_file():
        raise GrataError(
            f"{prepared} does not exist. Name a file of python -m grata prepare.", key="adaptation#prepared"
        )
    return prepared


def prepared_of(bundle_root: str | Path | None) -> Path | None:
    """What was prepared of a bundle's source set, where the bundle has it."""
    path = None if bundle_root is None else Path(bundle_root) / "models" / "prepared.safetensors"
    return path if path is not None and path.is_file() else None
