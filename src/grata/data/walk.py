"""Walk through a folder of scans and sort its files by their names."""

import contextlib
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..files import FIGURES, JOURNAL, OVERVIEW, SEGMENTATIONS
from .labels import is_image_folder, is_label_folder
from .nifti import is_nifti
from .pictures import is_label_picture

__all__ = ["Files", "walk"]

# Folders of an earlier run whose output folder lies among the scans.
_EARLIER_FOLDERS = {SEGMENTATIONS, FIGURES}


@dataclass
class Files:
    """Files and folders of a data set, in the order in which they were found.

    Attributes:
        nifti: NIfTI files, images and labels alike.
        pictures: pictures and GIFs, images and labels alike.
        other: other files, each of which may be DICOM; pictures too where they were not asked for.
        label_folders: folders of label maps within the data set or beside it.
        unreadable: folders that cannot be read.
    """

    nifti: list[Path] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)
    other: list[Path] = field(default_factory=list)
    label_folders: list[Path] = field(default_factory=list)
    unreadable: list[Path] = field(default_factory=list)


def walk(root: Path, labels_root: Path | None, pictures: bool) -> Files:
    """Collect the files of a folder and its subfolders, without hidden ones and the results of earlier runs.

    Args:
        root: folder of the data set.
        labels_root: separate folder of label maps, which is not searched for images; None where there is none.
        pictures: whether to collect pictures. They are left out beside a folder of images, because only masks of the
            field of view, drawings and the like lie there.
    """
    files = Files()
    if labels_root is None:
        files.label_folders += _label_folders_beside(root)
    skipped = set() if labels_root is None else {labels_root.resolve()}
    beside_images: set[Path] = set()
    visited = set()
    walker = os.walk(root, onerror=lambda error: files.unreadable.append(Path(error.filename)), followlinks=True)
    for parent, folders, names in walker:
        folder = Path(parent)
        # Links are followed and may lead back to a folder above.
        if folder.resolve() in visited:
            folders.clear()
            continue
        visited.add(folder.resolve())
        children = [folder / name for name in sorted(folders) if not name.startswith(".")]
        labelled = [child for child in children if is_label_folder(child, folders)]
        files.label_folders += labelled
        _extend_beside_images(beside_images, folder, children)
        earlier = _EARLIER_FOLDERS if JOURNAL in names else ()
        folders[:] = [
            child.name
            for child in children
            if child not in labelled and child.name not in earlier and child.resolve() not in skipped
        ]
        _sort_files(files, folder, names, pictures, folder in beside_images)
    return files


def _label_folders_beside(root: Path) -> list[Path]:
    # The user may not have the permission to read the folder above.
    with contextlib.suppress(OSError):
        beside = [path for path in sorted(root.parent.iterdir()) if path.is_dir()]
        return [path for path in beside if is_label_folder(path, [root.name])]
    return []


def _extend_beside_images(beside_images: set[Path], folder: Path, children: Sequence[Path]) -> None:
    """Add the folders that lie beside a folder of images, or below one that does, and the folder they share."""
    image_folders = [child for child in children if is_image_folder(child.name)]
    if folder in beside_images:
        beside_images.update(children)
    elif image_folders:
        beside_images.update({folder, *children}.difference(image_folders))


def _sort_files(files: Files, folder: Path, names: Iterable[str], pictures: bool, beside_images: bool) -> None:
    results = {OVERVIEW} if JOURNAL in names else set()
    for name in sorted(names):
        path = folder / name
        if name.startswith(".") or not _is_regular(path):
            continue
        if is_nifti(name):
            files.nifti.append(path)
        elif not pictures or not is_label_picture(name):
            files.other.append(path)
        elif not beside_images and name not in results:
            files.pictures.append(path)


def _is_regular(path: Path) -> bool:
    """Return False for pipes and the like; a file that cannot be examined counts, so that its reader reports it."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True
