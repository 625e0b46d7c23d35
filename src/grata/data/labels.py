"""Find the label map that belongs to an image, by name."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from .dicom_phases import CARDIAC_PHASE
from .volume_files import is_volume_file, volume_stem

__all__ = ["LabelIndex", "is_image_folder", "is_label_folder", "scan_stem"]

_SUFFIX = re.compile(r"[-_.](seg|segmentation|labels?|mask|gt)$")
_PHASE = re.compile(rf"-{CARDIAC_PHASE}\d+$", re.IGNORECASE)
# nnU-Net's number of the first channel of an image.
_CHANNEL = re.compile(r"_0000$")
_IMAGE_FOLDER = re.compile(r"image(|s\w*)")
_LABEL_FOLDER = re.compile(r"(labels|masks)(\w*)|mask")


def is_image_folder(name: str) -> bool:
    """Return whether a folder of this name holds only images: ``images``, ``imagesTr``, ..., ``image``."""
    return _IMAGE_FOLDER.fullmatch(name.lower()) is not None


def is_label_folder(folder: Path, siblings: Iterable[str]) -> bool:
    """Return whether a folder is the ``labels``, ``masks`` or ``mask`` beside an ``images`` or ``image`` folder.

    ``labelsTr`` belongs to ``imagesTr``, and so on.

    Args:
        folder: folder that may hold labels.
        siblings: names of the folders beside it.
    """
    match = _LABEL_FOLDER.fullmatch(folder.name.lower())
    if match is None:
        return False
    wanted = {f"images{match[2]}"} if match[2] else {"images", "image"}
    return not wanted.isdisjoint(sibling.lower() for sibling in siblings)


def scan_stem(path: str | os.PathLike[str]) -> str:
    """Return a file's name without folder and extension."""
    return volume_stem(path) if is_volume_file(path) else Path(path).stem


def _label_stem(path: str | os.PathLike[str]) -> str:
    """Return the name of the image that a label map belongs to, in lower case: its own name without ``_seg``, ..."""
    return _SUFFIX.sub("", scan_stem(path).lower())


def _image_stems(path: str | os.PathLike[str]) -> list[str]:
    """Return the names under which an image's label is looked for, in lower case and in this order."""
    name = scan_stem(path).lower()
    return list(dict.fromkeys((name, _CHANNEL.sub("", name))))


class LabelIndex:
    """Index of the label maps of a data set by name, in upper or lower case.

    An image's label is looked for in the first of these places that exists:

    1. in ``labels_dir``;
    2. in the ``labels``, ``masks`` or ``mask`` folder beside the image's ``images`` or ``image`` folder (``labelsTr``
       beside ``imagesTr``);
    3. beside the image, as ``<name>_seg``, ``<name>_segmentation``, ``<name>_label`` or ``<name>_mask`` (also with
       ``-`` or ``.``).

    In a folder of labels, a label at the image's own relative path comes first. A label elsewhere in that folder is
    taken only when no other image claims it. A name that occurs twice in one place gives no label.

    Args:
        files: files of the data set that may be images or labels.
        label_folders: folders of labels within the data set or beside it.
        labels_dir: separate folder of labels, or None.
        is_label_file: function that returns, for a file name, whether it has the format of ``files``.
    """

    def __init__(
        self,
        files: Iterable[Path],
        label_folders: Iterable[Path],
        labels_dir: Path | None,
        is_label_file: Callable[[str], bool] = is_volume_file,
    ) -> None:
        self._labels_dir = None if labels_dir is None else _index(labels_dir, is_label_file)
        self._label_folders = {_folded(folder): _index(folder, is_label_file) for folder in label_folders}
        self._images = {(path.parent, name) for path in files for name in _image_stems(path)}
        self._labels: dict[tuple[Path, str], list[Path]] = {}
        for path in files:
            if self.is_label(path):
                self._labels.setdefault((path.parent, _label_stem(path)), []).append(path)

    def assign(self, images: Sequence[tuple[Path, str]], root: Path) -> list[Path | None]:
        """Return the label map of each image below ``root``, or None.

        Args:
            images: images, each with the id of its case.
            root: folder of the data set.
        """
        found = [self._find(image, root, case) for image, case in images]
        claims = Counter(label for label, _ in found)
        owned = {label for label, own in found if own}
        return [label if own or (claims[label] == 1 and label not in owned) else None for label, own in found]

    def find_named(self, case: str) -> Path | None:
        """Return the label map in ``labels_dir`` that is named after a case, or None."""
        return None if self._labels_dir is None else _lookup(self._labels_dir, ".", case.lower())

    def _find(self, image: Path, root: Path, case: str) -> tuple[Path | None, bool]:
        """Return the label map, and whether its folder or full name shows that it belongs to this image only."""
        for name in _image_stems(image):
            index, folder = self._index_of(image, root)
            if index is None:
                beside = self._labels.get((image.parent, name), [])
                label, own = (beside[0], True) if len(beside) == 1 else (None, False)
            else:
                label, own = _lookup(index, folder, name, image), True
                if label is None:
                    # Labels may lie in one folder although the images lie in several, and the reverse.
                    label, own = _lookup(index, "*" if folder == "." else ".", name, image), False
            if label is not None:
                return label, own
        return self.find_named(case), True

    def _index_of(self, image: Path, root: Path) -> tuple[dict[tuple[str, str], list[Path]] | None, str]:
        """Return the index of the folder that holds an image's label, and the image's own relative folder."""
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
        stem = _label_stem(path)
        return stem != name and any((path.parent, image) in self._images for image in (stem, _PHASE.sub("", stem)))


def _folded(folder: Path) -> Path:
    return folder.with_name(folder.name.lower())


def _index(folder: Path, is_label_file: Callable[[str], bool]) -> dict[tuple[str, str], list[Path]]:
    """Return the label files below a folder by (relative folder, name) and by (``"*"``, name)."""
    index: dict[tuple[str, str], list[Path]] = {}
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        for file in sorted(files):
            if is_label_file(file) and not file.startswith("."):
                path = Path(parent, file)
                for name in dict.fromkeys((scan_stem(file).lower(), _label_stem(file))):
                    index.setdefault((str(path.parent.relative_to(folder)), name), []).append(path)
                    index.setdefault(("*", name), []).append(path)
    return index


def _lookup(index: dict[tuple[str, str], list[Path]], folder: str, name: str, image: Path | None = None) -> Path | None:
    # An image in a folder that holds labels too is not its own label.
    found = [path for path in index.get((folder, name), []) if path != image]
    exact = [path for path in found if scan_stem(path).lower() == name]
    return next((candidates[0] for candidates in (exact, found) if len(candidates) == 1), None)
