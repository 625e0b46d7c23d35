"""Walk through a folder of scans and sort its files by their names."""

import contextlib
import os
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..files import FIGURES, JOURNAL, OVERVIEW, SEGMENTATIONS
from .dicom_file import is_named_dicom
from .labels import is_image_folder, is_label_folder
from .nifti import is_nifti_pair, pair_image
from .pictures import is_label_picture
from .volume_files import VOLUME_ENDINGS, is_volume_file

__all__ = ["Files", "image_ending", "walk"]

# Folders of an earlier run whose output folder lies among the scans.
_EARLIER_FOLDERS = {SEGMENTATIONS, FIGURES}
# How images and archives of them are named that are not read.
_UNREAD = (
    ".nii.bz2", ".nii.xz", ".nii.zst", ".nii.zip", ".hdr", ".hdr.gz", ".img.gz", ".mgz", ".mgh", ".mnc", ".par", ".rec",
    ".gipl", ".vtk", ".vti", ".v", ".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".7z", ".rar", ".npy", ".npz", ".h5",
    ".webp", ".heic", ".jp2", ".nii.z", ".dcm.gz", ".dcm.bz2", ".dcm.xz", ".brik", ".brik.gz", ".brik.bz2", ".head",
    ".mif", ".mif.gz", ".minc", ".mat",
    # what is packed cannot be known by its name; last, so that longer endings are named
    ".gz", ".xz", ".bz2",
)  # fmt: skip

# What a DICOM file may be called as well.
_UNREAD_UNLESS_DICOM = (".img",)


@dataclass
class Files:
    """Files and folders of a data set, in the order in which they were found.

    Attributes:
        volumes: NIfTI, MetaImage and NRRD files, images and labels alike.
        pictures: pictures and GIFs, images and labels alike.
        other: other files, each of which may be DICOM; pictures too where they were not asked for.
        label_folders: folders of label maps within the data set or beside it.
        unreadable: folders that cannot be read.
        unread: number of files that are images of a kind that is not read, by how their names end.
        dangling: number of links that lead nowhere, apart from those that are named as a scan.
        special: number of pipes, sockets and devices, or links to one, that are named as a scan.
    """

    volumes: list[Path] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)
    other: list[Path] = field(default_factory=list)
    label_folders: list[Path] = field(default_factory=list)
    unreadable: list[Path] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)
    dangling: int = 0
    special: int = 0

    def count_unread(self, others: Iterable[Path], unused: Iterable[Path]) -> None:
        """Count what is an image of a kind that is not read, though its name did not say so.

        Args:
            others: files of ``other`` that are not DICOM.
            unused: files of ``pictures`` that are neither images nor labels.
        """
        self.unread.update(path.suffix.lower() for path in others if path.suffix.lower() in _UNREAD_UNLESS_DICOM)
        self.unread.update(path.suffix.lower() for path in unused)


def image_ending(path: Path) -> str:
    """Return how the name of an image ends, of whatever kind, read or not; empty for other files."""
    plain = (*VOLUME_ENDINGS, *_UNREAD, *_UNREAD_UNLESS_DICOM)
    ending = next((path.name[-len(ending) :] for ending in plain if path.name.lower().endswith(ending)), "")
    return ending or (path.suffix if is_label_picture(path) or is_named_dicom(path) else "")


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
    paths, special = _regular_files(folder, names)
    files.special += sum(map(bool, map(image_ending, special)))
    volumes = list(filter(_is_volume, paths))
    files.volumes += volumes
    sorted_apart = {*volumes, *(pair_image(path) for path in volumes if _is_header(path))}
    for path in paths:
        if path in sorted_apart:
            continue
        if pictures and is_label_picture(path):
            files.pictures += [] if beside_images else [path]
        else:
            _sort_other(files, path, pictures)


def _regular_files(folder: Path, names: Iterable[str]) -> tuple[list[Path], list[Path]]:
    """Return the files of a folder, and apart from them pipes and the like."""
    results = {OVERVIEW} if JOURNAL in names else set()
    paths = [folder / name for name in sorted(names) if not name.startswith(".") and name not in results]
    regular = list(filter(_is_regular, paths))
    return regular, sorted({*paths}.difference(regular))


def _sort_other(files: Files, path: Path, pictures: bool) -> None:
    if ending := _unread_ending(path):
        files.unread[ending] += 1
    elif _leads_nowhere(path):
        files.dangling += 1
    else:
        files.other.append(path)
        files.unread["picture"] += not pictures and is_label_picture(path)


def _is_volume(path: Path) -> bool:
    return is_volume_file(path) and (not _is_header(path) or is_nifti_pair(path))


def _is_header(path: Path) -> bool:
    return path.name.lower().endswith((".hdr", ".hdr.gz"))


def _unread_ending(path: Path) -> str | None:
    if _is_packed_raw(path):
        return None
    return next((ending for ending in _UNREAD if path.name.lower().endswith(ending)), None)


def _is_packed_raw(path: Path) -> bool:
    """Return whether a packed file holds the voxels of a header beside it, as NRRD and MetaImage have it."""
    stem, *endings = path.name.lower().split(".")
    return endings[-2:] == ["raw", "gz"] or (
        endings == ["gz"] and any(path.with_name(path.name[: len(stem)] + end).is_file() for end in (".nhdr", ".mhd"))
    )


def _leads_nowhere(path: Path) -> bool:
    """Return whether a file is a link that leads nowhere; one that may be a slice counts as a file that is missing."""
    return path.is_symlink() and not os.path.exists(path) and not _may_be_slice(path)


def _may_be_slice(path: Path) -> bool:
    """Return whether a file is named like a slice of a DICOM series, which often has no extension."""
    return path.suffix.lower() in ("", ".dcm", ".dicom", ".ima") or path.suffix[1:].isdigit()


def _is_regular(path: Path) -> bool:
    """Return False for pipes and the like; a file that cannot be examined counts, so that its reader reports it."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True
