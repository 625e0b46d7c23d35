"""A run over a folder of scans that can be stopped at any moment and resumed."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from torch.utils.data import DataLoader, SequentialSampler

from .._version import __version__
from ..console import say
from ..data import Discovery, Fault
from ..data.identifiers import is_hidden
from ..errors import GrataError, OutputError, RunError
from ..files import (
    CASES,
    FIGURES,
    JOURNAL,
    OVERVIEW,
    PLACES,
    SEGMENTATIONS,
    atomic_write,
    check_output_dir,
    is_file_name,
    is_inside,
    locked,
    remove_file,
    remove_leftovers,
    shortened,
)
from ..quality import Judgement, exit_status
from ..report import (
    case_rows,
    format_summary,
    overview_figure,
    summarise_scores,
    verdict_lines,
    write_cases,
    write_scores,
    write_summary,
    write_volumes,
)
from ..report.tables import cell
from ..session import Case, Journal, QualityGuard, Session, explain
from ..session.attempts import Attempts
from ..session.faults import STOPPED, TRACEBACK_HINT
from ..states import read_state, write_state
from .adaptation import AdaptationHandler
from .earlier import changed_settings
from .outputs import OutputHandler
from .run import EvaluatorRun

__all__ = ["AdaptationRun"]

_STATE = "state.pt"
_BEGUN = ".begun"
_REMOVING = ".removing"
_TABLES = (_STATE, CASES, "scores.csv", "volumes.csv", "summary.json", OVERVIEW, PLACES, JOURNAL)


class AdaptationRun(EvaluatorRun):
    """A run of an evaluator over all cases that were found, with a summary at its end.

    Faults are those of an :class:`EvaluatorRun`. After each case everything that the next one depends on is on the
    disk, in ``state.pt`` and the adapter bank: a run that was stopped at any moment and is resumed ends as if it had
    never stopped. A case during which the process was killed twice is reported and passed over.

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

    hint: ClassVar[str] = TRACEBACK_HINT
    unit: ClassVar[str] = "case"

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
        self.discovery = discovery
        self.session = adaptation.session
        self.outputs = outputs
        self.output_dir = check_output_dir(output_dir)
        self.settings = json.loads(json.dumps(dict(settings or {}), default=str))
        self.finished: list[str] = []
        _check_evaluator(evaluator, adaptation, outputs)
        if not resume:
            # before an earlier run is removed
            self.session.keeper.check_save_to()
        super().__init__(evaluator, adaptation, traceback)
        outputs.judgements = self._judgements
        self.faults = [Fault(fault.case, self._with_place(fault.case, fault.message)) for fault in discovery.faults]
        self._stopped_by: RunError | None = None
        self._source_hash = _hash(self.session.network)
        self._notes: list[str] = []
        self._held = contextlib.ExitStack()
        self._held.enter_context(locked(self.output_dir))
        try:
            self._open(resume, overwrite)
        except BaseException:
            self._held.close()
            raise

    def run(self) -> int:
        """Run all cases that are not finished yet, write the tables, print the summary.

        Returns:
            Exit status: 0 if every case was finished and none rejected, 1 if there were faults, 3
            (:data:`grata.quality.REJECTED`) if there were none and the guard rejected a case.

        Raises:
            GrataError: there is no scan, or a fault belongs to no case.
        """
        if not self.discovery.cases and not self.discovery.faults:
            raise GrataError(
                "no scan was found in it. Give a folder with NIfTI files or DICOM series.", key="dataset_dir"
            )
        started = time.perf_counter()
        try:
            self._attach()
            self._write_places()
            self.session.store = self._store
            try:
                with self._attempts.running():
                    self._run_all([[index] for index in self._left()])
            except BaseException:
                # nobody should have to read segmentations without their verdicts
                with contextlib.suppress(GrataError):
                    self._write_cases()
                raise
            return self._close(time.perf_counter() - started)
        finally:
            self._held.close()

    def _left(self) -> list[int]:
        """Return the cases to do, and report those during which the process ended too often."""
        done = set(self.finished)
        left = [index for index, name in self._names.items() if name not in done]
        for index in left:
            again = f"remove its line from {self.output_dir / _BEGUN}, or start anew with --overwrite true"
            try:
                self._attempts.check(self._names[index], again)
            except GrataError as error:
                self._fail(index, error)
        return [index for index in left if not self._attempts.gave_up(self._names[index])]

    def _begin(self, engine: Engine) -> None:
        super()._begin(engine)
        for name in self.handler.names:
            self._attempts.begin(name)

    def _next(self, engine: Engine) -> None:
        self._attempts.end()
        super()._next(engine)

    def _named(self, indices: list[int]) -> dict[int, str]:
        dataset: Any = self._dataset
        return {index: dataset.data[index]["case"] for index in indices}

    def _judgements(self) -> dict[str, Judgement]:
        """Return what the guard says of the present case."""
        return dict(zip(self.handler.names, self.handler.judgements))

    def _check_images(self) -> None:
        """Leave it to :meth:`run`: files that are no scan are reported even where there is no other."""

    def _open(self, resume: bool, overwrite: bool) -> None:
        state_file, journal = self.output_dir / _STATE, self.output_dir / JOURNAL
        if resume and overwrite:
            raise GrataError(
                "resume goes on with the earlier run, overwrite removes it. Give one of them.", key="resume, overwrite"
            )
        self._check_folders()
        self._attempts = Attempts(self.output_dir / _BEGUN)
        if overwrite or (self.output_dir / _REMOVING).exists():
            self._remove_earlier_run()
        elif not resume and (state_file.exists() or journal.exists()):
            raise GrataError(
                f"{self.output_dir} holds the results of an earlier run. Add --resume true to go on with "
                "it, --overwrite true to replace it, or choose another folder.",
                key="output_dir",
            )
        elif state_file.is_file():
            self._go_on(state_file)
        else:
            self._check_state_is_not_lost()
        self._remove_unfinished()
        if self._attempts.pending():
            # ahead of time, a worker might read the case that ends the process
            self._workers = 0
        if self.session.journal is not None:
            self._keep_lines(self.session.journal)

    def _check_folders(self) -> None:
        """Remove what killed processes left, and check that nothing is in the way of what this run writes."""
        own = {*_TABLES, _BEGUN, _REMOVING}
        for name in sorted(own):
            _check_place(self.output_dir / name, "file", os.path.isfile)
        for name in (SEGMENTATIONS, FIGURES):
            _check_place(self.output_dir / name, "folder", os.path.isdir)
        remove_leftovers(self.output_dir, own.__contains__)
        for name in (SEGMENTATIONS, FIGURES):
            if not is_inside(self.output_dir, self.output_dir / name / JOURNAL):
                raise GrataError(
                    f"{self.output_dir / name} is a link out of the output folder, where nothing is written or "
                    "removed. Remove the link, or name the folder that it leads to.",
                    key="output_dir",
                )
            remove_leftovers(self.output_dir / name)

    def _keep_lines(self, journal: Journal) -> None:
        if damaged := journal.damaged():
            self._notes.append(f"lines of {JOURNAL} that are damaged or cut short were left out: {damaged}.")
        journal.keep(set(self.finished))
        if lost := len({*self.finished} - {line.get("case") for line in journal.lines()}):
            self._notes.append(f"finished cases without a line in {JOURNAL}, which has lost it: {lost}.")

    def _go_on(self, state_file: Path) -> None:
        try:
            self._resume(_read_state(state_file))
        except GrataError:
            raise
        # an altered state can make a method or an optimizer raise anything
        except Exception as error:
            raise _damaged(state_file) from error
        self._note_lost_outputs()

    def _note_lost_outputs(self) -> None:
        """Note the finished cases whose segmentation somebody has taken away since."""
        judged = self.session.judgements
        kept = [case for case in self.finished if case not in judged or not judged[case].withheld]
        # the figure, the last of them, is no result
        lost = [case for case in kept if not any(map(os.path.exists, self.outputs.paths(case)[:-1]))]
        if lost:
            shown = ", ".join(map(shortened, lost[:10]))
            self._notes.append(
                f"finished cases without a segmentation, which was removed since: {shown}"
                f"{', …' * (len(lost) > 10)} ({len(lost)}). Start anew with --overwrite true to have them again."
            )

    def _check_state_is_not_lost(self) -> None:
        lines = [line for line in Journal(self.output_dir / JOURNAL).lines() if "fault" not in line]
        # a single line may come from a run that ended before its first commit
        if len(lines) > 1 or (len(lines) == 1 and self._has_finished(str(lines[0].get("case")))):
            raise GrataError(
                f"the run in {self.output_dir} has lost its {_STATE}. Put it back, start anew with "
                "--overwrite true instead, or choose another folder.",
                key="resume",
            )

    def _has_finished(self, case: str) -> bool:
        """Return whether a case was finished, as far as it can be known without the state."""
        if case in self._attempts.counts:
            return False
        with contextlib.suppress(OSError, ValueError, AttributeError):
            summary = json.loads((self.output_dir / "summary.json").read_text(encoding="utf-8"))
            return bool(summary.get("cases_finished"))
        return False

    def _resume(self, state: Mapping[str, Any]) -> None:
        changed = changed_settings(json.loads(state["settings"]), self.settings)
        judged = json.loads(state.get("judgements", "{}"))
        known = _calibration_of(self.session)
        if not changed and judged and state.get("calibration", known) != known:
            # two standards would stand in one table of verdicts
            changed = ["quality"]
        if changed or state["source"] != self._source_hash:
            other = f"other settings ({', '.join(changed)})" if changed else "other weights"
            raise GrataError(
                f"the run in {self.output_dir} had {other}. Give the same, or start anew in another output_dir.",
                key="resume",
            )
        if (threads := state.get("threads", torch.get_num_threads())) != torch.get_num_threads():
            self._notes.append(
                f"the stopped run computed with {threads} threads, this one with {torch.get_num_threads()}: results "
                "may differ in their last digits from those of a run that was not stopped."
            )
        self.finished = list(state["finished"])
        self.outputs.scores = json.loads(state["scores"])
        self.outputs.volumes = json.loads(state["volumes"])
        self.session.flags |= {case: tuple(flags) for case, flags in json.loads(state["flags"]).items()}
        self.session.judgements |= {case: Judgement.of(values) for case, values in judged.items()}
        self.session.resume(state["method"], json.loads(state.get("kept", "null")))

    def _remove_earlier_run(self) -> None:
        """Remove the files of an earlier run, and nothing else; the next start completes what a kill leaves of it."""
        marker = self.output_dir / _REMOVING
        cases = {*self._attempts.counts, *_lines(marker)}
        cases |= {str(line["case"]) for line in Journal(self.output_dir / JOURNAL).lines() if "case" in line}
        with contextlib.suppress(GrataError):
            cases |= set(map(str, _read_state(self.output_dir / _STATE)["finished"]))
        with atomic_write(marker) as temporary:
            temporary.write_text("\n".join(sorted(cases)), encoding="utf-8", errors="replace")
        self._remove_outputs(cases)
        for name in (*_TABLES, _BEGUN):
            remove_file(self.output_dir / name)
        self._attempts.counts.clear()
        remove_file(marker)

    def _remove_unfinished(self) -> None:
        """Remove the outputs of cases that a stopped process had begun."""
        left = set(self._names.values()).difference(self.finished)
        self._remove_outputs(set(self._attempts.counts).difference(self.finished))
        for case in set(self._attempts.counts).difference(left):
            self._attempts.forget(case)

    def _remove_outputs(self, cases: Iterable[str]) -> None:
        odd = [case for case in cases if not is_file_name(case)]
        for case in sorted({*cases}.difference(odd)):
            self.outputs.remove(case)
        for case in odd:
            self._attempts.forget(case)
        if odd:
            self._notes.append(
                f"{len(odd)} names of cases in {JOURNAL}, {_STATE} or {_BEGUN} are damaged: they lead out of the "
                "folder of the outputs or are too long for a file. Nothing was removed by them."
            )

    def _store(self, case: Case, state: Mapping[str, Any], kept: Mapping[str, Any] | None) -> None:
        """Write what a resumed run goes on from."""
        finished = [*self.finished, *case.names]
        content = {
            "method": dict(state),
            "finished": finished,
            "scores": json.dumps(self.outputs.scores),
            "volumes": json.dumps(self.outputs.volumes),
            "flags": json.dumps(self.session.flags),
            "judgements": json.dumps({case: j.as_dict() for case, j in self.session.judgements.items()}),
            "kept": json.dumps(kept),
            "settings": json.dumps(self.settings, sort_keys=True),
            "source": self._source_hash,
            "calibration": _calibration_of(self.session),
            "threads": torch.get_num_threads(),
        }
        write_state(self.output_dir / _STATE, content)
        self.finished = finished

    def _fail(self, index: int, error: Exception) -> None:
        try:
            super()._fail(index, error)
        except OutputError as unwritten:
            self._stopped_by = unwritten
            self.faults.append(Fault(self._names[index], str(unwritten)))

    def _stop(self, index: int | None, error: Exception, reason: RunError) -> None:
        self._stopped_by = reason
        if index is not None:
            self._report(index, error)
        else:
            lost = f"it is finished, but its adaptation could not be saved: {reason}"
            self.faults.append(Fault(self.finished[-1], lost))

    def _report(self, index: int, error: Exception) -> str:
        self._attempts.end()
        with contextlib.suppress(GrataError):
            self.outputs.remove(self._names[index])
        return super()._report(index, error)

    def _explained(self, index: int, error: Exception) -> str:
        # the messages of this project's readers name a file, and must: below the folder that was given
        dataset: Any = self._dataset
        image, name = dataset.data[index].get("image"), self._names[index]
        message = explain(error, self.hint)
        if isinstance(image, str):
            message = message.replace(image, self.discovery.paths.get(name, image))
        return self._with_place(name, message)

    def _with_place(self, case: str, message: str) -> str:
        """Return the message of a fault, and where the path stands that it does not show."""
        if is_hidden(message) and case in self.discovery.places:
            return f"{message} {PLACES} in the output folder names the file."
        return message

    def _write_places(self) -> None:
        """Write where each case and fault lies, for the eyes of this user alone: the paths may name patients."""
        with atomic_write(self.output_dir / PLACES) as temporary:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            # A name that is not UTF-8 is written as it is.
            with open(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows(
                    [("case", "path"), *(map(cell, place) for place in sorted(self.discovery.places.items()))]
                )

    def _close(self, seconds: float) -> int:
        scores = _by_case(self.outputs.scores)
        found = {*self.finished, *(case["case"] for case in self.discovery.cases)}
        found |= {fault.case for fault in self.faults}
        summary: dict[str, Any] = {
            "method": self.session.method.name,
            "version": __version__,
            "cases_found": len(found),
            "cases_finished": len(self.finished),
            "faults": self.faults,
            "scores": summarise_scores(scores),
        }
        judgements = {case: self.session.judgements[case] for case in sorted(self.session.judgements)}
        self._attempts.close()
        unwritten = [
            *_failures(lambda: self._write_tables(scores)),
            *_failures(
                lambda: write_summary(
                    self.output_dir / "summary.json", **summary, seconds=seconds, settings=self.settings
                )
            ),
        ]
        say(format_summary(**summary, seconds=seconds, output_dir=self.output_dir))
        for line in verdict_lines(judgements):
            say(line)
        for remark in (*self.discovery.notes, *self._notes, *self.session.remarks()):
            say(f"note: {remark}")
        for message in dict.fromkeys(unwritten):
            say(f"error: {message} {STOPPED}")
        if self._stopped_by is not None:
            left = sum(case["case"] not in self.finished for case in self.discovery.cases)
            say(f"stopped early: {left} cases are left. {STOPPED}")
        return exit_status(bool(self.faults or unwritten), judgements.values())

    def _write_tables(self, scores: list[dict[str, Any]]) -> None:
        write_volumes(_by_case(self.outputs.volumes), self.output_dir / "volumes.csv")
        self._write_cases()
        if scores:
            write_scores(scores, self.output_dir / "scores.csv")
            overview_figure(scores, self.output_dir / OVERVIEW)

    def _write_cases(self) -> None:
        judgements = self.session.judgements
        if judgements or (self.faults and isinstance(self.session.guard, QualityGuard)):
            sites = {case["case"]: case.get("site") for case in self.discovery.cases}
            rows = case_rows(judgements, self.faults, sites, self.discovery.paths, self.outputs.volumes)
            write_cases([rows[case] for case in sorted(rows)], self.output_dir / CASES)


def _failures(write: Callable[[], None]) -> list[str]:
    """Return what went wrong when a table or a figure of all cases was written; it must not cost the others."""
    try:
        write()
    except Exception as error:  # noqa: BLE001
        return [explain(error, TRACEBACK_HINT)]
    return []


def _by_case(rows: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the rows of all cases, in the order of their names."""
    return [row for case in sorted(rows) for row in rows[case]]


def _check_evaluator(engine: SupervisedEvaluator, adaptation: AdaptationHandler, outputs: OutputHandler) -> None:
    loader = engine.data_loader
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
    adapts = engine.has_event_handler(adaptation.adapt, Events.ITERATION_STARTED)
    writes = engine.has_event_handler(outputs.write, Events.ITERATION_COMPLETED)
    for part, attached in ((adaptation, adapts), (outputs, writes)):
        if not attached:
            raise GrataError(
                f"{type(part).__name__} is not among the evaluator's handlers. Give @outputs and @adaptation.",
                key="handlers",
            )


def _check_place(path: Path, kind: str, is_kind: Callable[[Path], bool]) -> None:
    """Check that nothing else lies where a run writes: found at the first case, or the last, it would cost all of them.

    Raises:
        GrataError: something does.
    """
    if os.path.lexists(path) and not is_kind(path):
        found = "a link that does not lead to one" if path.is_symlink() else f"not a {kind}"
        raise GrataError(
            f"{path} is {found}, and a run writes a {kind} there. Remove it, or name another folder.", key="output_dir"
        )


def _calibration_of(session: Session) -> str:
    """Return the SHA-256 of what the guard knows of the network; empty: nothing, or there is no guard."""
    calibration = session.guard.calibration if isinstance(session.guard, QualityGuard) else None
    return "" if calibration is None else hashlib.sha256(repr(calibration).encode()).hexdigest()


def _hash(network: torch.nn.Module) -> str:
    """Return the SHA-256 of all source weights: a run is never resumed with another network."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []


def _read_state(path: Path) -> dict[str, Any]:
    # A damaged archive or pickle can raise almost any exception.
    with contextlib.suppress(Exception):
        state: dict[str, Any] = read_state(path)
        if {"method", "finished", "scores", "volumes", "flags", "settings", "source"} <= state.keys():
            return state
    raise _damaged(path)


def _damaged(path: Path) -> GrataError:
    return GrataError(
        f"{path} is damaged or not the state of a run. Start anew with --overwrite true instead.", key="resume"
    )
