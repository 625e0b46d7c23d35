"""Run one job: the method gets images one after the other, and only the scorer gets labels."""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from monai.networks import eval_mode
from monai.utils import set_determinism

from ..errors import GrataError, OutputError
from ..handlers import adapt_to_case, merged_record
from ..methods import Method
from ..workflows import keep_pages
from ..workflows.configuration import explain
from .bundle import Bundle, Case
from .jobs import Job
from .metrics import score
from .part import Part
from .protocols import Item

__all__ = ["MEASURED", "run_job"]

MEASURED = ("seconds", "seconds_predict", "peak_memory_mib", "cold")
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
    with FileLock(part.lock, timeout=_WAIT_FOR_PREDECESSOR):
        rows, state = part.open()
        if len(rows) == len(job.items):
            return
        torch.set_num_threads(job.threads)
        set_determinism(job.seed)
        runner = _Runner(job)
        if own_process and runner.bundle.keeps_pages:
            keep_pages()
        runner.resume(rows, state)
        done = {(row["target"], row["case"]): row for row in rows}
        for position in range(len(rows), len(job.items)):
            item = job.items[position]
            earlier = done.get((item.site, item.case)) if runner.each_for_itself else None
            if earlier is not None:
                again = {"position": position, "round": item.round, "reset": runner.method.episodic}
                row = {key: again.get(key, value) for key, value in earlier.items() if key not in MEASURED}
                label_map = part.read_label_map(earlier["position"])
            else:
                row, label_map = runner.step(position)
                done[item.site, item.case] = row
            if label_map is not None and job.keep_label_maps:
                part.write_label_map(position, label_map)
            part.append(row)
            part.commit(position + 1, runner.state if runner.goes_on_after(position) else None)
            advance()


class _Runner:
    """The network, the sites and the method of one job, with the method's state after the last image."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.bundle = Bundle(job.bundle, job.source_overrides, f"sources#{job.source}")
        self.sites = {
            site: Bundle(job.bundle, {**job.source_overrides, **overrides}, f"targets#{site}")
            for site, overrides in job.site_overrides.items()
        }
        self.method: Method = self.bundle.make_method(job.row, self.bundle.make_network(), job.seed)
        self.state = self.method.state_dict()
        self._last_unreset = max((n for n, item in enumerate(job.items) if not item.reset), default=0)
        self._cold = True

    @property
    def each_for_itself(self) -> bool:
        """Whether no image influences the result of another, so that the result of a repeated image can be reused."""
        return self.method.episodic or not self.method.learns

    def goes_on_after(self, position: int) -> bool:
        """Return whether images after this position depend on the method's state after it."""
        return not self.method.episodic and position < self._last_unreset

    def resume(self, rows: Sequence[Mapping[str, Any]], state: dict[str, Any] | None) -> None:
        """Continue after the rows of an earlier process, from the state that it left, if any."""
        if state is None and self.method.episodic and any("flags" in row for row in rows):
            # The next image returns to the source network, so its row must show a reset, not a first start.
            state = self.state | {"batches": 1}
        if state is not None:
            self.method.load_state_dict(state)
            self.state = state

    def step(self, position: int) -> tuple[dict[str, Any], np.ndarray | None]:
        """Return the row of the image at a position, and its label map unless it failed."""
        item = self.job.items[position]
        case = self.job.cases[item.site][item.case]
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
            image = self.sites[item.site].read_image(case)
            measured, logits = self._adapt_and_predict(image, item)
            labels, probabilities = self.sites[item.site].postprocess(image, logits, self.job.metrics.space)
        except OutputError:
            raise
        # An unreadable image, or a method that fails on one image, must not end the stream.
        except Exception as error:  # noqa: BLE001
            self.method.load_state_dict(self.state)
            return {**row, "error": self._message(error, item)}, None
        self.state = self.method.state_dict()
        row |= measured
        # Labels are read only from here on, and whatever happens to them has no effect on the method.
        try:
            row |= self._score(item, case, image, labels, probabilities)
        except Exception as error:  # noqa: BLE001
            row["error"] = self._message(error, item)
        return row, labels

    def _adapt_and_predict(self, image: Mapping[str, Any], item: Item) -> tuple[dict[str, Any], torch.Tensor]:
        tensor = image["image"]
        images = (tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor)[None].to(self.bundle.device)
        precision = torch.autocast("cuda") if self.bundle.amp else contextlib.nullcontext()
        with _peak_memory(images.device) as peak:
            if item.reset:
                self.method.restore()
            started = self._now()
            with precision:
                records = adapt_to_case(self.method, images, self.bundle.inferer, self.bundle.windows, item.site)
            adapted = self._now()
            with eval_mode(self.method.network), precision:
                logits = self.bundle.inferer(images, self.method.network)[0].float()
            predicted = self._now()
        if not torch.isfinite(logits).all():
            raise GrataError("The prediction holds NaN or infinite values.")
        record = merged_record(records)
        measured = {
            "seconds": round(adapted - started, 4),
            "seconds_predict": round(predicted - adapted, 4),
            "peak_memory_mib": peak[0],
            "cold": self._cold,
            "flags": ";".join(record.pop("flags")),
            **{key: value for key, value in record.items() if isinstance(value, str | int | float)},
            **{f"parameter_change/{key}": value for key, value in self.method.parameter_change().items()},
        }
        self._cold = False
        return measured, logits

    def _now(self) -> float:
        if self.bundle.device.type == "cuda":
            torch.cuda.synchronize(self.bundle.device)
        return time.perf_counter()

    def _score(
        self, item: Item, case: Case, image: Mapping[str, Any], labels: np.ndarray, probabilities: np.ndarray
    ) -> dict[str, float]:
        if "label" not in case:
            return {}
        site, metrics = self.sites[item.site], self.job.metrics
        label = site.read_label(case, image, metrics.space)
        spacing = site.spacing(case, image, metrics.space)
        scored = self.job.scored.get(item.site)
        return score(labels, probabilities, label, site.regions, spacing, metrics.empty, scored)

    def _message(self, error: Exception, item: Item) -> str:
        return self.sites[item.site].without_folders(explain(error), self.job.cases[item.site][item.case])


@contextlib.contextmanager
def _peak_memory(device: torch.device) -> Iterator[list[float]]:
    """Measure the peak memory of the block in MiB: of tensors on CUDA, of the process on a CPU with Linux, else NaN."""
    peak = [math.nan]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak[0] = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
        return
    status = Path("/proc/self/status")
    try:
        # 5 resets the peak resident size, see proc(5).
        Path("/proc/self/clear_refs").write_text("5")
        resettable = True
    except OSError:
        resettable = False
    yield peak
    if resettable and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        peak[0] = round(int(found[1]) / 2**10, 1)
