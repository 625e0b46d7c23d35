"""A run over a folder of scans: a fault affects only its case, and a stopped run can be resumed."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import json
import time
import traceback as tracebacks
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from ignite.engine import Engine, Events
from monai.engines import IterationEvents, SupervisedEvaluator
from torch.utils.data import DataLoader, SequentialSampler
from tqdm import tqdm

from .. import __version__
from ..data import Discovery, Fault
from ..errors import GrataError, OutputError, RunError
from ..files import JOURNAL, OVERVIEW, atomic_write, check_output_dir, remove_leftovers
from ..handlers import AdaptationHandler, Journal
from ..report import format_summary, overview_figure, summarise_scores, write_scores, write_summary, write_volumes
from .checks import require_finite
from .configuration import STOPPED, TRACEBACK_HINT, causes, explain
from .outputs import OutputHandler

__all__ = ["AdaptationRun"]

_STATE = "state.pt"
_BEGUN = ".begun"
_TABLES = (_STATE, "scores.csv", "volumes.csv", "summary.json", OVERVIEW, JOURNAL)


class AdaptationRun:
    """A run of an evaluator over all cases that were found, with a summary at its end.

    A case that fails (in reading, adaptation, prediction or writing) is reported and leaves no trace in the network;
    the run goes on with the next case. After each case everything that the next one depends on is on the disk, in
    ``state.pt`` and the adapter bank: a run that was stopped at any moment and is resumed ends as if it had never
    stopped.

    Args:
        evaluator: evaluator that predicts one case per batch, in order, from a data loader over a
            ``monai.data.Dataset``; its handlers are ``outputs`` and then ``adaptation``.
        discovery: cases to predict, and faults of the files that are not cases.
        adaptation: handler that adapts the evaluator's network; its journal should be ``journal.jsonl`` in
            ``output_dir``.
        outputs: handler that writes the outputs of each case.
        output_dir: folder of this run; it is created if it does not exist.
        settings: plain values that a resumed run must share with the stopped one (method, seed, ...); the summary
            lists them too.
        resume: whether to go on with the run that was stopped in ``output_dir``; if there is none, a new one starts.
        overwrite: whether to remove the files of an earlier run from ``output_dir`` and start anew.
        traceback: whether to show the Python traceback of each fault.

    Raises:
        GrataError: ``output_dir`` cannot be written, is in use by another run, or holds an earlier run that is neither
            resumed nor overwritten, or that has other settings; the evaluator does not take cases one at a time and in
            order; the handlers are not attached.
    """

    def __init__(
        self,
        evaluator: SupervisedEvaluator,
        discovery: Discovery,
        adaptation: AdaptationHandler,
        outputs: OutputHandler,
        output_dir: str | Path,
        settings: Mapping[str, Any] | None = None,
        resume: bool = False,
        overwrite: bool = False,
        traceback: bool = False,
    ) -> None:
        self.evaluator = evaluator
        self.discovery = discovery
        self.adaptation = adaptation
        self.outputs = outputs
        self.method = adaptation.method
        self.output_dir = check_output_dir(output_dir)
        self.settings = json.loads(json.dumps(dict(settings or {}), default=str))
        self.traceback = traceback
        self.finished: list[str] = []
        self.faults: list[Fault] = list(discovery.faults)
        self._committed: dict[str, Any] | None = None
        self._stopped_by: RunError | None = None
        self._source_hash = _hash(self.method.network)
        self._check_evaluator()
        # Held until the process ends, however it ends; the file stays, because removing it would let two runs in.
        self._lock = FileLock(self.output_dir / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise GrataError(
                f"another run is writing to {self.output_dir}. Wait for it, or choose another folder.", key="output_dir"
            ) from error
        try:
            self._open(resume, overwrite)
        except BaseException:
            self._lock.release()
            raise

    def run(self) -> int:
        """Run all cases that are not finished yet, write the tables, print the summary.

        Returns:
            Exit status: 0 if every case was finished, 1 if there were faults.

        Raises:
            GrataError: there is no scan.
        """
        if not self.discovery.cases and not self.discovery.faults:
            raise GrataError(
                "no scan was found in it. Give a folder with NIfTI files or DICOM series.", key="dataset_dir"
            )
        try:
            return self._run()
        finally:
            self._lock.release()

    def _run(self) -> int:
        started = time.perf_counter()
        engine = self.evaluator
        # This run reports a fault; the engine's log would repeat it with the whole chain of transforms.
        engine.logger.disabled = True
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, require_finite)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._begin)
        # The bank is written after the state, from which a resumed run completes a bank that was not written.
        engine.remove_event_handler(self.adaptation.keep, Events.ITERATION_COMPLETED)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._commit)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fault)
        pending = [c for c in self.discovery.cases if c["case"] not in self.finished]
        with tqdm(total=len(pending), desc=f"{self.method.name}", unit="case") as self._bar:
            while pending and self._stopped_by is None:
                # A fault leaves the loader's iterator behind; the next workers would inherit it and shut down its own.
                engine._dataloader_iter = None
                gc.collect()
                self._dataset.data = pending
                engine.state.epoch_length = len(pending)
                self._case_failed = False
                engine.run()
                done = {*self.finished, *(fault.case for fault in self.faults)}
                pending = [c for c in pending if c["case"] not in done]
        return self._close(time.perf_counter() - started)

    def _check_evaluator(self) -> None:
        engine, loader = self.evaluator, self.evaluator.data_loader
        if not isinstance(loader, DataLoader):
            raise GrataError(f"must be a DataLoader over a Dataset, got a {type(loader).__name__}.", key="dataloader")
        if loader.batch_size != 1:
            raise GrataError(
                f"cases are taken one at a time here, got {loader.batch_size}. Leave it at 1.",
                key="dataloader#batch_size",
            )
        if not isinstance(loader.sampler, SequentialSampler):
            raise GrataError(
                "cases are taken in order here, so that a run can be resumed. Leave it false.", key="dataloader#shuffle"
            )
        adapts = engine.has_event_handler(self.adaptation.adapt, Events.ITERATION_STARTED)
        writes = engine.has_event_handler(self.outputs.write, Events.ITERATION_COMPLETED)
        for part, attached in ((self.adaptation, adapts), (self.outputs, writes)):
            if not attached:
                raise GrataError(
                    f"{type(part).__name__} is not among the evaluator's handlers. Give @outputs and @adaptation.",
                    key="handlers",
                )
        self._dataset: Any = loader.dataset

    def _open(self, resume: bool, overwrite: bool) -> None:
        state_file, journal = self.output_dir / _STATE, self.output_dir / JOURNAL
        if resume and overwrite:
            raise GrataError(
                "resume goes on with the earlier run, overwrite removes it. Give one of them.", key="resume, overwrite"
            )
        if resume and state_file.is_file():
            self._resume(_read_state(state_file))
        elif overwrite:
            self._remove_earlier_run()
        elif resume and self._finished_without_state():
            raise GrataError(
                f"the run in {self.output_dir} has lost its {_STATE}. Put it back, start anew with "
                "--overwrite true instead, or choose another folder.",
                key="resume",
            )
        elif not resume and (state_file.exists() or journal.exists()):
            raise GrataError(
                f"{self.output_dir} holds the results of an earlier run. Add --resume true to go on with "
                "it, --overwrite true to replace it, or choose another folder.",
                key="output_dir",
            )
        self._remove_unfinished()
        remove_leftovers(self.output_dir)
        if self.adaptation.journal is not None:
            self.adaptation.journal.keep(set(self.finished))

    def _finished_without_state(self) -> bool:
        """Return whether cases were finished: a single line may come from a run killed before its first commit."""
        lines = [line for line in Journal(self.output_dir / JOURNAL).lines() if "fault" not in line]
        return len(lines) > 1 or (len(lines) == 1 and (self.output_dir / "summary.json").exists())

    def _resume(self, state: Mapping[str, Any]) -> None:
        before = json.loads(state["settings"])
        changed = sorted(key for key in {*before, *self.settings} if before.get(key) != self.settings.get(key))
        if changed or state["source"] != self._source_hash:
            other = f"other settings ({', '.join(changed)})" if changed else "other weights"
            raise GrataError(
                f"the run in {self.output_dir} had {other}. Give the same, or start anew in another output_dir.",
                key="resume",
            )
        self.finished = list(state["finished"])
        self.outputs.scores = json.loads(state["scores"])
        self.outputs.volumes = json.loads(state["volumes"])
        self.adaptation.flags = {case: tuple(flags) for case, flags in json.loads(state["flags"]).items()}
        self._committed = state["method"]
        self.method.load_state_dict(self._committed)
        self.adaptation.keeper.resume(json.loads(state.get("kept", "null")))

    def _remove_earlier_run(self) -> None:
        """Remove the files of an earlier run, and nothing else."""
        journal = Journal(self.output_dir / JOURNAL)
        cases = {str(line["case"]) for line in journal.lines() if "case" in line}
        for path in (*(self.output_dir / name for name in _TABLES), *(p for c in cases for p in self.outputs.paths(c))):
            path.unlink(missing_ok=True)

    def _begin(self, engine: Engine) -> None:
        """Note the case whose outputs are about to be written, so that they are found if the run is killed."""
        batch: Any = engine.state.batch
        with atomic_write(self.output_dir / _BEGUN) as temporary:
            temporary.write_text("\n".join(map(str, batch["case"])), encoding="utf-8")

    def _remove_unfinished(self) -> None:
        begun = self.output_dir / _BEGUN
        if begun.is_file():
            for case in begun.read_text(encoding="utf-8").splitlines():
                if case not in self.finished:
                    self.outputs.remove(case)
            begun.unlink()

    def _commit(self, engine: SupervisedEvaluator) -> None:
        batch: Any = engine.state.batch
        finished = [*self.finished, *(item["case"] for item in batch)]
        method = self.method.state_dict()
        state = {
            "method": method,
            "finished": finished,
            "scores": json.dumps(self.outputs.scores),
            "volumes": json.dumps(self.outputs.volumes),
            "flags": json.dumps(self.adaptation.flags),
            "kept": json.dumps(self.adaptation.keeper.stage(method)),
            "settings": json.dumps(self.settings, sort_keys=True),
            "source": self._source_hash,
        }
        # On a full disk torch.save would raise a RuntimeError about its archive.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        with atomic_write(self.output_dir / _STATE) as temporary:
            temporary.write_bytes(buffer.getvalue())
        self.finished, self._committed = finished, method
        self._bar.update(len(batch))
        try:
            self.adaptation.keep(engine)
        except OutputError as error:
            self._stopped_by = error
            self.faults.append(Fault(finished[-1], f"it is finished, but its adaptation could not be saved: {error}"))
            engine.terminate()

    def _fault(self, engine: Engine, error: Exception) -> None:
        # Engines hand interruptions to their handlers too, and an interrupted library may raise an error of its own.
        if self._case_failed or any(not isinstance(cause, Exception) for cause in causes(error)):
            raise error
        self._case_failed = True
        done = {*self.finished, *(fault.case for fault in self.faults)}
        case = next(c["case"] for c in self._dataset.data if c["case"] not in done)
        if self.traceback:
            tracebacks.print_exception(error)
        message = explain(error, TRACEBACK_HINT)
        tqdm.write(f"{case}: {message}")
        if stopped := next((cause for cause in causes(error) if isinstance(cause, RunError)), None):
            self._stopped_by = stopped
        with contextlib.suppress(OSError):
            self.outputs.remove(case)
            (self.output_dir / _BEGUN).unlink(missing_ok=True)
        self.faults.append(Fault(case, message))
        self._bar.update(1)
        if self._committed is not None:
            self.method.load_state_dict(self._committed)
        else:
            self.method.restore()
        if self.adaptation.journal is not None and self._stopped_by is None:
            try:
                self.adaptation.journal.append({"case": case, "fault": message, "version": __version__})
            except OutputError as unwritten:
                self._stopped_by = unwritten
                self.faults.append(Fault(case, str(unwritten)))

    def _close(self, seconds: float) -> int:
        scores, volumes = (
            [row for case in sorted(rows) for row in rows[case]] for rows in (self.outputs.scores, self.outputs.volumes)
        )
        found = {*self.finished, *(case["case"] for case in self.discovery.cases)}
        found |= {fault.case for fault in self.faults}
        summary: dict[str, Any] = {
            "method": self.method.name,
            "version": __version__,
            "cases_found": len(found),
            "cases_finished": len(self.finished),
            "faults": self.faults,
            "scores": summarise_scores(scores),
        }
        unwritten = None
        try:
            write_volumes(volumes, self.output_dir / "volumes.csv")
            if scores:
                write_scores(scores, self.output_dir / "scores.csv")
                overview_figure(scores, self.output_dir / OVERVIEW)
            (self.output_dir / _BEGUN).unlink(missing_ok=True)
            write_summary(self.output_dir / "summary.json", **summary, seconds=seconds, settings=self.settings)
        except GrataError as error:
            unwritten = error
        print(format_summary(**summary, seconds=seconds, output_dir=self.output_dir))
        for remark in self.adaptation.remarks():
            print(f"note: {remark}")
        if unwritten is not None:
            print(f"error: {unwritten}")
        if self._stopped_by is not None:
            left = sum(case["case"] not in self.finished for case in self.discovery.cases)
            print(f"stopped early: {left} cases are left. {STOPPED}")
        return 1 if self.faults or unwritten else 0


def _hash(network: torch.nn.Module) -> str:
    """Return the SHA-256 of all source weights: a run is never resumed with another network."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read_state(path: Path) -> dict[str, Any]:
    # A damaged archive or pickle can raise almost any exception.
    with contextlib.suppress(Exception):
        state = torch.load(path, weights_only=True)
        if {"method", "finished", "scores", "volumes", "flags", "settings", "source"} <= state.keys():
            return state
    raise GrataError(
        f"{path} is damaged or not the state of a run. Start anew with --overwrite true instead.", key="resume"
    )
