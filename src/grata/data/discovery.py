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
from ..files import JOURNAL, SEGMENTATIONS
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
from .labels import LabelIndex, is_label_folder
from .nifti import check_nifti, grid_difference, is_nifti, load_nifti, nifti_stem

__all__ = ["Discovery", "Fault", "discover"]

# Below this number of files indexing is over before a progress bar can be read.
_FILES_FOR_PROGRESS = 50

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
        cases: one dictionary a usable scan, sorted by id. ``case``: unique id. ``image``: path of the NIfTI file, or
            list of the files of a DICOM series along its slice normal. ``label``: path, only when one was found.
            ``site``: name of the site. ``format``: ``"nifti"`` or ``"dicom"``.
        faults: the scans that cannot be used.
    """

    cases: list[dict] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


@dataclass
class _Files:
    nifti: list[Path] = field(default_factory=list)
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
) -> Discovery:
    """Index the NIfTI files and DICOM series of a folder and its subfolders.

    NIfTI is told by its extension, DICOM by its content. Hidden files are passed over, and so are DICOM objects that
    are no images (DICOMDIR, SEG, SR, RTSTRUCT, ...) and the segmentations of earlier runs (``segmentations`` beside a
    ``journal.jsonl``). One item is made per Series Instance UID, however the files lie.

    Args:
        dataset_dir: the folder.
        modality: keep only DICOM series of this modality (``"MR"``, ``"CT"``), in any case.
        description: keep only DICOM series whose description contains this text or matches this pattern
            (``"*T1*post*"``), in any case. NIfTI files carry neither: they are kept whatever is selected.
        labels_dir: folder of label maps (NIfTI) named like the images, or like the cases for DICOM. Without it labels
            are looked for in a ``labels`` folder beside ``images`` (also ``labelsTr``, ``imagesTr``) and beside the
            image as ``<name>_seg``, ``<name>_label`` or ``<name>_mask``.
        site: name of the site the scans come from; ``"unknown"`` by default.
        spatial_dims: 3 for volumes; 2 for NIfTI images of a single slice. DICOM series are always volumes.

    Returns:
        The usable cases and the faults. Slice distances may differ by 1 % or 0.01 mm, whichever is larger, direction
        cosines by 0.001; no geometry is guessed.

    Raises:
        GrataError: a folder is missing, unreadable or holds no scans, or the selection or ``labels_dir`` matches
            nothing.
    """
    root = _existing_folder(dataset_dir, "dataset_dir")
    labels_root = None if labels_dir is None else _existing_folder(labels_dir, "labels_dir")
    modality, description = (None if value is None else str(value) for value in (modality, description))
    files = _walk(root, labels_root)
    labels = LabelIndex(files.nifti, files.label_folders, labels_root)
    common = {"site": site or "unknown"}

    instances, broken = _read_instances(files.other)
    identifiers = series_identifiers(instances)
    result = Discovery()
    for folder in files.unreadable:
        name = safe_path(folder, root)
        result.faults.append(Fault(_hashed("folder", name), f"Folder '{name}' cannot be read: check its permissions."))
    named = _nifti_ids([path for path in files.nifti if not labels.is_label(path)], root, identifiers)
    for (path, case), label in zip(named, labels.assign(named, root), strict=True):
        _add_nifti(result, path, case, label, root, spatial_dims, identifiers, common)
    _add_dicom(result, instances, broken, modality, description, labels, root, common)

    if not result.cases and not result.faults:
        raise GrataError(
            f"The folder '{root}' (dataset_dir) holds no NIfTI file and no DICOM image. Name the folder of the scans."
        )
    if labels_root is not None and result.cases and not any("label" in case for case in result.cases):
        raise GrataError(
            f"No label map in '{labels_root}' (labels_dir) has the name of a case. Name the labels like the images, "
            f"here for example '{result.cases[0]['case']}.nii.gz', or leave labels_dir out."
        )
    result.cases.sort(key=lambda case: case["case"])
    result.faults.sort(key=lambda fault: (fault.case, fault.message))
    return result


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


def _walk(root: Path, labels_root: Path | None) -> _Files:
    files = _Files()
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
        # The segmentations of an earlier run whose output folder lies among the scans.
        earlier = SEGMENTATIONS if JOURNAL in names else None
        files.label_folders += labelled
        skipped = {labels_root.resolve()} if labels_root is not None else set()
        folders[:] = [
            child.name
            for child in children
            if child not in labelled and child.name != earlier and child.resolve() not in skipped
        ]
        for name in sorted(names):
            if not name.startswith(".") and _is_regular(folder / name):
                (files.nifti if is_nifti(name) else files.other).append(folder / name)
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


def _nifti_ids(paths: Sequence[Path], root: Path, identifiers: frozenset[str]) -> list[tuple[Path, str]]:
    """Name NIfTI cases by their stem, with as much of the path as makes them unique."""

    def longer(path: Path) -> str:
        folders = [re.sub(r"[\[\]]", "", remove_identifiers(part, identifiers)) for part in _folders(path, root)]
        return printable("-".join((*folders, nifti_stem(path))))

    def hashed(path: Path) -> str:
        return f"{longer(path)}-{_digest(_relative(path, root))}"

    ids = [printable(nifti_stem(path)) for path in paths]
    for name in (longer, hashed):
        counts = Counter(ids)
        ids = [name(path) if counts[old] > 1 else old for old, path in zip(ids, paths, strict=True)]
    return list(zip(paths, ids, strict=True))


def _folders(path: Path, root: Path) -> tuple[str, ...]:
    parts = path.relative_to(root).parts[:-1]
    return parts[1:] if parts and parts[0].startswith("images") else parts


def _add_nifti(
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
        image = load_nifti(path)
        check_nifti(image, path, spatial_dims)
        if label is not None:
            _check_label(label, str(label), image.shape, image.affine, f"NIfTI file '{_relative(path, root)}'")
    except GrataError as error:
        parent = _relative(path.parent, root)
        message = str(error).replace(f"{root}{os.sep}", "").replace(parent, remove_identifiers(parent, identifiers))
        result.faults.append(Fault(case, printable(message)))
        return
    found = {} if label is None else {"label": str(label)}
    result.cases.append({"case": case, "image": str(path), **found, **common, "format": "nifti"})


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
        _add_series(result, group, defects.get(uid), labels, root, common)


def _add_series(
    result: Discovery,
    group: Sequence[Instance],
    defect: str | None,
    labels: LabelIndex,
    root: Path,
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
        message = f"{name} cannot be used: {str(error).removesuffix('.')}. {_REMEDY}"
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


def _nothing_selected(
    series: Iterable[Sequence[Instance]], modality: str | None, description: str | None
) -> str:
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
