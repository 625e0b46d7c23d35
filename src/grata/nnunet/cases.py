"""The images of a folder, by case and channel, named as for nnU-Net."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..data import Fault
from ..data.walk import image_ending
from ..data.whole import check_file
from ..errors import GrataError
from ..files import absence
from .model import TrainedModel

__all__ = ["check_files", "find_cases", "other_channels"]


def find_cases(folder: Path, model: TrainedModel) -> tuple[dict[str, list[Path]], list[Fault], list[str]]:
    """Return the files of each case in the order of the channels, the faults of other files, and a note or none.

    The note says which images were passed over because their names end in another way than those of the training.
    How many channels a file has is known once nnU-Net's reader has read it: a colour picture has three, and volumes may
    have several.

    Args:
        folder: folder of images named ``<case>_0000<ending>``, with one file for each channel or fewer.
        model: model, which knows the ending and the number of channels.

    Raises:
        GrataError: the folder cannot be read, or holds no such image.
    """
    ending = model.dataset["file_ending"]
    images, others = _images(folder, ending)
    found, faults = _by_case(images, ending)
    faults += _incomplete(found, model)
    bad = {fault.case for fault in faults}
    cases = {case: _in_order(given) for case, given in found.items() if case not in bad}
    notes = _passed_over(others, ending)
    if not cases and not faults:
        there = " ".join([f"{folder} has no image named <case>_0000{ending}.", *notes])
        raise GrataError(f"{there} Name the folder of the images.", key="input")
    return cases, faults, notes


def _passed_over(others: Sequence[Path], ending: str) -> list[str]:
    """Return a sentence about the images that have another ending; none where there are none."""
    endings = Counter(filter(None, map(image_ending, others)))
    if not endings:
        return []
    count, listed = sum(endings.values()), ", ".join(f"{n} {name}" for name, n in sorted(endings.items()))
    files = "1 file was" if count == 1 else f"{count} files were"
    return [
        f"{files} passed over ({listed}), because images of this model end in {ending}. Convert what you need to it."
    ]


def _incomplete(found: Mapping[str, Mapping[int, Path]], model: TrainedModel) -> list[Fault]:
    """Return the faults of cases whose files cannot hold the channels of the model."""
    return [
        Fault(case, other_channels(case, _in_order(given), model))
        for case, given in found.items()
        if not _can_be_whole(given, model)
    ]


def _in_order(given: Mapping[int, Path]) -> list[Path]:
    """Return files in the order of their channels."""
    return [given[number] for number in sorted(given)]


def check_files(files: Iterable[Path]) -> None:
    """Check the files of a case before nnU-Net's reader sees them.

    Raises:
        GrataError: see :func:`grata.data.whole.check_file`; the message names the file without its folder.
    """
    for file in files:
        try:
            check_file(file)
        except GrataError as error:
            raise GrataError(str(error).replace(str(file), file.name)) from error


def _can_be_whole(given: Mapping[int, Path], model: TrainedModel) -> bool:
    """Return whether files may hold all channels of the model between them."""
    return len(given) <= model.channels and set(given) == set(range(len(given)))


def _images(folder: Path, ending: str) -> tuple[list[Path], list[Path]]:
    """Return the files of a folder that end as the model's images do, and the others, without hidden ones."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.name[0] != ".")
        images = [path for path in paths if path.name.endswith(ending)]
        return images, [path for path in paths if not path.name.endswith(ending) and path.is_file()]
    except OSError as error:
        reason = error.strerror if folder.exists() else f"it {absence(folder)}"
        raise GrataError(f"{folder} cannot be read ({reason}). Name the folder of the images.", key="input") from error


def other_channels(case: str, files: Sequence[Path], model: TrainedModel, read: int | None = None) -> str:
    """Return what is wrong with a case whose files are not the channels of the model.

    Args:
        case: name of the case.
        files: its files.
        model: model, which knows the ending and the number of channels.
        read: number of channels that were read from the files; None: they were not read.
    """
    ending = model.dataset["file_ending"]
    wanted = ", ".join(f"{case}_{channel:04d}{ending}" for channel in range(model.channels))
    together = ", or fewer files with all channels in them" if model.channels > 1 else ""
    has = ", ".join(file.name for file in files) + ("" if read is None else f", with {read}")
    return f"the model has {model.channels} channels and needs {wanted}{together}; there is {has}."


def _by_case(files: Iterable[Path], ending: str) -> tuple[dict[str, dict[int, Path]], list[Fault]]:
    """Return the files of each case by the number of their channel, and the faults of files without such a number."""
    found: dict[str, dict[int, Path]] = {}
    faults = []
    for file in files:
        name = file.name.removesuffix(ending)
        if numbered := re.fullmatch(r"(.+)_(\d{4})", name):
            found.setdefault(numbered[1], {})[int(numbered[2])] = file
        else:
            faults.append(
                Fault(name, f"{file.name}: the channel's number is missing. Rename it to {name}_0000{ending}.")
            )
    return found, faults
