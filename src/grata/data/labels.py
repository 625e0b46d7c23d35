"""Find the label map that belongs to an image, by name."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from .nifti import is_nifti, nifti_stem

__all__ = ["LabelIndex", "is_image_folder", "is_label_folder", "scan_stem"]

_SUFFIX = re.compile(r"[-_.](seg|segmentation|labels?|mask)$")
# nnU-Net numbers the channels of an image.
_CHANNEL = re.compile(r"_0000$")
_IMAGE_FOLDER = re.compile(r"image(|s\w*)")
_LABEL_FOLDER = re.compile(r"(labels|masks)(\w*)|mask")


def is_image_folder(name: str) -> bool:
    """Return whether a folder of this name holds images and nothing else: ``images``, ``imagesTr``, ..., ``image``."""
    return _IMAGE_FOLDER.fullmatch(name.lower()) is not None


def is_label_folder(folder: Path, siblings: Iterable[str]) -> bool:
    """Return whether a folder is the ``labels``, ``masks`` or ``mask`` beside an ``images`` or ``image`` folder.

    ``labelsTr`` belongs to ``imagesTr``, and so on.
    """
    match = _LABEL_FOLDER.fullmatch(folder.name.lower())
    if match is None:
        return False
    wanted = {f"images{match[2]}"} if match[2] else {"images", "image"}
    return not wanted.isdisjoint(sibling.lower() for sibling in siblings)


def scan_stem(path: str | os.PathLike[str]) -> str:
    """Return the file's name without folder and extension."""
    return nifti_stem(path) if is_nifti(path) else Path(path).stem


def label_stem(path: str | os.PathLike[str]) -> str:
    """Return the name of the image that a label map belongs to, lower case: its own without ``_seg`` and the like."""
    return _SUFFIX.sub("", scan_stem(path).lower())


def image_stems(path: str | os.PathLike[str]) -> list[str]:
    """Return the names by which an image's label is looked for, lower case, in this order."""
    name = scan_stem(path).lower()
    return list(dict.fromkeys((name, _CHANNEL.sub("", name))))


class LabelIndex:
    """Label maps by name, in any case of letters.

    Looked for, in this order: in ``labels_dir``; in the ``labels``, ``masks`` or ``mask`` folder (the first that is
    there) beside an ``images`` or ``image`` folder (``labelsTr`` beside ``imagesTr``); beside the image as
    ``<name>_seg``, ``<name>_segmentation``, ``<name>_label`` or ``<name>_mask`` (also with ``-`` or ``.``). In a folder
    of labels the same relative folder goes before the folder itself, which serves images that have a name of their own;
    a name found twice belongs to neither.

    Args:
        files: the files of the data set that may be images or labels.
        label_folders: folders of labels within the data set, or beside it.
        labels_dir: a further folder of labels, or None.
        is_label_file: tells by its name whether a file in a folder of labels is one, of the format of ``files``.
    """

    def __init__(
        self,
        files: Iterable[Path],
        label_folders: Iterable[Path],
        labels_dir: Path | None,
        is_label_file: Callable[[str], bool] = is_nifti,
    ) -> None:
        self._labels_dir = None if labels_dir is None else _index(labels_dir, is_label_file)
        self._label_folders = {_folded(folder): _index(folder, is_label_file) for folder in label_folders}
        self._images = {(path.parent, name) for path in files for name in image_stems(path)}
        self._labels: dict[tuple[Path, str], list[Path]] = {}
        for path in files:
            if self.is_label(path):
                self._labels.setdefault((path.parent, label_stem(path)), []).append(path)

    def assign(self, images: Sequence[tuple[Path, str]], root: Path) -> list[Path | None]:
        """Return the label map of each image below ``root``, or None.

        Args:
            images: each image with the name of its case.
            root: the data set's folder.
        """
        found = [self._find(image, root, case) for image, case in images]
        claims = Counter(label for label, _ in found)
        owned = {label for label, own in found if own}
        return [label if own or (claims[label] == 1 and label not in owned) else None for label, own in found]

    def find_named(self, case: str) -> Path | None:
        """Return the label map in ``labels_dir`` with the name of a case, or None."""
        return None if self._labels_dir is None else _lookup(self._labels_dir, ".", case.lower())

    def _find(self, image: Path, root: Path, case: str) -> tuple[Path | None, bool]:
        """The label map, and whether its folder or full name tells that it is of this image and no other."""
        for name in image_stems(image):
            index, folder = self._index_of(image, root)
            if index is None:
                beside = self._labels.get((image.parent, name), [])
                label, own = (beside[0], True) if len(beside) == 1 else (None, False)
            else:
                label, own = _lookup(index, folder, name, image), True
                if label is None:
                    # Labels may lie in one folder although the images do not, and the other way round.
                    label, own = _lookup(index, "*" if folder == "." else ".", name, image), False
            if label is not None:
                return label, own
        return self.find_named(case), True

    def _index_of(self, image: Path, root: Path) -> tuple[dict[tuple[str, str], list[Path]] | None, str]:
        """The folder of labels that an image's label lies in, and the image's place relative to it."""
        if self._labels_dir is not None:
            return self._labels_dir, str(image.relative_to(root).parent)
        for folder in image.parents:
            if is_image_folder(folder.name):
                suffix = folder.name.lower().removeprefix("image").removeprefix("s")
                for name in (f"labels{suffix}", f"masks{suffix}", "mask"):
                    if (labels := folder.parent / name) in self._label_folders:
                        return self._label_folders[labels], str(image.relative_to(folder).parent)
        return None, "."

    def is_label(self, path: Path) -> bool:
        """Return whether a file is the label map of an image beside it."""
        name = scan_stem(path).lower()
        return label_stem(path) != name and (path.parent, label_stem(path)) in self._images


def _folded(folder: Path) -> Path:
    return folder.with_name(folder.name.lower())


def _index(folder: Path, is_label_file: Callable[[str], bool]) -> dict[tuple[str, str], list[Path]]:
    """Map (relative folder, name) and (anywhere, name) to label files."""
    index: dict[tuple[str, str], list[Path]] = {}
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        for file in sorted(files):
            if is_label_file(file) and not file.startswith("."):
                path = Path(parent, file)
                for name in dict.fromkeys((scan_stem(file).lower(), label_stem(file))):
                    index.setdefault((str(path.parent.relative_to(folder)), name), []).append(path)
                    index.setdefault(("*", name), []).append(path)
    return index


def _lookup(index: dict[tuple[str, str], list[Path]], folder: str, name: str, image: Path | None = None) -> Path | None:
    # Where labels and images share a folder, an image is not its own label.
    found = [path for path in index.get((folder, name), []) if path != image]
    exact = [path for path in found if scan_stem(path).lower() == name]
    return next((candidates[0] for candidates in (exact, found) if len(candidates) == 1), None)
