"""Run one job: the method gets images one after the other, and only the scorer gets labels."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from monai.networks import eval_mode
from monai.utils import set_determinism

from ..bundles.bundle import Case
from ..data.phases import is_unlabelled
from ..errors import GrataError, RunError
from ..machine import keep_pages
from ..quality import UNEXPECTED
from ..session import Case as SessionCase
from ..session.faults import explain
from ..session.session import UNLIKE_TRAINING
from .bundle import BenchmarkBundle
from .jobs import Job
from .metrics import score
from .part import Part
from .protocols import Item

__all__ = ["MEASURED", "run_job"]

MEASURED = ("seconds", "seconds_predict", "seconds_judge", "peak_memory_mib", "cold")
"""Columns of measurements, which differ from run to run; all other columns are the same when a run is repeated.
Measurements are empty for a repeated image whose result was reused.
"""

_WAIT_FOR_PREDECESSOR = 60
"""Seconds to wait for a worker whose parent was killed; it ends by itself within moments."""


def run_job(job: Job, parts: Path, advance: Callable[[], None], own_process: bool = False) -> None:
    """Run what is left of a job, after setting torch's threads, all random generators and MONAI's determinism for it.

    Args:
        job: job to run.
        parts: folder of all parts.
        advance: function called after each image.
        own_process: whether this process ends with the job. Only then may its allocator keep pages, since that cannot
            be undone.

    Raises:
        GrataError: the network or the method cannot be made.
        OutputError: the folder cannot be written.
    """
    part = Part(parts, job.name, job.fingerprint)
    part.lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(part.lock, timeout=_WAIT_FOR_PREDECESSOR), part.attempts.running():
        rows, state = part.open()
        if len(rows) == len(job.items) and part.settled:
            return
        torch.set_num_threads(job.threads)
        set_determinism(job.seed)
        runner = _Runner(job)
        if own_process and runner.bundle.keeps_pages:
            keep_pages()
        runner.resume(rows, state, part.kept)
        _go_on(runner, part, rows, advance)
        part.settle()
        part.attempts.close()


def _go_on(runner: _Runner, part: Part, rows: Sequence[Mapping[str, Any]], advance: Callable[[], None]) -> None:
    """Do the images after the finished rows."""
    job = runner.job
    done = {(row["target"], row["case"]): row for row in rows}
    for position in range(len(rows), len(job.items)):
        item = job.items[position]
        earlier = done.get((item.site, item.case)) if runner.each_for_itself else None
        if earlier is not None:
            again = {"position": position, "round": item.round, "reset": runner.session.episodic}
            row = {key: again.get(key, value) for key, value in earlier.items() if key not in MEASURED}
            label_map = part.read_label_map(earlier["position"])
            _write(part, position, row, label_map if job.keep_label_maps else None)
            runner.commit(part, position)
        else:
            done[item.site, item.case] = runner.step(part, position)
        advance()


def _write(part: Part, position: int, row: Mapping[str, Any], label_map: np.ndarray | None) -> None:
    if label_map is not None:
        part.write_label_map(position, label_map)
    part.append(row)


class _Runner:
    """The network, the sites and the method of one job, with the method's state after the last image."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.bundle = BenchmarkBundle(job.bundle, job.source_overrides, f"sources#{job.source}")
        self.sites = {
            site: BenchmarkBundle(job.bundle, {**job.source_overrides, **overrides}, f"targets#{site}")
            for site, overrides in job.site_overrides.items()
        }
        self.session = self.bundle.make_session(job.row, self.bundle.make_network(), job.seed, job.name)
        self.session.store = self._store
        self._kept: Mapping[str, Any] | None = None
        self._last_unreset = max((n for n, item in enumerate(job.items) if not item.reset), default=0)
        self._cold = True

    @property
    def each_for_itself(self) -> bool:
        """Whether no image influences the result of another, so that the result of a repeated image can be reused."""
        alone = self.session.episodic or not self.session.method.learns
        # a guard goes by what it saw of the stream
        return alone and self.session.guard is None

    def _goes_on_after(self, position: int) -> bool:
        """Return whether images after this position depend on the session's state after it, or a later run does."""
        goes_on = not self.session.episodic or self.session.guard is not None
        return self.session.keeper.works or (goes_on and position < self._last_unreset)

    def resume(
        self, rows: Sequence[Mapping[str, Any]], state: Mapping[str, Any] | None, kept: Mapping[str, Any] | None
    ) -> None:
        """Continue after the rows of an earlier process, from the state that it left, if any."""
        if state is not None:
            self._kept = kept
            self.session.resume(state, kept)
        elif self.session.episodic and any("flags" in row for row in rows):
            # The next image returns to the source network, so its row must show a reset, not a first start.
            self.session.load_state_dict(self.session.state_dict() | {"batches": 1})
        elif not rows:
            self.session.keeper.check_new()

    def step(self, part: Part, position: int) -> dict[str, Any]:
        """Do the image at a position, write its row and its label map, and return the row."""
        self._part, self._position = part, position
        item = self.job.items[position]
        case, name = self.job.cases[item.site][item.case], f"{item.site}/{item.case}"
        row: dict[str, Any] = {
            "protocol": self.job.protocol,
            "source": self.job.source,
            "target": item.site,
            "method": self.job.row.name,
            "seed": self.job.seed,
            "stream": self.job.stream,
            "round": item.round,
            "position": position,
            "case": item.case,
            "error": "",
        }
        try:
            if "fault" in case:
                raise GrataError(case["fault"])
            part.attempts.check(name, f"remove the files of this job, {part.name}.*, from the folder of the parts")
            part.attempts.begin(name)
            row = self._finish(row, item, case)
            part.attempts.end()
            return row
        except RunError:
            raise
        # An unreadable image, or a method that fails on one image, must not end the stream.
        except Exception as error:  # noqa: BLE001
            row |= {"error": self._message(error, item)}
        part.attempts.end()
        part.append(row)
        self.commit(part, position)
        return row

    def commit(self, part: Part, position: int) -> None:
        """Count the row at a position as finished, where no case of the session does so."""
        known = self._kept is not None or not self.session.keeper.works
        state = self.session.state_dict() if known and self._goes_on_after(position) else None
        part.commit(position + 1, state, self._kept)

    def _store(self, case: SessionCase, state: Mapping[str, Any], kept: Mapping[str, Any] | None) -> None:
        self._kept = kept
        self._part.commit(self._position + 1, state if self._goes_on_after(self._position) else None, kept)

    def _finish(self, row: dict[str, Any], item: Item, case: Case) -> dict[str, Any]:
        """Adapt to an image, predict it, and write its row: the image is finished, whatever becomes of its scores."""
        site = self.sites[item.site]
        image = site.read_image(case)
        tensor = image["image"]
        images = (tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor)[None].to(self.bundle.device)
        precision = torch.autocast("cuda") if self.bundle.amp else contextlib.nullcontext()
        network = self.session.network
        with self.session.case(images, item.case, site.site or item.site, unlike=image.get(UNEXPECTED)) as adapting:
            if item.reset:
                self.session.restore()
            with precision:
                adapting.adapt(self.bundle.inferer)
            with eval_mode(network), precision:
                logits = adapting.judge(self.bundle.inferer(images, network))[0].float()
            labels, probabilities = site.postprocess(image, logits, self.job.metrics.space)
            row |= _columns(adapting.record, image.get(UNEXPECTED)) | {"cold": self._cold}
            # Labels are read only from here on, and whatever happens to them has no effect on the method.
            try:
                row |= self._score(item, case, image, labels, probabilities)
            except Exception as error:  # noqa: BLE001
                row["error"] = self._message(error, item)
            self._cold = False
            _write(self._part, self._position, row, labels if self.job.keep_label_maps else None)
        return row

    def _score(
        self, item: Item, case: Case, image: Mapping[str, Any], labels: np.ndarray, probabilities: np.ndarray
    ) -> dict[str, float]:
        if "label" not in case:
            return {}
        site, metrics = self.sites[item.site], self.job.metrics
        label = site.read_label(case, image, metrics.space)
        if is_unlabelled(case, label):
            return {}
        spacing = site.spacing(case, image, metrics.space)
        scored = self.job.scored.get(item.site)
        return score(labels, probabilities, label, site.regions, spacing, metrics.empty, scored)

    def _message(self, error: Exception, item: Item) -> str:
        return self.sites[item.site].without_folders(explain(error), self.job.cases[item.site][item.case])


def _columns(record: Mapping[str, Any], unlike: str | None) -> dict[str, Any]:
    """Return the columns that the record of a case gives: those of one value, and the change of the parameters.

    Args:
        record: record of the case.
        unlike: how the image differs from the training images; empty or None: it does not, as far as is known.
    """
    peak = record["peak_memory_mib"]
    flags = [*record["flags"], *([UNLIKE_TRAINING] if unlike else [])]
    expected = {key: record.get("quality", {}).get(key) for key in ("expected_dice", "expected_low", "expected_high")}
    return {
        **{key: value for key, value in expected.items() if value is not None},
        **{key: value for key, value in record.items() if isinstance(value, str | int | float)},
        **{f"parameter_change/{key}": value for key, value in record["parameter_change"].items()},
        "flags": ";".join(flags),
        **({UNLIKE_TRAINING: unlike} if unlike else {}),
        "peak_memory_mib": math.nan if peak is None else peak,
    }
