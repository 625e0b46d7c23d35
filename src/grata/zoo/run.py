"""A run of a bundle's own evaluator over all of its images; an image that fails does not stop it."""

from __future__ import annotations

import gc
import traceback as tracebacks
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import IterationEvents, SupervisedEvaluator
from monai.handlers import StatsHandler
from monai.utils import CommonKeys
from torch.utils.data import DataLoader, IterableDataset, RandomSampler
from tqdm import tqdm

from .. import __version__
from ..errors import GrataError, RunError
from ..handlers import AdaptationHandler
from ..workflows.checks import require_finite
from ..workflows.configuration import causes, explain

__all__ = ["TRACEBACK", "EvaluatorRun", "NamedCases"]

TRACEBACK = "--adaptation#traceback true"
"""Option that shows the traceback of a fault."""

_ENDINGS = (
    ".nii.gz",
    ".nii",
    ".mha",
    ".mhd",
    ".nrrd",
    ".nhdr",
    ".png",
    ".jpg",
    ".jpeg",
    ".tif",
    ".tiff",
    ".bmp",
    ".npy",
)


class NamedCases(AdaptationHandler):
    """An :class:`AdaptationHandler` for batches without case names; its owner sets ``names`` before each batch."""

    names: tuple[str, ...] = ()

    def _items(self, engine: SupervisedEvaluator, key: str) -> list[str]:
        return list(self.names) if key == self.case_key and self.names else super()._items(engine, key)


class EvaluatorRun:
    """A run of an evaluator over all images of its data loader.

    An image that fails (in reading, adaptation, prediction or writing) is reported and leaves no trace in the network,
    and the run goes on; the images of a larger batch are then taken one by one. After a fault the evaluator starts
    again with the images that are left, so its handlers average over the images since the last fault only. A fault
    before the first image or after the last one belongs to no image and ends the run. Images are taken in the order of
    the data set, even if the loader would shuffle them.

    Args:
        evaluator: evaluator with any data loader; with a stream without indices, the first fault ends the run.
        handler: handler that adapts the network, not attached yet.
        traceback: whether to show the Python traceback of each fault.

    Attributes:
        images: number of images; of a stream, the number that came.
        finished: number of images that were finished.
        faults: message of each fault, by the image's name: that of its file, or its place in the list.

    Raises:
        GrataError: there is no image.
    """

    def __init__(self, evaluator: SupervisedEvaluator, handler: NamedCases, traceback: bool = False) -> None:
        self.evaluator = evaluator
        self.handler = handler
        self.traceback = traceback
        self.images = self.finished = 0
        self.faults: dict[str, str] = {}
        self._loader = evaluator.data_loader
        self._batches: list[list[int]] | None = None
        if isinstance(self._loader, DataLoader) and not isinstance(self._loader.dataset, IterableDataset):
            self._dataset = self._loader.dataset
            self._batches = _batches(self._loader)
            self.images = sum(map(len, self._batches))
            self._names = _names(self._dataset, [index for batch in self._batches for index in batch])
            if not self.images:
                raise _no_image()

    def run(self) -> None:
        """Run the evaluator. May be called once.

        Raises:
            GrataError: a stream had no image.
            Exception: a fault before the first image or after the last, or the first fault of a stream.
        """
        engine = self.evaluator
        self.handler.attach(engine)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, require_finite)
        if not self.traceback:
            _silence_tracebacks(engine)
        engine.add_event_handler(Events.EXCEPTION_RAISED, _raise)
        if self._batches is None:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._count)
            engine.run()
            if not self.images:
                raise _no_image()
            return
        self._committed: dict[str, Any] | None = None
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_STARTED, self._name)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._commit)
        with tqdm(total=self.images, desc=self.handler.method.name, unit="image") as self._bar:
            pending = self._batches
            while pending:
                pending = self._run(pending)
        engine.data_loader = self._loader

    def _run(self, pending: list[list[int]]) -> list[list[int]]:
        """Run the evaluator up to a fault or the end, and return the batches that are left."""
        engine = self.evaluator
        assert isinstance(self._loader, DataLoader)  # a stream has no batches to run apart
        # Ignite would go on with the run that failed, and its loader's iterator must be gone before the next forks.
        engine._internal_run_generator = engine._dataloader_iter = None
        gc.collect()
        self._pending, self._done, self._begun = pending, 0, False
        engine.data_loader = _loader_of(self._loader, pending)
        engine.state.epoch_length = len(pending)
        try:
            engine.run()
            return []
        # Reading, a transform or a network can raise anything, and one image must not end the run.
        except Exception as error:
            left = pending[self._done :]
            # An interrupted library may raise an error of its own.
            if not self._begun or not left or any(not isinstance(cause, Exception) for cause in causes(error)):
                raise
            left = self._after_fault(left, error)
        if not left:
            # The bundle writes its results on these events, also when the last image failed.
            engine.fire_event(Events.EPOCH_COMPLETED)
            engine.fire_event(Events.COMPLETED)
        return left

    def _begin(self, engine: Engine) -> None:
        self._begun = True

    def _count(self, engine: Engine) -> None:
        self.images += len(engine.state.batch) if isinstance(engine.state.batch, list) else 1
        self.finished = self.images

    def _name(self, engine: Engine) -> None:
        self.handler.names = tuple(self._names[index] for index in self._pending[self._done])

    def _commit(self, engine: Engine) -> None:
        self._committed = self.handler.method.state_dict()
        self.finished += len(self._pending[self._done])
        self._bar.update(len(self._pending[self._done]))
        self._done += 1

    def _after_fault(self, left: list[list[int]], error: Exception) -> list[list[int]]:
        """Put the method back to its state before the fault, and return the batches that are left."""
        if self.traceback:
            tracebacks.print_exception(error)
        if self._committed is None:
            self.handler.method.restore()
        else:
            self.handler.method.load_state_dict(self._committed)
        if any(isinstance(cause, RunError) for cause in causes(error)):
            raise error
        failed, rest = left[0], left[1:]
        if len(failed) > 1:
            return [[index] for index in failed] + rest
        name = self._names[failed[0]]
        message = _without_paths(explain(error, TRACEBACK), self._dataset, failed[0], name)
        tqdm.write(f"{name}: {message}")
        self.faults[name] = message
        self._bar.update(1)
        if self.handler.journal is not None:
            self.handler.journal.append({"case": name, "fault": message, "version": __version__})
        return rest


def _no_image() -> GrataError:
    return GrataError(
        "the bundle finds no image. Check dataset_dir, and how the bundle's configuration lists the images in it: "
        "files and folders must have the names that it expects.",
        key="dataset",
    )


def _raise(engine: Engine, error: Exception) -> None:
    """Raise the error again: ignite drops errors once a handler of theirs was removed."""
    raise error


def _silence_tracebacks(engine: Engine) -> None:
    """Turn off the logs of the engine and of MONAI, which would repeat each fault with its whole traceback."""
    engine.logger.disabled = True
    for handler, *_ in list(engine._event_handlers[Events.EXCEPTION_RAISED]):
        if isinstance(getattr(handler, "__self__", None), StatsHandler):
            engine.remove_event_handler(handler, Events.EXCEPTION_RAISED)


def _batches(loader: DataLoader) -> list[list[int]]:
    """Return the indices of each batch, in the order of the data set."""
    if not isinstance(loader.sampler, RandomSampler) and loader.batch_sampler is not None:
        return [list(batch) for batch in loader.batch_sampler]
    size = loader.batch_size or 1
    dataset: Any = loader.dataset
    indices = range(len(dataset))
    return [list(indices[start : start + size]) for start in range(0, len(indices), size)]


def _loader_of(loader: DataLoader, batches: list[list[int]]) -> DataLoader:
    """Return the same loader for these batches alone."""
    return DataLoader(
        loader.dataset,
        batch_sampler=batches,
        num_workers=min(loader.num_workers, len(batches)),
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
    )


def _names(dataset: Any, indices: list[int]) -> dict[int, str]:
    """Return a name for each image.

    The name is that of the image's file. Without such a file, with a name that several share, and for DICOM, whose
    files and folders may name the patient, it has the image's place in the list.
    """
    found = {index: _file_name(_files(dataset, index)) or "image" for index in indices}
    shared = Counter(found.values())
    taken = {name for name, count in shared.items() if count == 1 and name != "image"}
    names: dict[int, str] = {}
    for index, name in found.items():
        if name in taken:
            names[index] = name
            continue
        numbered = f"{name}-{index + 1}"
        while numbered in taken:
            numbered += "-"
        taken.add(numbered)
        names[index] = numbered
    return names


def _file_name(files: list[Path]) -> str:
    name = files[0].name if files else ""
    lower = name.lower()
    ending = next((ending for ending in _ENDINGS if lower.endswith(ending)), "")
    return name[: -len(ending)] if ending else ""


def _files(dataset: Any, index: int) -> list[Path]:
    """Return the files that an item of a ``monai.data.Dataset`` names before it is read, the image's first."""
    data = getattr(dataset, "data", None)
    item = data[index] if isinstance(data, list | tuple) and index < len(data) else None
    if not isinstance(item, Mapping):
        item = {CommonKeys.IMAGE: item}
    values = [item[key] for key in sorted(item, key=lambda key: key != CommonKeys.IMAGE)]
    paths = [path for value in values for path in (value if isinstance(value, list | tuple) else [value])]
    return [Path(path) for path in paths if isinstance(path, str | Path)]


def _without_paths(message: str, dataset: Any, index: int, name: str) -> str:
    """Return a message without the paths of an item's files, which may name the patient."""
    paths = {str(path) for file in _files(dataset, index) for path in (file, file.resolve())}
    for path in sorted(paths, key=len)[::-1]:
        message = message.replace(path, name)
    return message
