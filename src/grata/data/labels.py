"""Find the label map that belongs to an image, by name."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from .nifti import is_nifti, nifti_stem

__all__ = ["LabelIndex", "is_label_folder"]

_SUFFIXES = ("", "_seg", "_label")


def is_label_folder(folder: Path, siblings: Iterable[str]) -> bool:
    """Return whether a folder is the ``labels`` (``labelsTr``, ...) beside an ``images`` (``imagesTr``, ...) folder."""
    match = re.fullmatch(r"labels(\w*)", folder.name)
    return match is not None and f"images{match[1]}" in siblings


class LabelIndex:
    """Label maps by name.

    Looked for, in this order: in ``labels_dir``; in the ``labels`` folder beside an ``images`` folder (``labelsTr``
    beside ``imagesTr``); beside the image as ``<name>_seg`` or ``<name>_label``. In a folder of labels the same
    relative folder goes before the same name alone; a name found twice there belongs to neither.

    Args:
        nifti_files: all NIfTI files of the data set.
        label_folders: folders of labels within the data set.
        labels_dir: a further folder of labels, or None.
    """

    def __init__(self, nifti_files: Iterable[Path], label_folders: Iterable[Path], labels_dir: Path | None):
        self._files = set(nifti_files)
        self._labels_dir = None if labels_dir is None else _index(labels_dir)
        self._label_folders = {folder: _index(folder) for folder in label_folders}

    def find(self, image: Path, root: Path) -> Path | None:
        """Return the label map of a NIfTI image below ``root``, or None."""
        name = nifti_stem(image)
        if self._labels_dir is not None:
            return _lookup(self._labels_dir, image.relative_to(root).parent, name, image)
        for folder in image.parents:
            match = re.fullmatch(r"images(\w*)", folder.name)
            labels = folder.parent / f"labels{match[1]}" if match else None
            if labels in self._label_folders:
                return _lookup(self._label_folders[labels], image.relative_to(folder).parent, name, image)
        return self._beside(image)

    def find_named(self, name: str) -> Path | None:
        """Return the label map in ``labels_dir`` with the name of a case, or None."""
        return None if self._labels_dir is None else _lookup(self._labels_dir, Path(), name)

    def is_label(self, path: Path) -> bool:
        """Return whether a NIfTI file is the label map of an image beside it."""
        name = nifti_stem(path)
        for suffix in _SUFFIXES[1:]:
            if name.endswith(suffix):
                stem = name.removesuffix(suffix)
                return any(path.with_name(stem + end) in self._files for end in (".nii.gz", ".nii"))
        return False

    def _beside(self, image: Path) -> Path | None:
        for suffix in _SUFFIXES[1:]:
            for extension in (".nii.gz", ".nii"):
                candidate = image.with_name(nifti_stem(image) + suffix + extension)
                if candidate in self._files:
                    return candidate
        return None


def _index(folder: Path) -> dict[tuple[str, str], list[Path]]:
    """Map (relative folder, name) and (anywhere, name) to label files."""
    index: dict[tuple[str, str], list[Path]] = {}
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        for file in sorted(files):
            if is_nifti(file) and not file.startswith("."):
                path = Path(parent, file)
                index.setdefault((str(path.parent.relative_to(folder)), nifti_stem(file)), []).append(path)
                index.setdefault(("*", nifti_stem(file)), []).append(path)
    return index


def _lookup(
    index: dict[tuple[str, str], list[Path]], folder: Path, name: str, image: Path | None = None
) -> Path | None:
    for where in (str(folder), "*"):
        for suffix in _SUFFIXES:
            # Where labels and images share a folder, an image is not its own label.
            found = [path for path in index.get((where, name + suffix), []) if path != image]
            if len(found) == 1:
                return found[0]
    return None
