"""Find the scans in a folder, one case per scan, and report the scans that cannot be used."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import check_choice, checked
from ..errors import GrataError
from ..files import absence, expanded
from .case_list import read_case_lists
from .dicom import error_reason
from .dicom_cases import DicomFiles, Selection, find_scans, index_dicom
from .dicom_index import series_identifiers
from .dicom_phases import CARDIAC_PHASE
from .identifiers import anonymous_id, printable, remove_identifiers, safe_path, short_digest
from .labels import LabelIndex, is_image_folder, scan_stem
from .nifti import grid_difference
from .phases import FileVolume, volumes_of
from .pictures import is_label_picture, is_picture, picture_size
from .volume_files import check_volume_file, fourth_axis_size, is_volume_file, volume_format, volume_grid
from .walk import Files, walk

__all__ = ["Discovery", "Fault", "discover"]

# An id becomes the name of files, before and behind which up to 22 characters stand; file systems take 255 bytes.
_LONGEST_ID = 233

_EXPORT = "Copy or export it again, or leave it out."


@dataclass(frozen=True)
class Fault:
    """A scan that cannot be used.

    Attributes:
        case: id of the scan, as a usable case would have it.
        message: what is wrong, in which file or series, and the remedy; it does not identify the patient.
    """

    case: str
    message: str


@dataclass(frozen=True)
class Discovery:
    """Usable and unusable scans of a folder.

    Attributes:
        cases: one dictionary per usable scan, sorted by id. ``case``: unique id. ``image``: path of the volume file or
            picture, or list of the files of a DICOM series along its slice normal. ``label``: path of the label map,
            only when one was found. ``site``: name of the site. ``format``: ``"nifti"``, ``"itk"`` (MetaImage, NRRD),
            ``"dicom"`` or ``"picture"``. ``phase``: index of the phase in a file that holds several, from 0 on, for
            :class:`grata.data.TakePhased`.
        faults: scans that cannot be used.
        paths: path of each case, and of each file with a fault, below the folder, by its id, for a person to find it:
            the file, or the folder of a series; what identifies the patient is left out.
        notes: what was passed over because it is not a scan, a sentence for each kind with its count; empty where
            nothing was. They do not identify the patient.
        places: path of each case and fault as it is, by its id, the first file of a series. It may name the patient,
            and must not be shown.
    """

    cases: list[dict[str, Any]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    paths: dict[str, str] = field(default_factory=dict, compare=False)
    notes: list[str] = field(default_factory=list, compare=False)
    places: dict[str, str] = field(default_factory=dict, compare=False, repr=False)


def discover(
    dataset_dir: str | os.PathLike[str],
    modality: str | None = None,
    description: str | None = None,
    labels_dir: str | os.PathLike[str] | None = None,
    site: str | None = None,
    spatial_dims: int = 3,
    cases_file: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    select: str | Sequence[str] | Mapping[str, Any] | None = None,
    fourth_axis: str = "channels",
) -> Discovery:
    """Index the NIfTI, MetaImage and NRRD files, DICOM series and pictures of a folder and its subfolders.

    NIfTI files, also pairs (``.hdr`` and ``.img``), MetaImage (``.mha``, ``.mhd``) and NRRD files (``.nrrd``,
    ``.nhdr``) are recognized by their extension, DICOM files by their content, and pictures (PNG, JPEG, TIFF, BMP; only
    for 2D) by their extension. Each Series Instance UID becomes one case, wherever its files lie; a series of several
    volumes (echoes, b-values, time points, ...) becomes one for each. A file that is stored twice counts once.

    Passed over with a note are DICOM objects that are not scans: those without an image (DICOMDIR, SEG, SR, Raw Data,
    ...), screenshots and dose reports, localizers. Ignored are hidden files and the results of earlier runs
    (``segmentations``, ``figures`` and ``overview.png`` beside a ``journal.jsonl``). Where a folder holds an ``images``
    (``imagesTr``, ...) or ``image`` folder, its pictures are taken from there only: masks of the field of view,
    drawings and the like lie beside it.

    Args:
        dataset_dir: folder of the scans.
        modality: modality of the DICOM series to keep (``"MR"``, ``"CT"``), in upper or lower case.
        description: text that the description of a DICOM series must contain, or pattern that it must match
            (``"*T1*post*"``), in upper or lower case. Other formats have neither modality nor description and are
            always kept.
        labels_dir: folder of label maps (volume files, or pictures for pictures) named like the images, or like the
            cases for DICOM. Without it, labels are looked for in a ``labels``, ``masks`` or ``mask`` folder beside
            ``images`` or ``image`` (also ``labelsTr`` beside ``imagesTr``), and beside the image as ``<name>_seg``,
            ``<name>_label`` or ``<name>_mask``. A label may have another extension than its image, that of a picture
            also ``.gif``.
        site: name of the site that the scans come from, unless ``cases_file`` names another; default ``"unknown"``.
        spatial_dims: 3 for volumes; 2 for pictures and volume files of a single slice. DICOM series are volumes.
        cases_file: one CSV file or several, each a path or a name in ``dataset_dir``. Only the images in the column
            ``image`` are taken, with the label maps in the column ``mask`` (empty for none); both hold paths relative
            to ``dataset_dir``. An optional column ``site`` names the site of each image, for a stream of several
            sites. Not for DICOM series.
        select: values that DICOM images must have, to take one of several volumes of a series: ``"EchoTime=11"``,
            several with commas between them or in a list, or a mapping. Values of one attribute are alternatives.
            ``"CardiacPhase=1"`` holds for files too, with ``fourth_axis="phases"``.
        fourth_axis: meaning of the fourth axis of a volume file: ``"channels"`` of one image, or ``"phases"`` of the
            heart. Each phase is a case, with the id ``<file>-CardiacPhase01`` and so on. Its label map is the same
            phase of the file's, or a volume of three axes that has the name of the file with that ending.

    Returns:
        The usable cases and the faults. Slice distances may differ by 1 % or 0.01 mm, whichever is larger, direction
        cosines by 0.001; no geometry is guessed. Files are read no further than their headers or beginnings, so a
        truncated one may be noticed only when it is loaded.

    Raises:
        GrataError: a folder is missing, unreadable or holds no scans; nothing matches the selection or ``labels_dir``;
            a list of cases cannot be used; or ``fourth_axis`` is another word.
    """
    holds_phases = checked(partial(check_choice, of=("channels", "phases")), fourth_axis, "fourth_axis") == "phases"
    root = _existing_folder(dataset_dir, "dataset_dir")
    labels_root = None if labels_dir is None else _existing_folder(labels_dir, "labels_dir")
    selection = Selection.of(modality, description, select)
    phases = selection.chosen.get(CARDIAC_PHASE, ()) if holds_phases else None
    search = _Search(root, spatial_dims, site or "unknown", phases)
    if cases_file is None:
        search.add_folder(selection, labels_root)
    elif labels_root is None:
        search.add_listed(cases_file)
    else:
        raise GrataError(
            "cannot be given together, because the list names the labels in its column mask. Give one of them.",
            key="cases_file, labels_dir",
        )
    return search.sorted()


@dataclass
class _Search:
    """One call of :func:`discover`: where it looks, and the cases and faults found so far.

    Attributes:
        root: folder of the data set.
        spatial_dims: number of spatial dimensions that the images must have.
        site: name of the site of images that no list names another site for.
        phases: phases to take of files that hold several; nothing: all of them; None: files hold none.
        found: cases and faults found so far.
        passed: number of phases of each file of which none was chosen.
    """

    root: Path
    spatial_dims: int
    site: str
    phases: Sequence[str] | None = None
    found: Discovery = field(default_factory=Discovery)
    passed: list[int] = field(default_factory=list)

    def sorted(self) -> Discovery:
        self.found.cases.sort(key=lambda case: case["case"])
        self.found.faults.sort(key=lambda fault: (fault.case, fault.message))
        return self.found

    def add_listed(self, cases_file: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> None:
        """Add the images that lists of cases name."""
        listed = read_case_lists(cases_file, self.root)
        named = _file_ids(list(listed), self.root, frozenset())
        for volume in self._volumes([(path, case, listed[path].mask) for path, case in named]):
            path, mask = volume.path, volume.label
            # Unlike a path's own method, it takes names that are too long.
            missing = [file for file in (path, mask) if file is not None and not os.path.isfile(file)]
            if missing:
                shown = printable(_relative(missing[0], self.root))
                message = (
                    f"File '{shown}' is in the list of cases but does not exist. Put it back, or correct the list."
                )
                self._fail(volume.case, message, missing[0])
            else:
                self._add_file(volume, frozenset(), listed[path].site)
        self._check_chosen()

    def add_folder(self, chosen: Selection, labels_root: Path | None) -> None:
        """Add the scans that lie in the folder and its subfolders.

        Raises:
            GrataError: there are no scans, or nothing matches the selection or the labels.
        """
        files = walk(self.root, labels_root, pictures=self.spatial_dims == 2)
        volume_labels = LabelIndex(files.volumes, files.label_folders, labels_root)
        picture_labels = LabelIndex(files.pictures, files.label_folders, labels_root, is_label_picture)
        dicom = index_dicom(files.other)
        identifiers = series_identifiers(dicom.instances)
        for folder in files.unreadable:
            name = safe_path(folder, self.root)
            self._fail(anonymous_id("folder", name), f"Folder '{name}' cannot be read. Check its permissions.", folder)
        images = [path for path in files.volumes if not volume_labels.is_label(path)]
        images += [path for path in files.pictures if is_picture(path) and not picture_labels.is_label(path)]
        named = _file_ids(images, self.root, identifiers)
        for index, is_format in ((volume_labels, is_volume_file), (picture_labels, is_picture)):
            self._add_labelled([(path, case) for path, case in named if is_format(path)], index, identifiers)
        self._add_dicom(dicom, chosen, volume_labels)
        self._check_chosen()
        files.count_unread(dicom.others, self._unused(files.pictures, picture_labels))
        self.found.notes.extend(_passed_over(files, self.spatial_dims))

        if not self.found.cases and not self.found.faults:
            raise GrataError(_nothing_found(self.root, files, self.spatial_dims, self.found.notes), key="dataset_dir")
        if labels_root is not None and self.found.cases and not any("label" in case for case in self.found.cases):
            first = self.found.cases[0]
            extension = ".png" if first["format"] == "picture" else ".nii.gz"
            raise GrataError(
                f"no label map in '{labels_root}' has the name of a case. Name the labels like the images, here for "
                f"example '{first['case']}{extension}', or leave labels_dir out.",
                key="labels_dir",
            )

    def _add_labelled(self, named: Sequence[tuple[Path, str]], index: LabelIndex, identifiers: frozenset[str]) -> None:
        """Add files, each with the id of its case, and the label maps that belong to them."""
        labels = index.assign(named, self.root)
        volumes = self._volumes([(path, case, label) for (path, case), label in zip(named, labels, strict=True)])
        own = index.assign([(volume.named, volume.case) for volume in volumes], self.root)
        for volume, label in zip(volumes, own, strict=True):
            self._add_file(volume._replace(label=label or volume.label), identifiers)

    def _volumes(self, files: Sequence[tuple[Path, str, Path | None]]) -> list[FileVolume]:
        """Return the volumes that files hold, each file with its id and its label map, without those not chosen."""
        taken = {case for _, case, _ in files}
        found: list[FileVolume] = []
        several = 0
        for path, case, label in files:
            count = self._count_phases(path, label)
            if count > 1 and not taken.isdisjoint(volume.case for volume in volumes_of(path, case, label, count)):
                case = f"{case}-{short_digest(_relative(path, self.root))}"
            chosen = list(volumes_of(path, case, label, count, self.phases or ()))
            found += chosen
            several += len(chosen) > 1
            self.passed += [count] * (not chosen)
        if several:
            held = "1 file holds" if several == 1 else f"{several} files hold"
            self.found.notes.append(
                f"{held} several phases of the heart, each of which is a case of its own. Take some of them alone with "
                f"select, as in '{CARDIAC_PHASE}=1'."
            )
        return found

    def _count_phases(self, path: Path, label: Path | None) -> int:
        """Return how many phases a file holds; 1 where it cannot be used, which is reported when it is added."""
        if self.phases is None or not is_volume_file(path):
            return 1
        # Whatever a library raises is the fault of this file.
        with suppress(Exception):
            check_volume_file(path, self.spatial_dims)
            _check_label_phases(path, label)
            return fourth_axis_size(path)
        return 1

    def _check_chosen(self) -> None:
        """Check that phases were found among those that were chosen, and note the files without them.

        Raises:
            GrataError: there is nothing else.
        """
        if not self.passed:
            return
        most = max(self.passed)
        if not self.found.cases and not self.found.faults:
            raise GrataError(
                f"no file has the phases that were selected. They have up to {most} phases: choose from CardiacPhase=1 "
                f"to CardiacPhase={most}.",
                key="select",
            )
        one = len(self.passed) == 1
        files, were = ("1 file that holds", "was") if one else (f"{len(self.passed)} files that hold", "were")
        self.found.notes.append(f"{files} up to {most} phases and none of the selected ones {were} passed over.")

    def _unused(self, pictures: Sequence[Path], labels: LabelIndex) -> list[Path]:
        """Return the files that could only be label maps, and of which no image has one."""
        taken = {case.get("label") for case in self.found.cases}
        return [p for p in pictures if not is_picture(p) and not labels.is_label(p) and str(p) not in taken]

    def _fail(self, case: str, message: str, path: Path) -> None:
        self.found.places[case] = str(path)
        self.found.faults.append(Fault(case, message))

    def _keep(
        self,
        case: str,
        image: str | list[str],
        label: Path | None,
        file_format: str,
        site: str | None,
        shown: str,
        **about: str | int,
    ) -> None:
        labelled = {} if label is None else {"label": str(label)}
        found = {"case": case, "image": image, **labelled, "site": site or self.site, "format": file_format, **about}
        self.found.paths[case] = shown
        self.found.places[case] = image if isinstance(image, str) else image[0]
        self.found.cases.append(found)

    def _add_file(self, volume: FileVolume, identifiers: frozenset[str], site: str | None = None) -> None:
        path, case = volume.path, volume.case
        shown = printable(remove_identifiers(_relative(path, self.root), identifiers))
        self.found.paths[case] = shown
        try:
            if len(case.encode()) > _LONGEST_ID:
                raise GrataError(
                    f"File '{path}' has a name of more than {_LONGEST_ID} bytes, from which no result can be named. "
                    "Give it a shorter one, and the folders too where several files share a name."
                )
            check = _check_volume if is_volume_file(path) else _check_picture
            check(path, volume.label, self.root, self.spatial_dims)
            if self.phases is not None and is_volume_file(path):
                _check_label_phases(path, volume.label, [1] if "phase" in volume.about else [])
        except GrataError as error:
            parent = _relative(path.parent, self.root)
            message = str(error).replace(f"{self.root}{os.sep}", "")
            self._fail(case, printable(message.replace(parent, remove_identifiers(parent, identifiers))), path)
        # Whatever a library raises is the fault of this file.
        except Exception as error:  # noqa: BLE001
            self._fail(case, f"File '{shown}' cannot be used ({_reason(error, identifiers)}). {_EXPORT}", path)
        else:
            file_format = volume_format(path) if is_volume_file(path) else "picture"
            self._keep(case, str(path), volume.label, file_format, site, shown, **volume.about)

    def _add_dicom(self, files: DicomFiles, chosen: Selection, labels: LabelIndex) -> None:
        scans, notes = find_scans(files, chosen, self.root, self.spatial_dims, self._fail)
        for scan in scans:
            label = labels.find_named(scan.case)
            if label is not None:
                try:
                    shown = printable(remove_identifiers(str(label), scan.identifiers))
                    _check_label(label, shown, scan.geometry.spatial_shape, scan.geometry.get_affine("RAS"), scan.name)
                except GrataError as error:
                    self._fail(scan.case, str(error), Path(scan.files[0]))
                    continue
            self._keep(scan.case, scan.files, label, "dicom", None, scan.folder, **scan.about)
        self.found.notes.extend([*files.notes(), *notes])


def _passed_over(files: Files, spatial_dims: int) -> list[str]:
    """Return a sentence for each kind of files that are no scan, or no scan that can be read."""
    notes = []
    unread = {ending: count for ending, count in sorted(files.unread.items()) if count}
    if total := sum(unread.values()):
        listed = ", ".join(
            f"{count} {ending}{'s' * (ending == 'picture' and count > 1)}" for ending, count in unread.items()
        )
        kinds = "1 file of a kind that is not read" if total == 1 else f"{total} files of kinds that are not read"
        notes.append(f"{kinds}: {listed}. Convert what you need to {'PNG' if spatial_dims == 2 else 'NIfTI'}.")
    return [*notes, *_not_there(files)]


def _not_there(files: Files) -> list[str]:
    """Return a sentence for each kind of names in the folder behind which there is no file."""
    notes = []
    if files.dangling:
        links = "1 link leads" if files.dangling == 1 else f"{files.dangling} links lead"
        notes.append(f"{links} to a file that does not exist.")
    if files.special:
        are = "is 1 pipe, socket or device" if files.special == 1 else f"are {files.special} pipes, sockets or devices"
        notes.append(f"There {are} with the name of a scan, which a run does not read. Copy the scan there as a file.")
    return notes


def _nothing_found(root: Path, files: Files, spatial_dims: int, notes: Sequence[str]) -> str:
    if pictures := files.unread["picture"]:
        return (
            f"'{root}' holds pictures ({pictures}), but no NIfTI file and no DICOM image, and this bundle needs "
            "volumes. Name the folder of the scans, or use a bundle for pictures."
        )
    if notes:
        listed = " A DICOMDIR only lists files: copy those, too." if "DICOMDIR" in " ".join(notes) else ""
        return f"'{root}' holds no scan that can be used. {' '.join(notes)} Name the folder of the scans.{listed}"
    missing = "no picture, no NIfTI file" if spatial_dims == 2 else "no NIfTI file"
    return f"'{root}' holds {missing} and no DICOM image. Name the folder of the scans."


def _reason(error: Exception, identifiers: frozenset[str]) -> str:
    """Return the kind of an exception and what it says, in one line and without paths."""
    return printable(f"{type(error).__name__}: {error_reason(error, identifiers)}")


def _existing_folder(folder: str | os.PathLike[str], key: str) -> Path:
    path = Path(os.path.abspath(expanded(folder)))
    if path.is_file():
        raise GrataError(f"'{path}' is a file. Name the folder that holds it.", key=key)
    if not path.is_dir():
        raise GrataError(f"'{path}' {absence(path)}. Name an existing folder.", key=key)
    try:
        os.scandir(path).close()
    except OSError as error:
        raise GrataError(f"'{path}' cannot be read: {error.strerror}. Check its permissions.", key=key) from error
    return path


def _file_ids(paths: Sequence[Path], root: Path, identifiers: frozenset[str]) -> list[tuple[Path, str]]:
    """Return each file with the id of its case.

    The id is the file's name without extension. Where it is not unique, the names of the folders come first; where
    that is not unique either, a digest of the path comes last.
    """

    def longer(path: Path) -> str:
        folders = [re.sub(r"[\[\]]", "", remove_identifiers(part, identifiers)) for part in _folders(path, root)]
        return printable("-".join((*folders, scan_stem(path))))

    def hashed(path: Path) -> str:
        return f"{longer(path)}-{short_digest(_relative(path, root))}"

    ids = [printable(scan_stem(path)) for path in paths]
    for name in (longer, hashed):
        counts = Counter(ids)
        ids = [name(path) if counts[old] > 1 else old for old, path in zip(ids, paths, strict=True)]
    return list(zip(paths, ids, strict=True))


def _folders(path: Path, root: Path) -> tuple[str, ...]:
    parts = path.relative_to(root).parts[:-1]
    return parts[1:] if parts and is_image_folder(parts[0]) else parts


def _check_volume(path: Path, label: Path | None, root: Path, spatial_dims: int) -> None:
    shape, affine = check_volume_file(path, spatial_dims)
    if label is not None:
        _check_label(label, str(label), shape, affine, f"file '{_relative(path, root)}'")


def _check_label_phases(path: Path, label: Path | None, others: Sequence[int] = ()) -> None:
    """Check that a label map has as many phases as its image, or another number that is allowed.

    Raises:
        GrataError: it has not; or one of the files has more than four axes.
    """
    phases = fourth_axis_size(path)
    found = phases if label is None else fourth_axis_size(label)
    if found not in (phases, *others):
        raise GrataError(
            f"Label '{label}' has {found} phase{'s' * (found > 1)}, but its image has {phases}. Give a label map with "
            f"as many, or one of each phase, named like '{scan_stem(path)}-{CARDIAC_PHASE}01', or none."
        )


def _check_picture(path: Path, label: Path | None, root: Path, spatial_dims: int) -> None:
    if not is_picture(path):
        raise GrataError(
            f"File '{path}' has the extension of neither a volume file nor a picture. Remove it from the list of cases."
        )
    if spatial_dims != 2:
        raise GrataError(f"File '{path}' is a picture, but a volume is needed. Remove it from the list of cases.")
    size = picture_size(path)
    if label is None:
        return
    if not is_label_picture(label):
        raise GrataError(
            f"Label '{label}' is not a picture, but its image '{_relative(path, root)}' is. Convert the label to PNG."
        )
    found = picture_size(label)
    if found != size:
        raise GrataError(
            f"Label '{label}' has {found[1]} × {found[0]} pixels, but its image '{_relative(path, root)}' has "
            f"{size[1]} × {size[0]} after its EXIF orientation. Make the label again at that size, or remove it."
        )


def _check_label(label: Path, shown: str, shape: Sequence[int], affine: np.ndarray, image_name: str) -> None:
    difference = grid_difference(shape, affine, *volume_grid(label))
    if difference:
        raise GrataError(
            f"Label '{shown}' does not lie on the voxels of its image, {image_name}: it has {difference}. Resample the "
            "label onto the image, or remove it."
        )


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root))
