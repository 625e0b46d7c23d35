"""A run over a folder of images: a fault affects only its case, and files have nnU-Net's names."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback as tracebacks
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from .._version import __version__
from ..checks import check_flag, check_number, checked, did_you_mean
from ..console import say, say_beside_bar
from ..data import MAX_VOXELS, Fault, check_max_voxels, check_voxels
from ..data.dicom import error_reason
from ..errors import GrataError, RunError
from ..files import (
    CASES,
    JOURNAL,
    atomic_write,
    check_output_dir,
    expanded,
    locked,
    plainly_named,
    remove_file,
    remove_leftovers,
)
from ..machine import check_device
from ..quality import exit_status
from ..report import format_summary, report_verdicts, write_summary
from ..session import Journal, ResetPolicy, Session, WindowSelection, explain
from ..session.attempts import Attempts
from .cases import check_files, find_cases, other_channels
from .expected import difference_from_training, training_images
from .model import CHECKPOINT, load_model
from .predictor import AdaptedPredictor

__all__ = ["predict"]

_BEGUN = ".begun"


def predict(
    model_folder: str | Path,
    input: str | Path,
    output: str | Path,
    method: str = "grata",
    settings: Mapping[str, Any] | None = None,
    *,
    windows: WindowSelection | Mapping[str, Any] | None = None,
    folds: int | str | Sequence[int | str] | None = None,
    checkpoint_name: str = CHECKPOINT,
    affine: str = "auto",
    seed: int = 0,
    site: str | Mapping[str, str] | None = None,
    bank: str | Path | None = None,
    start_from: str | Path | None = None,
    save_to: str | Path | None = None,
    reset: ResetPolicy | str | Mapping[str, Any] | None = None,
    prepared: str | Path | None = None,
    device: str | torch.device | None = None,
    tile_step_size: float = 0.5,
    use_mirroring: bool = True,
    save_probabilities: bool = False,
    guard: bool | Mapping[str, Any] = True,
    on_reject: str = "source",
    quality: str | Path | None = None,
    max_voxels: int | None = MAX_VOXELS,
    overwrite: bool = True,
    traceback: bool = False,
) -> int:
    """Adapt a trained nnU-Net to each image of a folder and predict it; method ``source`` predicts exactly as nnU-Net.

    Images are taken in the order of their names. Each goes on from the parameters that the one before left, unless the
    method resets them. An image that fails is reported and leaves no trace in the networks; the run goes on with the
    next one.

    Args:
        model_folder: trained-model folder of nnU-Net v2 with ``plans.json``, ``dataset.json``, ``fold_0``, ...
        input: folder of images named ``<case>_0000<ending>``, with one file for each channel, or fewer where nnU-Net's
            reader finds several channels in a file, such as the colours of a picture.
        output: folder for ``<case><ending>``, for ``journal.jsonl`` with a line for each case and fold (see
            :class:`grata.session.Case`), for ``summary.json``, and for the files that nnU-Net's
            postprocessing needs.
        method: name of the method, see ``python -m grata methods``.
        settings: settings of the method, e.g. ``{"lr": 1e-3}``.
        windows: selection of windows to adapt to, see :class:`grata.session.WindowSelection`.
        folds: folds whose networks are used; None: every numbered fold, or else ``all``.
        checkpoint_name: name of the checkpoint's file in the folder of a fold.
        affine: treatment of normalization layers without affine parameters, see
            :func:`grata.normalization.ensure_affine`.
        seed: seed of the methods' random generators.
        site: site of the images, or the site of each by its case, for the journal, the bank and reset policies that
            need it.
        bank: folder of the adaptations by site, which go on from their last state, also in another run: one
            :class:`grata.bank.AdapterBank` per fold, in ``fold_0`` and so on. It needs a ``site``, because these
            images carry no metadata of their scanner.
        start_from: saved adaptations to start from: a folder with ``fold_0.safetensors`` and so on, or the file of a
            single fold.
        save_to: without a bank: folder for the saved adaptation of each fold, ``fold_0.safetensors`` and so on.
        reset: policy that says when to start from the source networks again, see :mod:`grata.session.resets`; None: as
            in the method's paper.
        prepared: what methods need beyond images: a folder with ``fold_0.safetensors`` and so on, or the file of a
            single fold.
        device: device to compute on; None: CUDA if there is one, or else the CPU.
        tile_step_size: step between nnU-Net's windows, as a fraction of their size.
        use_mirroring: whether to predict mirrored images as well, as nnU-Net does.
        save_probabilities: whether to write ``<case>.npz`` and ``<case>.pkl`` too, as nnU-Net does.
        guard: judge of each prediction: true for the usual one, its settings, or false, see
            :class:`grata.session.QualityGuard`.
        on_reject: what is written of a rejected image: ``source``, the networks' prediction without adaptation;
            ``withhold``, nothing; or ``keep``.
        quality: file of ``python -m grata calibrate``; None: nothing is known of the networks.
        max_voxels: greatest number of voxels of an image at the spacing of the plans; a larger one is a fault, and is
            not resampled. None: no bound.
        overwrite: whether to predict cases again whose outputs exist; these are removed at the start. If False, the
            parameters adapted to those cases are not used, except for those that a bank kept, and a case during which
            the process was killed twice is passed over.
        traceback: whether to show the Python traceback of each fault.

    Returns:
        Exit status: 0 if every case was finished and none rejected, 1 if there were faults, 3 if there were none and
        the guard rejected a case.

    Raises:
        GrataError: nnU-Net is not installed, the model or the method is refused, there is no image, or the output
            cannot be written.
    """
    started = time.perf_counter()
    flags = {"use_mirroring": use_mirroring, "save_probabilities": save_probabilities, "overwrite": overwrite}
    for name, flag in flags.items():
        checked(check_flag, flag, name)
    checked(lambda value: check_number(value, above=0, at_most=1), tile_step_size, "tile_step_size")
    check_max_voxels(max_voxels)
    device = check_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = load_model(model_folder, folds, checkpoint_name)
    cases, faults, notes = find_cases(expanded(input), model)
    sites = _sites(cases, site, bank)
    output = _output_folder(output, input)
    journal = Journal(output / JOURNAL)
    predictor = AdaptedPredictor(
        model,
        method,
        settings,
        windows,
        affine,
        seed,
        device,
        tile_step_size,
        use_mirroring,
        prepared=prepared,
        bank=bank,
        start_from=start_from,
        save_to=save_to,
        reset=reset,
        journal=journal,
        guard=guard,
        on_reject=on_reject,
        quality=quality,
    )
    given = {
        "model_folder": model_folder, "input": input, "method": method, "settings": settings, "windows": windows,
        "folds": list(model.checkpoints), "checkpoint_name": checkpoint_name, "affine": affine, "seed": seed,
        "site": site, "bank": bank, "start_from": start_from, "save_to": save_to, "reset": reset,
        "prepared": prepared, "device": device, "tile_step_size": tile_step_size, "use_mirroring": use_mirroring,
        "guard": guard, "on_reject": on_reject, "quality": quality, "max_voxels": max_voxels,
    }  # fmt: skip
    with locked(output, key="output"):
        run = _Run(predictor, sites, journal, output, save_probabilities, traceback, max_voxels)
        done = run.tidy(cases, overwrite)
        run.start({case: files for case, files in cases.items() if case not in done})
        faults += run.faults
        summary: dict[str, Any] = {
            "method": method,
            "version": __version__,
            "cases_found": len({*cases, *(fault.case for fault in faults)}),
            "cases_finished": len(done) + len(run.finished),
            "faults": faults,
            "scores": [],
            "seconds": time.perf_counter() - started,
        }
        write_summary(output / "summary.json", **summary, settings=given)
        say(format_summary(**summary, output_dir=output))
        judgements = next(iter(predictor.sessions.values())).judgements
        report_verdicts(judgements, output, sites, faults)
        for remark in (*notes, *(remark for session in predictor.sessions.values() for remark in session.remarks())):
            say(f"note: {remark}")
        return exit_status(bool(faults), judgements.values())


def _sites(
    cases: Collection[str], site: str | Mapping[str, str] | None, bank: str | Path | None
) -> dict[str, str | None]:
    """Return the site of each case.

    Raises:
        GrataError: there is a bank, and a case has no site, or a site is given for a case that there is not.
    """
    for case in site if isinstance(site, Mapping) else ():
        if case not in cases:
            raise GrataError(f"there is no such case. {did_you_mean(case, cases)}".rstrip(), f"site#{case}")
    sites = {case: site.get(case) if isinstance(site, Mapping) else site for case in cases}
    if bank is not None and not all(sites.values()):
        raise GrataError("the bank keeps one adaptation per site. Give the site of the images by site.", key="bank")
    return sites


def _output_folder(output: str | Path, input: str | Path) -> Path:
    """Return the output folder, ready to be written to.

    Raises:
        GrataError: it cannot be written to, or is the folder of the images.
    """
    folder = check_output_dir(output)
    if folder.resolve() == expanded(input).resolve():
        raise GrataError("must not be the folder of the images. Name another folder.", key="output")
    return folder


class _Withheld(Exception):
    """Signal that a case is finished, and nothing is written of it."""


class _Run:
    """A run over the cases, one after the other."""

    def __init__(
        self,
        predictor: AdaptedPredictor,
        sites: Mapping[str, str | None],
        journal: Journal,
        output: Path,
        save_probabilities: bool,
        traceback: bool,
        max_voxels: int | None,
    ) -> None:
        self.predictor = predictor
        self.sites = sites
        self.journal = journal
        self.model = predictor.model
        self._expected = training_images(predictor.model.folder)
        self.output = output
        self.save_probabilities = save_probabilities
        self.traceback = traceback
        self.max_voxels = max_voxels
        self.finished: list[str] = []
        self.faults: list[Fault] = []
        self._ending = self.model.dataset["file_ending"]
        self._attempts = Attempts(output / _BEGUN)

    def tidy(self, cases: Iterable[str], overwrite: bool) -> set[str]:
        """Remove what a killed process left, and return the cases that are done.

        Args:
            cases: cases of this run.
            overwrite: whether to remove the outputs of an earlier run. They go before anything new is written: a killed
                run leaves none of them beside its own.
        """
        names = {"dataset.json", "plans.json", "summary.json", CASES, JOURNAL, _BEGUN}
        remove_leftovers(self.output, lambda name: name in names or name.endswith((self._ending, ".npz", ".pkl")))
        if not overwrite:
            return {case for case in cases if self.is_done(case)}
        for case in cases:
            for ending in (self._ending, ".npz", ".pkl"):
                remove_file(self.output / f"{case}{ending}")
            self._attempts.forget(case)
        return set()

    def is_done(self, case: str) -> bool:
        """Return whether all outputs of a case exist."""
        endings = [self._ending, *([".npz"] if self.save_probabilities else [])]
        return all((self.output / f"{case}{ending}").is_file() for ending in endings)

    def start(self, cases: Mapping[str, list[Path]]) -> None:
        """Adapt to each case and predict it.

        Args:
            cases: files of each case, in the order of the channels.
        """
        # nnU-Net's ensembling and postprocessing look for these beside the predictions.
        for name, content in (("dataset.json", self.model.dataset), ("plans.json", self.model.plans.plans)):
            with atomic_write(self.output / name) as temporary:
                temporary.write_text(json.dumps(content, indent=4), encoding="utf-8")
        self.journal.keep({str(line.get("case")) for line in self.journal.lines()} - cases.keys())
        first = next(iter(self.predictor.sessions.values()))
        with self._attempts.running():
            for case, files in tqdm(cases.items(), desc=first.method.name, unit="case"):
                self._attempt(first, case, files)
        self._attempts.close()

    def _attempt(self, first: Session, case: str, files: list[Path]) -> None:
        """Do one case; whatever is wrong with it is reported, and affects no other one."""
        try:
            self._attempts.check(case, f"give --overwrite true, or remove its line from {self.output / _BEGUN}")
            self._attempts.begin(case)
            self._case(case, files)
        except RunError:
            raise
        except Exception as error:  # noqa: BLE001 (readers, nnU-Net and networks can raise anything)
            if self.traceback:
                say("".join(tracebacks.format_exception(error)).rstrip(), sys.stderr)
            self.faults.append(Fault(case, explain(error, "--traceback true")))
            say_beside_bar(f"{case}: {self.faults[-1].message}")
            first.fail(case, self.faults[-1].message)
        else:
            self.finished.append(case)
        self._attempts.end()

    def _case(self, case: str, files: list[Path]) -> None:
        """Do one case. Its final name marks it as finished, and comes last, so that it is never missing in the bank."""
        data, properties = self._preprocess(case, files)
        with contextlib.suppress(_Withheld), atomic_write(self.output / f"{case}{self._ending}") as temporary:
            unlike = difference_from_training(self._expected, properties)
            with self.predictor.case(data, case, self.sites[case], unlike) as logits:
                judgement = self.predictor.judgement
                withheld = judgement is not None and judgement.withheld
                if not withheld:
                    self._export(case, logits, properties, temporary)
            if withheld:
                raise _Withheld

    def _preprocess(self, case: str, files: list[Path]) -> tuple[torch.Tensor, dict[str, Any]]:
        model = self.model
        check_files(files)
        preprocessor = model.configuration.preprocessor_class(verbose=False)
        resample = preprocessor.run_case_npy

        def bounded(data: np.ndarray, seg: np.ndarray | None, properties: dict[str, Any], *plans: Any) -> Any:
            self._check_size(files[0].name, data.shape[1:], properties["spacing"])
            return resample(data, seg, properties, *plans)

        # between nnU-Net's reading and its resampling
        preprocessor.run_case_npy = bounded
        try:
            with plainly_named(files) as named:
                data, _, properties = preprocessor.run_case(
                    [str(file) for file in named], None, model.plans, model.configuration, model.dataset
                )
        except GrataError:
            raise
        except Exception as error:
            self._check_channels(case, files, self._channels_read(files))
            reason = error_reason(error, frozenset())
            raise GrataError(
                f"{', '.join(file.name for file in files)}: nnU-Net cannot read or preprocess it ({reason}). Check "
                "that each file opens, and that all channels have the same size and position."
            ) from error
        self._check_channels(case, files, len(data))
        return torch.from_numpy(data).to(torch.float32), properties

    def _check_size(self, name: str, shape: Sequence[int], spacing: Sequence[float]) -> None:
        """Check the size of an image at the spacing of the plans, which lack the axis of the slices of a 2D model."""
        order = self.model.plans.transpose_forward
        target = list(self.model.configuration.spacing)
        target = [0.0] * (len(shape) - len(target)) + target
        shape, spacing = [shape[i] for i in order], [spacing[i] for i in order]
        check_voxels(name, shape, spacing, target, self.max_voxels, self.model.configuration.patch_size)

    def _check_channels(self, case: str, files: list[Path], read: int | None) -> None:
        if read not in (None, self.model.channels):
            raise GrataError(other_channels(case, files, self.model, read))

    def _channels_read(self, files: list[Path]) -> int | None:
        """Return the number of channels that nnU-Net reads from files; None: it cannot read them."""
        reader = self.model.plans.image_reader_writer_class()
        with contextlib.suppress(Exception), plainly_named(files) as named:
            return len(reader.read_images([str(file) for file in named])[0])
        return None

    def _export(self, case: str, logits: torch.Tensor, properties: dict[str, Any], temporary: Path) -> None:
        """Write the segmentation under a temporary name, as nnU-Net does, and the probabilities beside it."""
        from nnunetv2.inference.export_prediction import export_prediction_from_logits

        model = self.model
        truncated = str(temporary).removesuffix(self._ending)
        try:
            with plainly_named([temporary.parent]) as (folder,):
                export_prediction_from_logits(
                    logits,
                    properties,
                    model.configuration,
                    model.plans,
                    model.dataset,
                    str(folder / Path(truncated).name),
                    self.save_probabilities,
                )
        except AssertionError as error:
            # nnU-Net's readers take volumes with several channels in a file, of which its writers know nothing
            raise GrataError(
                f"{case}: nnU-Net cannot write a segmentation in the form of this image. Give volumes with one file "
                "for each channel."
            ) from error
        for ending in (".npz", ".pkl") if self.save_probabilities else ():
            os.replace(truncated + ending, self.output / f"{case}{ending}")
