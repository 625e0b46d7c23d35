"""Find the scans in a folder, one item per scan, and say which ones cannot be used and why."""

import contextlib
import fnmatch
import hashlib
import os
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..errors import GrataError
from ..files import FIGURES, JOURNAL, OVERVIEW, SEGMENTATIONS
from .case_list import read_case_lists
from .dicom import (
    BrokenFileError,
    Instance,
    is_named_dicom,
    read_instance,
    series_geometry,
    series_identifiers,
    sort_series,
)
from .geometry import GeometryError
from .identifiers import printable, remove_identifiers, safe_path
from .labels import LabelIndex, is_image_folder, is_label_folder, scan_stem
from .nifti import check_nifti, grid_difference, is_nifti, load_nifti
from .pictures import is_label_picture, is_picture, picture_size

__all__ = ["Discovery", "Fault", "discover"]

# Below this number of files indexing is over before a progress bar can be read.
_FILES_FOR_PROGRESS = 50
# What an earlier run left in an output folder that lies among the scans.
_EARLIER_FOLDERS = {SEGMENTATIONS, FIGURES}

_REMEDY_2D = "DICOM is read as volumes alone, and this bundle wants 2D images: convert it to PNG or NIfTI."
_REMEDY = "Export the series again, complete and alone, or leave it out by selecting others (modality, description)."


@dataclass(frozen=True)
class Fault:
    """A scan that cannot be used.

    Attributes:
        case: its id, as a usable case would have it.
        message: what is wrong, in which file or series, and the remedy; free of the patient's identity.
    """

    case: str
    message: str


@dataclass(frozen=True)
class Discovery:
    """What a folder holds.

    Attributes:
        cases: one dictionary a usable scan, sorted by id. ``case``: unique id. ``image``: path of the NIfTI file or of
            the picture, or list of the files of a DICOM series along its slice normal. ``label``: path, only when one
            was found. ``site``: name of the site. ``format``: ``"nifti"``, ``"dicom"`` or ``"picture"``.
        faults: the scans that cannot be used.
    """

    cases: list[dict] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


@dataclass
class _Files:
    nifti: list[Path] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)
    other: list[Path] = field(default_factory=list)
    label_folders: list[Path] = field(default_factory=list)
    unreadable: list[Path] = field(default_factory=list)


def discover(
    dataset_dir: str | os.PathLike[str],
    modality: str | None = None,
    description: str | None = None,
    labels_dir: str | os.PathLike[str] | None = None,
    site: str | None = None,
    spatial_dims: int = 3,
    cases_file: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
) -> Discovery:
    """Index the NIfTI files, DICOM series and pictures of a folder and its subfolders.

    NIfTI is told by its extension, DICOM by its content, pictures (PNG, JPEG, TIFF, BMP; only for 2D) by their
    extension. Hidden files are passed over, and so are DICOM objects that are no images (DICOMDIR, SEG, SR, RTSTRUCT,
    ...) and what earlier runs wrote (``segmentations``, ``figures`` and ``overview.png`` beside a ``journal.jsonl``).
    One item is made per Series Instance UID, however the files lie. Where a folder holds an ``images`` (``imagesTr``,
    ...) or ``image`` folder, pictures are taken from there and from nowhere else in it: beside it lie masks of the
    field of view, drawings and the like.

    Args:
        dataset_dir: the folder.
        modality: keep only DICOM series of this modality (``"MR"``, ``"CT"``), in any case.
        description: keep only DICOM series whose description contains this text or matches this pattern
            (``"*T1*post*"``), in any case. NIfTI files and pictures carry neither: they are kept whatever is selected.
        labels_dir: folder of label maps (NIfTI, or pictures for pictures) named like the images, or like the cases for
            DICOM. Without it labels are looked for in a ``labels``, ``masks`` or ``mask`` folder beside ``images`` or
            ``image`` (also ``labelsTr``, ``imagesTr``) and beside the image as ``<name>_seg``, ``<name>_label`` or
            ``<name>_mask``. A picture's label may have another extension than the picture, also ``.gif``.
        site: name of the site the scans come from, unless ``cases_file`` says otherwise; ``"unknown"`` by default.
        spatial_dims: 3 for volumes; 2 for pictures and NIfTI images of a single slice. DICOM series are always volumes.
        cases_file: one CSV file or several, each a path or a name in ``dataset_dir``: only the images in its column
            ``image`` are taken, with the label maps in its column ``mask`` (empty for none), all as paths relative to
            ``dataset_dir``; a column ``site`` tells where each comes from, in a stream of several sites. For NIfTI files
            and pictures.

    Returns:
        The usable cases and the faults. Slice distances may differ by 1 % or 0.01 mm, whichever is larger, direction
        cosines by 0.001; no geometry is guessed. Of pictures the beginning is read, of the others the headers: that a
        file is cut short later on shows when it is loaded.

    Raises:
        GrataError: a folder is missing, unreadable or holds no scans, the selection or ``labels_dir`` matches nothing,
            or a list of cases cannot be used.
    """
    root = _existing_folder(dataset_dir, "dataset_dir")
    labels_root = None if labels_dir is None else _existing_folder(labels_dir, "labels_dir")
    common = {"site": site or "unknown"}
    result = Discovery()
    if cases_file is not None:
        if labels_root is not None:
            raise GrataError(
                "the list names the labels, in its column mask. Give one of them.", key="cases_file, labels_dir"
            )
        listed = read_case_lists(cases_file, root)
        for path, case in _file_ids(list(listed), root, frozenset()):
            mask, own_site = listed[path]
            missing = [file for file in (path, mask) if file is not None and not file.is_file()]
            if missing:
                shown = printable(_relative(missing[0], root))
                message = f"File '{shown}' is in the list of cases, but not there. Put it back, or correct the list."
                result.faults.append(Fault(case, message))
                continue
            told = {"site": own_site or common["site"]}
            _add_file(result, path, case, mask, root, spatial_dims, frozenset(), told)
        return _sorted(result)

    modality, description = (None if value is None else str(value) for value in (modality, description))
    files = _walk(root, labels_root, pictures=spatial_dims == 2)
    nifti_labels = LabelIndex(files.nifti, files.label_folders, labels_root)
    picture_labels = LabelIndex(files.pictures, files.label_folders, labels_root, is_label_picture)
    instances, broken = _read_instances(files.other)
    identifiers = series_identifiers(instances)
    for folder in files.unreadable:
        name = safe_path(folder, root)
        result.faults.append(Fault(_hashed("folder", name), f"Folder '{name}' cannot be read: check its permissions."))
    images = [path for path in files.nifti if not nifti_labels.is_label(path)]
    images += [path for path in files.pictures if is_picture(path) and not picture_labels.is_label(path)]
    named = _file_ids(images, root, identifiers)
    for index, is_format in ((nifti_labels, is_nifti), (picture_labels, is_picture)):
        group = [(path, case) for path, case in named if is_format(path)]
        for (path, case), label in zip(group, index.assign(group, root), strict=True):
            _add_file(result, path, case, label, root, spatial_dims, identifiers, common)
    _add_dicom(result, instances, broken, modality, description, nifti_labels, root, spatial_dims, common)

    if not result.cases and not result.faults:
        raise GrataError(_nothing_found(root, files, spatial_dims))
    if labels_root is not None and result.cases and not any("label" in case for case in result.cases):
        first = result.cases[0]
        extension = ".png" if first["format"] == "picture" else ".nii.gz"
        raise GrataError(
            f"No label map in '{labels_root}' (labels_dir) has the name of a case. Name the labels like the images, "
            f"here for example '{first['case']}{extension}', or leave labels_dir out."
        )
    return _sorted(result)


def _sorted(result: Discovery) -> Discovery:
    result.cases.sort(key=lambda case: case["case"])
    result.faults.sort(key=lambda fault: (fault.case, fault.message))
    return result


def _nothing_found(root: Path, files: _Files, spatial_dims: int) -> str:
    pictures = sum(is_picture(path) for path in files.other)
    if pictures:
        return (
            f"The folder '{root}' (dataset_dir) holds pictures ({pictures}), but no NIfTI file and no DICOM image, and "
            "this bundle wants volumes. Name the folder of the scans, or take a bundle for pictures."
        )
    wanted = "no picture, no NIfTI file" if spatial_dims == 2 else "no NIfTI file"
    return f"The folder '{root}' (dataset_dir) holds {wanted} and no DICOM image. Name the folder of the scans."


def _existing_folder(folder: str | os.PathLike[str], key: str) -> Path:
    path = Path(os.path.abspath(Path(folder).expanduser()))
    if path.is_file():
        raise GrataError(f"'{path}' ({key}) is a file. Name the folder that holds it.")
    if not path.is_dir():
        raise GrataError(f"The folder '{path}' ({key}) does not exist. Name an existing folder.")
    try:
        os.scandir(path).close()
    except OSError as error:
        message = f"The folder '{path}' ({key}) cannot be read: {error.strerror}. Check its permissions."
        raise GrataError(message) from error
    return path


def _walk(root: Path, labels_root: Path | None, pictures: bool) -> _Files:
    files = _Files()
    # Folders that lie beside those of the images.
    beside_images: set[Path] = set()
    if labels_root is None:
        # The folder above may be closed to the user.
        with contextlib.suppress(OSError):
            beside = [path for path in sorted(root.parent.iterdir()) if path.is_dir()]
            files.label_folders += [path for path in beside if is_label_folder(path, [root.name])]
    visited = set()
    walker = os.walk(root, onerror=lambda error: files.unreadable.append(Path(error.filename)), followlinks=True)
    for parent, folders, names in walker:
        folder = Path(parent)
        # Followed links may lead back up.
        if folder.resolve() in visited:
            folders.clear()
            continue
        visited.add(folder.resolve())
        children = [folder / name for name in sorted(folders) if not name.startswith(".")]
        labelled = [child for child in children if is_label_folder(child, folders)]
        image_folders = [child for child in children if is_image_folder(child.name)]
        if folder in beside_images:
            beside_images.update(children)
        elif image_folders:
            beside_images.update({folder, *children}.difference(image_folders))
        earlier = _EARLIER_FOLDERS if JOURNAL in names else ()
        files.label_folders += labelled
        skipped = {labels_root.resolve()} if labels_root is not None else set()
        folders[:] = [
            child.name
            for child in children
            if child not in labelled and child.name not in earlier and child.resolve() not in skipped
        ]
        for name in sorted(names):
            if name.startswith(".") or not _is_regular(folder / name):
                continue
            if is_nifti(name):
                files.nifti.append(folder / name)
            elif not pictures or not is_label_picture(name):
                files.other.append(folder / name)
            elif folder not in beside_images and not (JOURNAL in names and name == OVERVIEW):
                files.pictures.append(folder / name)
    return files


def _is_regular(path: Path) -> bool:
    """Whether a file can be read to an end; one that cannot be looked at is left to those who read it."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True


def _read_instances(paths: Sequence[Path]) -> tuple[list[Instance], list[tuple[Path, str]]]:
    instances, broken = [], []
    # None leaves the decision to tqdm: no bar unless a person is watching.
    disable = True if len(paths) < _FILES_FOR_PROGRESS else None
    for path in tqdm(paths, desc="Indexing scans", unit="file", leave=False, disable=disable):
        try:
            instance = read_instance(path)
        except BrokenFileError as error:
            broken.append((path, str(error)))
        else:
            if instance is not None:
                instances.append(instance)
    return instances, broken


def _file_ids(paths: Sequence[Path], root: Path, identifiers: frozenset[str]) -> list[tuple[Path, str]]:
    """Name cases of one file by its stem, with as much of the path as makes them unique."""

    def longer(path: Path) -> str:
        folders = [re.sub(r"[\[\]]", "", remove_identifiers(part, identifiers)) for part in _folders(path, root)]
        return printable("-".join((*folders, scan_stem(path))))

    def hashed(path: Path) -> str:
        return f"{longer(path)}-{_digest(_relative(path, root))}"

    ids = [printable(scan_stem(path)) for path in paths]
    for name in (longer, hashed):
        counts = Counter(ids)
        ids = [name(path) if counts[old] > 1 else old for old, path in zip(ids, paths, strict=True)]
    return list(zip(paths, ids, strict=True))


def _folders(path: Path, root: Path) -> tuple[str, ...]:
    parts = path.relative_to(root).parts[:-1]
    return parts[1:] if parts and is_image_folder(parts[0]) else parts


def _add_file(
    result: Discovery,
    path: Path,
    case: str,
    label: Path | None,
    root: Path,
    spatial_dims: int,
    identifiers: frozenset[str],
    common: dict,
) -> None:
    try:
        check = _check_nifti_file if is_nifti(path) else _check_picture
        check(path, label, root, spatial_dims)
    except GrataError as error:
        parent = _relative(path.parent, root)
        message = str(error).replace(f"{root}{os.sep}", "").replace(parent, remove_identifiers(parent, identifiers))
        result.faults.append(Fault(case, printable(message)))
        return
    found = {} if label is None else {"label": str(label)}
    file_format = "nifti" if is_nifti(path) else "picture"
    result.cases.append({"case": case, "image": str(path), **found, **common, "format": file_format})


def _check_nifti_file(path: Path, label: Path | None, root: Path, spatial_dims: int) -> None:
    image = load_nifti(path)
    check_nifti(image, path, spatial_dims)
    if label is not None:
        _check_label(label, str(label), image.shape, image.affine, f"NIfTI file '{_relative(path, root)}'")


def _check_picture(path: Path, label: Path | None, root: Path, spatial_dims: int) -> None:
    if not is_picture(path):
        raise GrataError(f"File '{path}' is no NIfTI file and no picture by its name. Take it off the list of cases.")
    if spatial_dims != 2:
        raise GrataError(f"File '{path}' is a picture, but a volume is wanted. Take it off the list of cases.")
    size = picture_size(path)
    if label is None:
        return
    if not is_label_picture(label):
        raise GrataError(
            f"Label '{label}' is no picture, but its image, '{_relative(path, root)}', is. Convert it to PNG."
        )
    found = picture_size(label)
    if found != size:
        raise GrataError(
            f"Label '{label}' has {found[1]} × {found[0]} pixels, but its image, '{_relative(path, root)}', "
            f"{size[1]} × {size[0]} as it is shown (after its EXIF orientation). Make the label anew at that size, or "
            "remove it."
        )


def _check_label(label: Path, shown: str, shape: Sequence[int], affine: np.ndarray, image_name: str) -> None:
    label_image = load_nifti(label)
    difference = grid_difference(shape, affine, label_image.shape, label_image.affine)
    if difference:
        raise GrataError(
            f"Label '{shown}' does not lie on the voxels of its image, {image_name}: it has {difference}. Resample the "
            "label onto the image, or remove it."
        )


def _add_dicom(
    result: Discovery,
    instances: Sequence[Instance],
    broken: Sequence[tuple[Path, str]],
    modality: str | None,
    description: str | None,
    labels: LabelIndex,
    root: Path,
    spatial_dims: int,
    common: dict,
) -> None:
    series: dict[str, list[Instance]] = defaultdict(list)
    for instance in instances:
        series[instance.series].append(instance)
    selected = {uid: group for uid, group in series.items() if _matches(group[0], modality, description)}
    if series and not selected:
        raise GrataError(_nothing_selected(series.values(), modality, description))
    by_folder: dict[Path, set[str]] = defaultdict(set)
    for instance in instances:
        by_folder[Path(instance.path).parent].add(instance.series)

    defects = {}
    for path, reason in broken:
        neighbours = by_folder.get(path.parent, set())
        if not neighbours and not is_named_dicom(path):
            continue
        # Its own header cannot be trusted to name the patient, and its neighbours may be of others.
        name = safe_path(path, root)
        message = f"DICOM file '{name}' cannot be used: {reason}. Copy or export it again."
        if len(neighbours) == 1:
            # It can only be a slice of this series, which would be read one slice short.
            defects[next(iter(neighbours))] = message
        else:
            if neighbours:
                message += f" It may belong to one of the {len(neighbours)} series in its folder: check their extent."
            result.faults.append(Fault(_hashed("file", _relative(path, root)), message))
    for uid, group in selected.items():
        _add_series(result, group, defects.get(uid), labels, root, spatial_dims, common)


def _add_series(
    result: Discovery,
    group: Sequence[Instance],
    defect: str | None,
    labels: LabelIndex,
    root: Path,
    spatial_dims: int,
    common: dict,
) -> None:
    first = group[0]
    identifiers = series_identifiers(group)
    case = f"{first.modality.lower()}-series{first.number:03d}-{_digest(first.series)}"
    folder = printable(remove_identifiers(_relative(Path(first.path).parent, root), identifiers))
    name = f"DICOM series {case} ({len(group)} file{'s' * (len(group) > 1)}, in '{folder}')"
    try:
        if defect:
            raise GeometryError(f"it is incomplete. {defect}")
        ordered = sort_series(group)
        geometry = series_geometry(ordered)
    # highdicom raises ValueError for a grid that it does not take.
    except ValueError as error:
        remedy = _REMEDY_2D if spatial_dims == 2 else _REMEDY
        message = f"{name} cannot be used: {str(error).removesuffix('.')}. {remedy}"
        result.faults.append(Fault(case, message))
        return
    label = labels.find_named(case)
    if label is not None:
        try:
            shown = printable(remove_identifiers(str(label), identifiers))
            _check_label(label, shown, geometry.spatial_shape, geometry.get_affine("RAS"), name)
        except GrataError as error:
            result.faults.append(Fault(case, str(error)))
            return
    found = {} if label is None else {"label": str(label)}
    image = [instance.path for instance in ordered]
    result.cases.append({"case": case, "image": image, **found, **common, "format": "dicom"})


def _matches(instance: Instance, modality: str | None, description: str | None) -> bool:
    if modality and instance.modality != modality.strip().upper():
        return False
    if not description:
        return True
    text, pattern = instance.description.lower(), description.lower()
    return pattern in text or fnmatch.fnmatchcase(text, pattern)


def _nothing_selected(series: Iterable[Sequence[Instance]], modality: str | None, description: str | None) -> str:
    found: dict[str, list[str]] = defaultdict(list)
    for group in series:
        found[group[0].modality].append(remove_identifiers(group[0].description, group[0].identifiers) or "none")
    wanted = " and ".join(
        f"{key} '{value}'" for key, value in (("modality", modality), ("description", description)) if value
    )
    listed = "; ".join(
        f"{len(names)} of modality {key} (descriptions: {', '.join(sorted(set(names))[:10])})"
        for key, names in sorted(found.items())
    )
    return f"No DICOM series has {wanted}. Found: {listed}. Choose one of these."


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]


def _hashed(kind: str, text: str) -> str:
    return f"{kind}-{_digest(text)}"
