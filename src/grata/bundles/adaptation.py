"""A method plugged into a bundle's own evaluator; what the bundle does not say has to be given as an option."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from monai.engines import SupervisedEvaluator
from torch import nn

from ..bank.saved import card_path, saved_path
from ..checks import check_choice, check_flag, checked, constant
from ..console import say
from ..data import MAX_VOXELS
from ..engines import AdaptationHandler, EvaluatorRun
from ..errors import GrataError
from ..files import CASES, JOURNAL, absence, check_output_dir, expanded, locked, remove_file, remove_leftovers
from ..methods import METHODS, Method, create, needs_activation, settings_of
from ..normalization import AFFINE
from ..private import running_workflow
from ..quality import exit_status
from ..report import report_verdicts
from ..session import QualityGuard, make_guard
from .checks import bundle_postprocessing
from .configuration import check_settings_kind
from .head import Head, find_head, is_unit_range
from .sizes import check_sizes
from .withholding import withhold

__all__ = ["ZooAdaptation", "describe_changes", "make_method", "prepared_of"]

_KEYS = ("windows", "bank", "start_from", "save_to", "reset")
_ADAPTED = "adapted.safetensors"
"""Saved adaptation of a run without a bank, in its output folder, unless ``save_to`` names another file."""
_OWN = (JOURNAL, CASES, _ADAPTED, card_path(_ADAPTED).name)


class ZooAdaptation:
    """A method plugged into a bundle's evaluator, after the bundle's own handlers.

    The bundle's postprocessing says what the network's output means, its preprocessing on which scale the images are.
    The bundle writes its outputs as before; a journal and the saved adaptation are written beside them.
    :class:`EvaluatorRun` says what happens to an image that fails.

    Args:
        evaluator: the bundle's evaluator, with its network, inferer and data loader.
        method: name of a method, see :data:`grata.methods.METHODS`.
        settings: settings of the method.
        postprocessing: transforms of the predictions; None: those that the running workflow gives the evaluator.
        bundle_root: folder of the bundle; None: unknown.
        output_dir: folder for the journal and the saved adaptation; None: neither is written.
        reset: when to start from the source network again; None: as in the method's paper.
        seed: seed of the method's random generator.
        activation: ``softmax`` or ``sigmoid``; None: as in the postprocessing.
        output: key or index of the logits in what the network returns; None: as in the postprocessing.
        affine: ``auto``, ``own`` or ``attach``, see :func:`grata.normalization.ensure_affine`.
        prepared: file written by ``python -m grata prepare``; None: ``models/prepared.safetensors`` where the bundle
            has it.
        windows: settings of :class:`grata.session.WindowSelection`.
        bank: folder with one adaptation per site or scanner, or settings of :class:`grata.bank.AdapterBank`.
        start_from: saved adaptation to go on from.
        save_to: file of the saved adaptation of a run without a bank; None: ``adapted.safetensors`` in ``output_dir``.
        site: site of the images, for the journal, the bank and reset policies that need it; None: that of the batch.
        guard: judge of each prediction: true for the usual one, its settings, or false, see
            :class:`grata.session.QualityGuard`.
        on_reject: what becomes of a rejected image: ``source``, ``withhold`` (the ``SaveImaged`` of its postprocessing
            write nothing of it) or ``keep``.
        quality: file written by ``python -m grata calibrate``; None: ``models/quality.json`` where the bundle has it.
        max_voxels: greatest number of voxels of an image that the bundle's ``Spacingd`` resamples; a larger one is a
            fault, before any memory is taken for it. None: no bound.
        overwrite: whether to remove the journal and the saved adaptation of an earlier run from ``output_dir``.
        traceback: whether to show the Python traceback of each fault.

    Raises:
        GrataError: an option is missing that the bundle does not answer, a setting is refused, or the method cannot
            adapt the network.
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
        save_to: str | Path | None = None,
        site: str | None = None,
        guard: bool | Mapping[str, Any] | None = True,
        on_reject: str | None = None,
        quality: str | Path | None = None,
        max_voxels: int | None = MAX_VOXELS,
        overwrite: bool = False,
        traceback: bool = False,
    ) -> None:
        if not isinstance(evaluator, SupervisedEvaluator):
            raise GrataError(
                f"must be a SupervisedEvaluator, got a {type(evaluator).__name__}. Name the engine "
                "that predicts, for example --adaptation#evaluator @validate#evaluator.",
                key="adaptation#evaluator",
            )
        # The command line hands over true, false and null as text, also inside settings and windows.
        settings, common, session, folder, flags = constant(
            (
                settings,
                {"activation": activation, "output": output, "prepared": prepared, "seed": seed},
                {
                    "windows": windows,
                    "bank": bank,
                    "start_from": start_from,
                    "save_to": save_to,
                    "reset": reset,
                    "site": site,
                    "guard": guard,
                },
                output_dir,
                {"overwrite": overwrite, "traceback": traceback},
            )
        )
        for key, flag in flags.items():
            checked(check_flag, flag, f"adaptation#{key}")
        self.evaluator = evaluator
        preprocessing = getattr(getattr(evaluator.data_loader, "dataset", None), "transform", None)
        checked(partial(check_sizes, preprocessing), max_voxels, "adaptation")
        postprocessing = bundle_postprocessing() if postprocessing is None else postprocessing
        self.head = find_head(postprocessing)
        unit_range = is_unit_range(preprocessing)
        common["prepared"] = _existing(common["prepared"]) or prepared_of(bundle_root)
        self.method = make_method(
            _bare(evaluator.network), method, settings, self.head, unit_range, affine=affine, **common
        )
        session["guard"] = _guard(session["guard"], constant(on_reject), constant(quality), bundle_root)
        self._traceback = flags["traceback"]
        self._folder = _output_folder(folder)
        self.handler = self._plugged(session)
        if isinstance(session["guard"], QualityGuard) and session["guard"].on_reject == "withhold":
            checked(lambda transforms: withhold(transforms, self._withholds), postprocessing, "adaptation")
        self._earlier = partial(
            _files_to_remove, self._folder, session["start_from"], flags["overwrite"], session["bank"]
        )
        self._to_remove = self._earlier()
        keeper = self.handler.session.keeper
        if keeper.save_to is not None and keeper.save_to not in self._to_remove:
            checked(lambda _: keeper.check_save_to(), None, "adaptation")

    def _plugged(self, session: dict[str, Any]) -> AdaptationHandler:
        """Return the handler; without a bank and a file of its own, the adaptation is saved in the output folder."""
        if self._folder is not None and session["bank"] is None and self.method.parameters:
            session["save_to"] = session["save_to"] or self._folder / _ADAPTED
        journal = None if self._folder is None else self._folder / JOURNAL
        try:
            return AdaptationHandler(self.method, journal=journal, **session)
        except GrataError as error:
            if error.head in _KEYS:
                raise error.under("adaptation") from error
            raise

    def _withholds(self) -> bool:
        return any(judgement.withheld for judgement in self.handler.judgements)

    def run(self) -> None:
        """Run the evaluator over all images that the bundle finds.

        If an image failed, the process ends with status 1, and if one was rejected with status 3, after the
        ``finalize`` of the bundle's own workflow.

        Raises:
            GrataError: the bundle finds no image.
        """
        run = EvaluatorRun(self.evaluator, self.handler, self._traceback)
        with contextlib.nullcontext() if self._folder is None else locked(self._folder, key="adaptation#output_dir"):
            self._run(run)

    def _run(self, run: EvaluatorRun) -> None:
        if self._folder is not None:
            # another run may have ended here since this one was made
            self._to_remove = self._earlier()
            remove_leftovers(self._folder, _OWN.__contains__)
        for path in self._to_remove:
            remove_file(path)
        head = f", {self.head.activation} as in {self.head.source}" if self.head.activation else ""
        say(f"{self.method.name} on {type(self.method.given).__name__}: changes {describe_changes(self.method)}{head}.")
        run.run()
        say(f"{self.method.name}: {run.done} of {run.images} images done.")
        for line in (*(f"{fault.case}: {fault.message}" for fault in run.faults), *self.handler.remarks()):
            say(f"  {line}")
        judgements = self.handler.session.judgements
        report_verdicts(judgements, self._folder, faults=run.faults)
        status = exit_status(run.done < run.images, judgements.values())
        if status:
            if (workflow := running_workflow()) is not None:
                workflow.finalize()
            sys.exit(status)


def make_method(
    network: nn.Module,
    name: str,
    settings: Mapping[str, Any] | None,
    head: Head,
    unit_range: bool,
    affine: str = "auto",
    **common: Any,
) -> Method:
    """Return a method for a bundle's network.

    Args:
        network: network of the bundle.
        name: name of the method.
        settings: settings of the method.
        head: meaning of the network's output by the bundle's postprocessing; ``common`` takes precedence.
        unit_range: whether the network's images lie in 0..1; the strong view then stays in that range.
        affine: see :func:`grata.normalization.ensure_affine`.
        common: settings that are given for all methods, see :func:`grata.methods.create`; None: not given.

    Raises:
        GrataError: the activation is unknown, or the method refuses the network or a setting.
    """
    check_common(affine, common.get("activation"), settings)
    settings = dict(settings or {})
    known = settings_of(name) if name in METHODS else {}
    if common.get("activation") is None:
        common["activation"] = head.activation
    if common.get("output") is None:
        common["output"] = head.output
    if "strong_view" in known and not unit_range:
        common["strong_view"] = {"output_range": "input"}
    if common["activation"] is None and "activation" not in settings and needs_activation(name, settings):
        raise GrataError(
            "the bundle's postprocessing does not say what the network's output means. Give "
            "--adaptation#activation softmax (one class per voxel) or sigmoid (each channel by itself), as the network "
            "was trained.",
            key="adaptation#activation",
        )
    try:
        return create(name, network, settings, affine=affine, **common)
    except GrataError as error:
        # These keys are one level lower in the overlay than in the adapt.yaml of this project's own bundles.
        if error.head in (*common, "affine"):
            raise error.under("adaptation") from error
        raise


def check_common(affine: object, activation: object, settings: object) -> None:
    """Check what is given for all methods, whether or not the method at hand uses it.

    Raises:
        GrataError: a value is not one of those that are known, or ``settings`` is not a mapping.
    """
    checked(lambda value: check_choice(value, AFFINE), affine, "adaptation#affine")
    if activation is not None:
        checked(lambda value: check_choice(value, ("softmax", "sigmoid")), activation, "adaptation#activation")
    check_settings_kind(settings)


def describe_changes(method: Method) -> str:
    """Return in words what a method changes."""
    own = sum(parameter.numel() for parameter in method.parameters.values())
    attached = 0 if method.attached is None else method.attached.count
    parts = [f"{own - attached:,} parameters of the network"] * (own > attached)
    parts += [f"{attached:,} parameters attached to norms that have none"] * (attached > 0)
    return " and ".join(parts) or "no parameters"


def _bare(network: nn.Module) -> nn.Module:
    """Return the network inside a compiled or distributed one, whose parameters have other names."""
    if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
        network = network.module
    return getattr(network, "_orig_mod", network)


def _output_folder(folder: object) -> Path | None:
    if not isinstance(folder, str | Path | None):
        raise GrataError(f"must be a folder, got {folder!r}. Write ./ before the name.", key="adaptation#output_dir")
    return None if folder is None else check_output_dir(folder)


def _files_to_remove(folder: Path | None, start_from: str | Path | None, overwrite: bool, bank: Any) -> list[Path]:
    """Return the files of an earlier run in its folder that are removed when this one begins.

    Raises:
        GrataError: ``folder`` holds the files of an earlier run, and this run neither goes on from it nor replaces it.
    """
    if folder is None or bank is not None:
        return []
    journal, saved = folder / JOURNAL, folder / _ADAPTED
    if start_from is not None and saved.is_file() and saved_path(start_from).resolve() == saved.resolve():
        return []
    if overwrite:
        # what the next start looks for goes last
        return [folder / CASES, card_path(saved), journal, saved]
    if journal.is_file() or saved.is_file():
        go_on = f"--adaptation#start_from {saved} to go on from it, " if saved.is_file() else ""
        raise GrataError(
            f"{folder} holds the files of an earlier run. Add {go_on}--adaptation#overwrite true to "
            "start anew, or name another --adaptation#output_dir.",
            key="adaptation#output_dir",
        )
    return []


def _guard(given: Any, on_reject: Any, quality: Any, bundle_root: str | Path | None) -> Any:
    """Return the guard of a bundle, with what is known of its network from its source set."""
    quality = _of_models(bundle_root, "quality.json") if quality is None else quality
    try:
        return make_guard(given, on_reject=on_reject, calibration=quality)
    except GrataError as error:
        if error.head in ("quality", "on_reject", "guard"):
            raise error.under("adaptation") from error
        raise


def _existing(prepared: str | Path | None) -> str | Path | None:
    """Return ``prepared`` once it is known to exist: a method that does not need it would not notice."""
    if prepared is not None and not checked(expanded, prepared, "adaptation#prepared").is_file():
        raise GrataError(
            f"{prepared} {absence(expanded(prepared))}. Name a file that python -m grata prepare wrote.",
            key="adaptation#prepared",
        )
    return prepared


def prepared_of(bundle_root: str | Path | None) -> Path | None:
    """Return the bundle's file of ``python -m grata prepare``, or None where it has none."""
    return _of_models(bundle_root, "prepared.safetensors")


def _of_models(bundle_root: str | Path | None, name: str) -> Path | None:
    """Return a file in the bundle's folder of models, or None where it has none."""
    path = None if bundle_root is None else checked(expanded, bundle_root, "adaptation#bundle_root") / "models" / name
    return path if path is not None and path.is_file() else None
