"""Find the label map that belongs to an image, by name."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from .nifti import is_nifti, nifti_stem

__all__ = ["LabelIndex", "is_label_folder"]

_SUFFIX = re.compile(r"[-_.](seg|segmentation|labels?|mask)$")
# nnU-Net numbers the channels of an image.
_CHANNEL = re.compile(r"_0000$")


def is_label_folder(folder: Path, siblings: Iterable[str]) -> bool:
    """Return whether a folder is the ``labels`` (``labelsTr``, ...) beside an ``images`` (``imagesTr``, ...) folder."""
    match = re.fullmatch(r"labels(\w*)", folder.name.lower())
    return match is not None and f"images{match[1]}" in [sibling.lower() for sibling in siblings]


def label_stem(path: str | os.PathLike[str]) -> str:
    """Return the name of the image that a label map belongs to, lower case: its own without ``_seg`` and the like."""
    return _SUFFIX.sub("", nifti_stem(path).lower())


def image_stem(path: str | os.PathLike[str]) -> str:
    """Return the name by which an image's label is looked for, lower case."""
    return _CHANNEL.sub("", nifti_stem(path).lower())


class LabelIndex:
    """Label maps by name, in any case of letters.

    Looked for, in this order: in ``labels_dir``; in the ``labels`` folder beside an ``images`` folder (``labelsTr``
    beside ``imagesTr``); beside the image as ``<name>_seg``, ``<name>_segmentation``, ``<name>_label`` or
    ``<name>_mask`` (also with ``-`` or ``.``). In a folder of labels the same relative folder goes before the same name
    alone; a name found twice there belongs to neither, and neither does a label of two images' name.

    Args:
        nifti_files: all NIfTI files of the data set.
        label_folders: folders of labels within the data set, or beside it.
        labels_dir: a further folder of labels, or None.
    """

    def __init__(self, nifti_files: Iterable[Path], label_folders: Iterable[Path], labels_dir: Path | None):
        self._labels_dir = None if labels_dir is None else _index(labels_dir)
        self._label_folders = {_folded(folder): _index(folder) for folder in label_folders}
        self._images = {(path.parent, nifti_stem(path).lower()) for path in nifti_files}
        self._images |= {(path.parent, image_stem(path)) for path in nifti_files}
        self._labels: dict[tuple[Path, str], list[Path]] = {}
        for path in nifti_files:
            if self.is_label(path):
                self._labels.setdefault((path.parent, label_stem(path)), []).append(path)

    def find(self, image: Path, root: Path, case: str) -> Path | None:
        """Return the label map of a NIfTI image below ``root``, known as ``case``, or None."""
        name = image_stem(image)
        if self._labels_dir is not None:
            label = _lookup(self._labels_dir, image.relative_to(root).parent, name, image)
            return label or self.find_named(case)
        for folder in image.parents:
            match = re.fullmatch(r"images(\w*)", folder.name.lower())
            labels = _folded(folder.parent / f"labels{match[1]}") if match else None
            if labels in self._label_folders:
                return _lookup(self._label_folders[labels], image.relative_to(folder).parent, name, image)
        beside = self._labels.get((image.parent, name), [])
        return beside[0] if len(beside) == 1 else None

    def find_named(self, case: str) -> Path | None:
        """Return the label map in ``labels_dir`` with the name of a case, or None."""
        return None if self._labels_dir is None else _lookup(self._labels_dir, Path(), case.lower())

    def is_label(self, path: Path) -> bool:
        """Return whether a NIfTI file is the label map of an image beside it."""
        name = nifti_stem(path).lower()
        return label_stem(path) != name and (path.parent, label_stem(path)) in self._images


def _folded(folder: Path) -> Path:
    return folder.with_name(folder.name.lower())


def _index(folder: Path) -> dict[tuple[str, str], list[Path]]:
    """Map (relative folder, name) and (anywhere, name) to label files."""
    index: dict[tuple[str, str], list[Path]] = {}
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        for file in sorted(files):
            if is_nifti(file) and not file.startswith("."):
                path = Path(parent, file)
                for name in dict.fromkeys((nifti_stem(file).lower(), label_stem(file))):
                    index.setdefault((str(path.parent.relative_to(folder)), name), []).append(path)
                    index.setdefault(("*", name), []).append(path)
    return index


def _lookup(
    index: dict[tuple[str, str], list[Path]], folder: Path, name: str, image: Path | None = None
) -> Path | None:
    for where in (str(folder), "*"):
        # Where labels and images share a folder, an image is not its own label.
        found = [path for path in index.get((where, name), []) if path != image]
        exact = [path for path in found if nifti_stem(path).lower() == name]
        for candidates in (exact, found):
            if len(candidates) == 1:
                return candidates[0]
    return None
