"""Files that hold all phases of the heart along a fourth axis, each of which is an image of its own."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import MetaKeys

from ..errors import GrataError
from .dicom_parts import is_one_of
from .dicom_phases import CARDIAC_PHASE, phase_numbers
from .labels import scan_stem

__all__ = ["FileVolume", "TakePhased", "is_unlabelled", "volumes_of"]


class FileVolume(NamedTuple):
    """An image in a file: all of it, or one of its phases.

    Attributes:
        path: path of the file.
        case: id of the case.
        label: path of the label map; None where there is none.
        named: path that the file would have if it held this image alone, by which the image's own label is looked for.
        about: further keys of the case: ``phase``, from 0 on, where the file holds several.
    """

    path: Path
    case: str
    label: Path | None
    named: Path
    about: dict[str, int]


def volumes_of(
    path: Path, case: str, label: Path | None, count: int, chosen: Sequence[str] = ()
) -> Iterator[FileVolume]:
    """Yield the images in a file.

    Args:
        path: path of the file.
        case: id of the file.
        label: path of its label map; None where there is none.
        count: number of its phases; 1 for a file of one image.
        chosen: numbers of the phases to take, from 1 on, as a user gives them; nothing: all.
    """
    if count == 1:
        yield FileVolume(path, case, label, path, {})
        return
    for phase, number in enumerate(phase_numbers(count)):
        if not chosen or is_one_of(number, chosen):
            ending = f"-{CARDIAC_PHASE}{number}"
            named = path.with_name(f"{scan_stem(path)}{ending}.nii.gz")
            yield FileVolume(path, f"{case}{ending}", label, named, {"phase": phase})


def is_unlabelled(case: Mapping[str, Any], label: np.ndarray) -> bool:
    """Return whether a label map of a cine says nothing of this phase.

    The public sets have labels of four axes that are filled at end-diastole and end-systole alone. No stack of a heart
    is without one, so an empty phase of such a label is one that nobody has outlined.

    Args:
        case: case, with ``phase`` where its file holds several.
        label: label map of the case.
    """
    return "phase" in case and not label.any()


class TakePhased(MapTransform):
    """Transform that takes one phase from images and label maps whose channels are phases of the heart.

    It follows ``LoadImaged`` with ``ensure_channel_first``. The number of the phase, from 0 on, stands under the key
    ``phase`` as :func:`grata.data.discover` gives it with ``fourth_axis="phases"``. The key is taken out of the data,
    because items with and without it could not be collated. Without it, images stay as they are, and so does an image
    of one channel, such as the label map of one phase. The geometry in the metadata is that of the stack and stays.

    Args:
        keys: keys of the images and label maps, each of shape (phases, H, W[, D]), which becomes (1, H, W[, D]).
        allow_missing_keys: whether a key may be absent.

    Raises:
        GrataError: raised by the call. An image has several channels, but not that phase. The message names the case.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        taken = dict(data)
        phase = taken.pop("phase", None)
        for key in self.key_iterator(taken) if phase is not None else ():
            if len(taken[key]) > 1:
                taken[key] = self._take(taken[key], int(phase), f"Case '{taken.get('case', '')}' ({key})")
        return taken

    def _take(self, image: torch.Tensor, phase: int, name: str) -> torch.Tensor:
        if not 0 <= phase < len(image):
            raise GrataError(
                f"{name} is phase {phase + 1}, but its file has {len(image)} phases. Do not change files during a run."
            )
        # A copy, because a view would keep the memory of all phases.
        one = image[phase : phase + 1].clone()
        if isinstance(one, MetaTensor) and MetaKeys.ORIGINAL_CHANNEL_DIM in one.meta:
            one.meta[MetaKeys.ORIGINAL_CHANNEL_DIM] = float("nan")
        return one
