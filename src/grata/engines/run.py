"""A run of an evaluator over all of its images; an image that fails does not stop it."""

from __future__ import annotations

import os
import sys
import traceback as tracebacks
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from monai.utils import CommonKeys
from torch.utils.data import DataLoader, IterableDataset, RandomSampler
from tqdm import tqdm

from ..console import say, say_beside_bar
from ..data import Fault, count_windows
from ..errors import GrataError, RunError
from ..private import forget_run, silence
from ..session import causes, explain
from .adaptation import AdaptationHandler
from .damage import damage

__all__ = ["EvaluatorRun"]

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


class EvaluatorRun:
    """A run of an evaluator over all images of its data loader.

    An image that fails (in reading, adaptation, prediction or writing) is reported and leaves no trace in the network,
    and the run goes on; the images of a larger batch are then taken one by one. After a fault the evaluator starts
    again with the images that are left, so its handlers average over the images since the last fault only. A fault
    before the first image or after the last one belongs to no image and ends the run. Images are taken in the order of
    the data set, even if the loader would shuffle them.

    Args:
        evaluator: evaluator with any data loader; with a stream without indices, the first fault ends the run.
        handler: handler that adapts the network; it is attached if it is not yet. A batch is finished after all other
            handlers of the evaluator.
        traceback: whether to show the Python traceback of each fault.

    Attributes:
        images: number of images; of a stream, the number that came.
        done: number of images that were finished.
        faults: images that failed, by the names of their files or their places in the list, and why.

    Raises:
        GrataError: there is no image.
    """

    hint: ClassVar[str] = "--adaptation#traceback true"
    """Option that shows the traceback of a fault."""

    unit: ClassVar[str] = "image"

    def __init__(self, evaluator: SupervisedEvaluator, handler: AdaptationHandler, traceback: bool = False) -> None:
        self.evaluator = evaluator
        self.handler = handler
        self.traceback = traceback
        self.images = self.done = 0
        self.faults: list[Fault] = []
        self._loader = evaluator.data_loader
        self._bar = tqdm(disable=True)
        self._batches: list[list[int]] | None = None
        if isinstance(self._loader, DataLoader) and not isinstance(self._loader.dataset, IterableDataset):
            self._dataset = self._loader.dataset
            count_windows(getattr(self._dataset, "transform", None), evaluator.inferer)
            self._workers = self._loader.num_workers
            self._batches = _batches(self._loader)
            self.images = sum(map(len, self._batches))
            self._names = self._named([index for batch in self._batches for index in batch])
            self._check_images()

    def run(self) -> Any:
        """Run the evaluator. May be called once.

        Raises:
            GrataError: a stream had no image.
            RunError: no later image could be done either.
            Exception: a fault before the first image or after the last, or the first fault of a stream.
        """
        self._attach()
        if self._batches is None:
            self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._count)
            self.evaluator.run()
            self._check_images()
            return
        self._run_all(self._batches)

    def _run_all(self, pending: list[list[int]]) -> None:
        engine = self.evaluator
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._begin)
        # A batch is finished after all that the evaluator does with it, and then it is counted.
        engine.remove_event_handler(self.handler.commit, Events.ITERATION_COMPLETED)
        for step in (self.handler.commit, self._next):
            engine.add_event_handler(Events.ITERATION_COMPLETED, step)
        with tqdm(total=sum(map(len, pending)), desc=self.handler.method.name, unit=self.unit) as self._bar:
            while pending:
                pending = self._run(pending)
        engine.data_loader = self._loader

    def _attach(self) -> None:
        engine = self.evaluator
        if not engine.has_event_handler(self.handler.adapt, Events.ITERATION_STARTED):
            self.handler.attach(engine)
        # This run reports each fault itself, with its traceback if that is asked for.
        silence(engine)
        engine.add_event_handler(Events.EXCEPTION_RAISED, _raise)

    def _run(self, pending: list[list[int]]) -> list[list[int]]:
        """Run the evaluator up to a fault or the end, and return the batches that are left."""
        engine = self.evaluator
        assert isinstance(self._loader, DataLoader)  # a stream has no batches to run apart
        forget_run(engine)
        self._pending, self._at, self._begun = pending, 0, False
        engine.data_loader = _loader_of(self._loader, pending, min(self._workers, len(pending)))
        engine.state.epoch_length = len(pending)
        try:
            engine.run()
            return []
        # Reading, a transform or a network can raise anything, and one image must not end the run.
        except Exception as error:
            # An interrupted library may raise an error of its own.
            if not self._begun or any(not isinstance(cause, Exception) for cause in causes(error)):
                raise
            finished = self.handler.finished
            if finished:
                self._next(engine)
            left = pending[self._at :]
            if not left and not finished:
                raise
            left = self._after_fault(left, error, finished)
            # The frames hold the loader's iterator, which ends its workers at once while it is whole. Once the
            # collector has taken their queues apart, PyTorch waits five seconds for each worker and kills it.
            tracebacks.clear_frames(error.__traceback__)
        if not left:
            # The bundle writes its results on these events, also when the last image failed.
            engine.fire_event(Events.EPOCH_COMPLETED)
            engine.fire_event(Events.COMPLETED)
        return left

    def _begin(self, engine: Engine) -> None:
        self._begun = True
        self.handler.finished = False
        # a loader that ends early is asked once more
        self.handler.names = tuple(self._names[index] for batch in self._pending[self._at :][:1] for index in batch)

    def _count(self, engine: Engine) -> None:
        self.images += len(engine.state.batch) if isinstance(engine.state.batch, list) else 1
        self.done = self.images

    def _next(self, engine: Engine) -> None:
        self.done += len(self._pending[self._at])
        self._bar.update(len(self._pending[self._at]))
        self._at += 1
        self.handler.finished = False

    def _after_fault(self, left: list[list[int]], error: Exception, finished: bool) -> list[list[int]]:
        """Report a fault, and return the batches that are left to do.

        Args:
            left: batches that are not finished; the first one failed, unless ``finished``.
            error: what was raised.
            finished: whether the batch was finished, and only its adaptation could not be saved.
        """
        if self.traceback:
            say("".join(tracebacks.format_exception(error)).rstrip(), sys.stderr)
        if stopped := next((cause for cause in causes(error) if isinstance(cause, RunError)), None):
            self._stop(None if finished else left[0][0], error, stopped)
            return []
        failed, rest = left[0], left[1:]
        if len(failed) > 1:
            return [[index] for index in failed] + rest
        self._fail(failed[0], error)
        return rest

    def _stop(self, index: int | None, error: Exception, reason: RunError) -> None:
        """End the run where no later image could be done.

        Args:
            index: image that failed; None: the last one is finished, and its adaptation could not be saved.
            error: what was raised.
            reason: what led to it.
        """
        raise error

    def _fail(self, index: int, error: Exception) -> None:
        """Report the fault of an image, and write its line."""
        self.handler.session.fail(self._names[index], self._report(index, error))

    def _report(self, index: int, error: Exception) -> str:
        """Report the fault of an image, and return its message."""
        name, message = self._names[index], self._explained(index, error)
        say_beside_bar(f"{name}: {message}")
        self.faults.append(Fault(name, message))
        self._bar.update(1)
        return message

    def _explained(self, index: int, error: Exception) -> str:
        message, files = explain(error, self.hint), _files(self._dataset, index)
        message = _missing(message, files) or damage(error, message, files) or message
        return _without_paths(message, files, self._names[index])

    def _named(self, indices: list[int]) -> dict[int, str]:
        return _names(self._dataset, indices)

    def _check_images(self) -> None:
        if not self.images:
            raise _no_image()


def _no_image() -> GrataError:
    return GrataError(
        "the bundle finds no image. Check dataset_dir, and how the bundle's configuration lists the images in it: "
        "files and folders must have the names that it expects.",
        key="dataset",
    )


def _raise(engine: Engine, error: Exception) -> None:
    """Raise the error again, whatever handlers of the bundle have done with it."""
    raise error


def _batches(loader: DataLoader) -> list[list[int]]:
    """Return the indices of each batch, in the order of the data set."""
    if not isinstance(loader.sampler, RandomSampler) and loader.batch_sampler is not None:
        return [list(batch) for batch in loader.batch_sampler]
    size = loader.batch_size or 1
    dataset: Any = loader.dataset
    indices = range(len(dataset))
    return [list(indices[start : start + size]) for start in range(0, len(indices), size)]


def _loader_of(loader: DataLoader, batches: list[list[int]], workers: int) -> DataLoader:
    """Return the same loader for these batches alone, with another number of processes."""
    of_workers: dict[str, Any] = {}
    if workers:
        names = ("timeout", "worker_init_fn", "multiprocessing_context", "prefetch_factor")
        of_workers = {name: getattr(loader, name) for name in names}
    return DataLoader(
        loader.dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        **of_workers,
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
    return [Path(value) for value in _values(item) if isinstance(value, Path) or _is_file(value)]


def _values(item: Any) -> Iterator[Any]:
    """Yield the values of an item and of lists in it, the image's first."""
    if not isinstance(item, Mapping):
        item = {CommonKeys.IMAGE: item}
    for key in sorted(item, key=lambda key: key != CommonKeys.IMAGE):
        yield from item[key] if isinstance(item[key], list | tuple) else [item[key]]


def _is_file(value: Any) -> bool:
    """Return whether a value is the name of a file or a folder, and no other word of the item."""
    return isinstance(value, str) and (os.sep in value or bool(Path(value).suffix) or os.path.exists(value))


def _missing(message: str, files: list[Path]) -> str:
    """Return which of an item's files are missing, if one that the message names is; else nothing."""
    missing = [file for file in files if not file.exists()]
    if not any(str(file) in message for file in missing):
        return ""
    names = [_shown_name(file) or f"file {files.index(file) + 1} of {len(files)}" for file in missing]
    verb = "does" if len(names) == 1 else "do"
    return f"{', '.join(names)} {verb} not exist. Put what is missing beside the others, or leave the case out."


def _without_paths(message: str, files: list[Path], name: str) -> str:
    """Return a message without the paths of an item's files, whose folders may name the patient."""
    shown = {str(path): _shown_name(file) or name for file in files for path in (Path(os.path.realpath(file)), file)}
    for path in sorted(shown, key=len)[::-1]:
        message = message.replace(path, shown[path])
    return message


def _shown_name(file: Path) -> str:
    """Return the name of a file; empty for DICOM, whose names may be the patient's."""
    return file.name if _file_name([file]) else ""
