"""A whole run over a folder of images: faults stay with their case, files are named as nnU-Net names them."""

from __future__ import annotations

import json
import os
import re
import time
import traceback as tracebacks
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .. import __version__
from ..adapters import Keeper
from ..data import Fault
from ..errors import GrataError, OutputError
from ..files import JOURNAL, atomic_write, check_output_dir, remove_leftovers
from ..handlers import Journal
from ..handlers.steps import merged_record
from ..handlers.windows import WindowSelection
from ..methods.predictive import check_positive
from ..report import format_summary, write_summary
from ..workflows.configuration import check_device, explain
from .model import CHECKPOINT, TrainedModel, load_model
from .predictor import AdaptedPredictor

__all__ = ["predict"]


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
    site: str | None = None,
    bank: str | Path | None = None,
    device: str | torch.device | None = None,
    tile_step_size: float = 0.5,
    use_mirroring: bool = True,
    save_probabilities: bool = False,
    overwrite: bool = True,
    traceback: bool = False,
) -> int:
    """Adapt a trained nnU-Net to each image of a folder, and predict it; with method ``source`` exactly as nnU-Net.

    The images are taken in the order of their names, and each goes on from what the one before left, unless the method
    says otherwise. One that fails is reported, leaves no trace in the networks, and the next one is taken up.

    Args:
        model_folder: trained-model folder of nnU-Net v2: ``plans.json``, ``dataset.json``, ``fold_0``, ...
        input: folder of images, named ``<case>_0000<ending>``, with one file a channel.
        output: folder for ``<case><ending>``; also ``journal.jsonl`` with a line for each case and fold (see
            :class:`grata.handlers.AdaptationHandler`), ``summary.json``, and what nnU-Net needs for postprocessing.
        method: name of the method, see ``python -m grata methods``.
        settings: of the method, e.g. ``{"lr": 1e-3}``.
        windows: which windows of an image it adapts to, see :class:`grata.handlers.WindowSelection`.
        folds: whose networks to use; None: every numbered one, else ``all``.
        checkpoint_name: of the file in the folder of a fold.
        affine: what to do about normalization layers without affine parameters, see
            :func:`grata.normalization.ensure_affine`.
        seed: of the methods' generators.
        site: where the images come from, for the journal, the bank and reset policies that ask for it.
        bank: folder that keeps what is learnt for each site, which goes on from where it stood, also in another run: an
            :class:`grata.adapters.AdapterBank` for each fold, ``fold_0`` and so on. It needs a ``site``, since images
            tell nothing of their scanner here.
        device: to compute on; None: CUDA where there is one, else the CPU.
        tile_step_size: of nnU-Net's windows, as a part of their size.
        use_mirroring: predict mirrored images as well, as nnU-Net does.
        save_probabilities: also write ``<case>.npz`` and ``<case>.pkl``, as nnU-Net does.
        overwrite: predict every case again; False: leave out those whose outputs are there. What was adapted then is
            not gone on from, but for what a bank kept.
        traceback: show the Python traceback of each fault.

    Returns:
        0 when every case was finished, 1 when there were faults.

    Raises:
        GrataError: nnU-Net is not installed, the model or the method is refused, there is no image, or the output
            cannot be written.
    """
    started = time.perf_counter()
    flags = {"use_mirroring": use_mirroring, "save_probabilities": save_probabilities, "overwrite": overwrite}
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise GrataError(f"must be true or false, got {flag!r}.", key=name)
    if bank is not None and not site:
        raise GrataError("it keeps what is learnt by site. Name the one that the images come from by site.", key="bank")
    check_positive("tile_step_size", tile_step_size, high=1.0)
    device = check_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = load_model(model_folder, folds, checkpoint_name)
    cases, faults = _find_cases(Path(input), model)
    output = check_output_dir(output)
    if output.resolve() == Path(input).resolve():
        raise GrataError("it is the folder of the images. Name another one.", key="output")
    remove_leftovers(output)
    predictor = AdaptedPredictor(model, method, settings, windows, affine, seed, device, tile_step_size, use_mirroring)
    given = {
        "model_folder": model_folder, "input": input, "method": method, "settings": settings, "windows": windows,
        "folds": list(model.checkpoints), "checkpoint_name": checkpoint_name, "affine": affine, "seed": seed,
        "site": site, "bank": bank, "device": device, "tile_step_size": tile_step_size, "use_mirroring": use_mirroring,
    }  # fmt: skip
    keepers = {
        fold: Keeper(adapting, None if bank is None else str(Path(bank) / f"fold_{fold}"))
        for fold, adapting in predictor.methods.items()
    }
    run = _Run(predictor, keepers, output, save_probabilities, site, traceback)
    done = set() if overwrite else {case for case in cases if run.is_done(case)}
    run.start({case: files for case, files in cases.items() if case not in done})
    faults += run.faults
    summary = {
        "method": method,
        "version": __version__,
        "cases_found": len({*cases, *(fault.case for fault in faults)}),
        "cases_finished": len(done) + len(run.finished),
        "faults": faults,
        "scores": [],
        "seconds": time.perf_counter() - started,
    }
    write_summary(output / "summary.json", **summary, settings=given)
    print(format_summary(**summary, output_dir=output))
    for remark in run.remarks:
        print(f"note: {remark}")
    return 1 if faults else 0


class _Run:
    """Cases one after the other."""

    def __init__(
        self,
        predictor: AdaptedPredictor,
        keepers: Mapping[str, Keeper],
        output: Path,
        save_probabilities: bool,
        site: str | None,
        traceback: bool,
    ) -> None:
        self.predictor = predictor
        self.keepers = keepers
        self.model = predictor.model
        self.output = output
        self.save_probabilities = save_probabilities
        self.site = site
        self.traceback = traceback
        self.journal = Journal(output / JOURNAL)
        self.finished: list[str] = []
        self.faults: list[Fault] = []
        self.remarks: list[str] = []
        self._ending = self.model.dataset["file_ending"]

    def is_done(self, case: str) -> bool:
        """Whether all outputs of a case are there."""
        endings = [self._ending, *([".npz"] if self.save_probabilities else [])]
        return all((self.output / f"{case}{ending}").is_file() for ending in endings)

    def start(self, cases: Mapping[str, list[Path]]) -> None:
        """Adapt to each case and predict it."""
        # nnU-Net's ensembling and postprocessing look for these beside the predictions.
        for name, content in (("dataset.json", self.model.dataset), ("plans.json", self.model.plans.plans)):
            with atomic_write(self.output / name) as temporary:
                temporary.write_text(json.dumps(content, indent=4), encoding="utf-8")
        self.journal.keep({str(line.get("case")) for line in self.journal.lines()} - cases.keys())
        methods = self.predictor.methods
        committed: dict[str, Any] = {}
        for case, files in tqdm(cases.items(), desc=next(iter(methods.values())).name, unit="case"):
            try:
                self._case(case, files)
            except OutputError:
                raise
            # Readers, nnU-Net and networks can raise anything.
            except Exception as error:
                if self.traceback:
                    tracebacks.print_exception(error)
                self.faults.append(Fault(case, explain(error, "--traceback true")))
                tqdm.write(f"{case}: {self.faults[-1].message}")
                for fold, method in methods.items():
                    if committed:
                        method.load_state_dict(committed[fold])
                    else:
                        method.restore()
                self.journal.append({"case": case, "fault": self.faults[-1].message, "version": __version__})
            else:
                committed = {fold: method.state_dict() for fold, method in methods.items()}
                self.finished.append(case)

    def _case(self, case: str, files: list[Path]) -> None:
        data, properties = self._preprocess(files)
        lines = [self._adapt(case, fold, data) for fold in self.predictor.methods]
        self._finish(case, self.predictor.logits(data), properties, lines)

    def _adapt(self, case: str, fold: str, data: torch.Tensor) -> dict[str, Any]:
        method, started = self.predictor.methods[fold], time.perf_counter()
        self.keepers[fold].begin(data[None], [self.site] if self.site else [])
        record = merged_record(self.predictor.adapt(fold, data, self.site))
        return {
            "case": case,
            "site": self.site,
            "fold": fold,
            "method": method.name,
            "version": __version__,
            **record,
            "parameter_change": method.parameter_change(),
            "seconds": round(time.perf_counter() - started, 4),
        }

    def _preprocess(self, files: list[Path]) -> tuple[torch.Tensor, dict[str, Any]]:
        model = self.model
        preprocessor = model.configuration.preprocessor_class(verbose=False)
        try:
            data, _, properties = preprocessor.run_case(
                [str(file) for file in files], None, model.plans, model.configuration, model.dataset
            )
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise GrataError(
                f"{', '.join(file.name for file in files)}: nnU-Net cannot read or preprocess it ({reason}). Check "
                "that each file opens, and that the channels are of one size and place."
            ) from error
        return torch.from_numpy(data).to(torch.float32), properties

    def _finish(self, case: str, logits: torch.Tensor, properties: dict[str, Any], lines: list[dict[str, Any]]) -> None:
        """Export a case as nnU-Net does, keep what it taught, and only then let its segmentation take its name, which
        says that all of it is done: a finished case is never missing in the bank.
        """
        from nnunetv2.inference.export_prediction import export_prediction_from_logits

        model = self.model
        with atomic_write(self.output / f"{case}{self._ending}") as temporary:
            truncated = str(temporary).removesuffix(self._ending)
            export_prediction_from_logits(
                logits,
                properties,
                model.configuration,
                model.plans,
                model.dataset,
                truncated,
                self.save_probabilities,
            )
            for keeper in self.keepers.values():
                keeper.keep()
            for ending in (".npz", ".pkl") if self.save_probabilities else ():
                os.replace(truncated + ending, self.output / f"{case}{ending}")
            for line in lines:
                self.journal.append(line)
                if line["flags"]:
                    self.remarks.append(f"{case}, fold {line['fold']}: {', '.join(line['flags'])}")


def _find_cases(folder: Path, model: TrainedModel) -> tuple[dict[str, list[Path]], list[Fault]]:
    """Files of each case in the order of their channels, and what is wrong with others."""
    ending, channels = model.dataset["file_ending"], range(model.channels)
    try:
        files = sorted(path for path in folder.iterdir() if path.name.endswith(ending) and path.name[0] != ".")
    except OSError as error:
        raise GrataError(
            f"{folder} cannot be read ({error.strerror}). Name the folder of the images.", key="input"
        ) from error
    found: dict[str, dict[int, Path]] = {}
    faults = []
    for file in files:
        name = file.name.removesuffix(ending)
        if numbered := re.fullmatch(r"(.+)_(\d{4})", name):
            found.setdefault(numbered[1], {})[int(numbered[2])] = file
        else:
            faults.append(
                Fault(name, f"{file.name}: nnU-Net asks for the channel's number. Call it {name}_0000{ending}.")
            )
    for case, given in found.items():
        if set(given) != set(channels):
            wanted = ", ".join(f"{case}_{channel:04d}{ending}" for channel in channels)
            has = ", ".join(file.name for _, file in sorted(given.items()))
            faults.append(Fault(case, f"the model has {len(channels)} channels and needs {wanted}; there is {has}."))
    bad = {fault.case for fault in faults}
    cases = {case: [given[channel] for channel in channels] for case, given in found.items() if case not in bad}
    if not cases and not faults:
        raise GrataError(f"{folder} holds no image that is called <case>_0000{ending}.", key="input")
    return cases, faults
