"""Find the DICOM scans among files: group the images to series, choose some, and report what cannot be used."""

import fnmatch
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, NoReturn

import highdicom
import numpy as np
from tqdm import tqdm

from ..errors import GrataError
from .dicom import error_reason, series_geometry, sort_series
from .dicom_file import BrokenFileError, EmptyFileError, is_named_dicom
from .dicom_index import Instance, read_instance, series_identifiers
from .dicom_kinds import Kind, NoScan
from .dicom_parts import (
    Chosen,
    Part,
    comparable,
    differences,
    example_choice,
    frame_differences,
    hold_several,
    most_slices,
    parse_chosen,
    split,
    told_apart,
    without_copies,
)
from .geometry import GeometryError
from .identifiers import REMOVED, anonymous_id, printable, remove_identifiers, safe_path, short_digest

__all__ = ["DicomFiles", "DicomScan", "Selection", "find_scans", "index_dicom"]

# With fewer files, indexing ends before a progress bar can be read.
_FILES_FOR_PROGRESS = 50
# Series that a note lists.
_LISTED = 10

_REMEDY_2D = "DICOM is read as volumes only, and this bundle needs 2D images. Convert it to PNG or NIfTI"
_LEAVE_OUT = "or leave it out by selecting others (modality, description)"
_REMEDY = f"Export the series again, complete and without other series, {_LEAVE_OUT}"
_REMEDY_FRAMES = "Export each of its volumes as a series of its own, or convert it to NIfTI, for example with dcm2niix"
_REMEDY_PARTS = f"Choose one of its volumes with select, as in {{}}, export each as a series of its own, {_LEAVE_OUT}"
_LOCALIZER_NAME = re.compile(r"locali[sz]er|scout|survey|surview|topogram|\b(3|three)[- ]?plane", re.IGNORECASE)
# Shorter names, which say it only of three planes that are turned against each other, and most slices of these.
_LOCALIZER_WORD = re.compile(r"(?<![a-z])(loc|(3|tri|three)[- _]?pl(an(e|ar))?|pilot)(?![a-z])", re.IGNORECASE)
_LOCALIZER_SLICES = 60

Report = Callable[[str, str, Path], None]
"""Takes the id of a case, the message of its fault, and the file."""


@dataclass
class DicomFiles:
    """What the files of a folder hold.

    Attributes:
        instances: images that may be slices.
        broken: DICOM files that cannot be read, with the reason.
        empty: files of 0 bytes that may have been slices.
        others: files of other formats.
        passed: how many objects that are no scan were passed over, by what they are.
    """

    instances: list[Instance] = field(default_factory=list)
    broken: list[tuple[Path, str]] = field(default_factory=list)
    empty: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    passed: Counter[NoScan] = field(default_factory=Counter)

    def notes(self) -> list[str]:
        """Return a sentence for each kind of object that was passed over."""
        sentences = []
        for kind in Kind:
            found = {passed.name: count for passed, count in self.passed.items() if passed.kind == kind}
            count = sum(found.values())
            if count:
                names = ", ".join(f"{number} {name}" for name, number in sorted(found.items()) if name)
                one, several = kind.value
                passed = f"1 {one} was" if count == 1 else f"{count} {several} were"
                sentences.append(f"{passed} passed over{f' ({names})' * bool(names)}.")
        return sentences


class DicomScan(NamedTuple):
    """A series, or a part of one, that is a regular volume.

    Attributes:
        case: id of its case.
        files: its files along the slice normal.
        folder: its folder, below that of the data set, as it can be shown.
        name: what messages call it.
        geometry: its voxel grid.
        identifiers: strings that identify the patient.
        about: its ``modality`` and ``image_type``, where the header gives them.
    """

    case: str
    files: list[str]
    folder: str
    name: str
    geometry: highdicom.VolumeGeometry
    identifiers: frozenset[str]
    about: dict[str, str]


class Selection(NamedTuple):
    """Modality, description and attributes that a DICOM series must have; None or nothing: any."""

    modality: str | None
    description: str | None
    chosen: Chosen

    @classmethod
    def of(cls, modality: str | None, description: str | None, select: object) -> "Selection":
        """Return the selection that a user's values stand for.

        Raises:
            GrataError: ``select`` cannot be understood.
        """
        modality, description = (None if value is None else str(value) for value in (modality, description))
        return cls(modality, description, parse_chosen(select))

    def matches(self, instance: Instance) -> bool:
        """Return whether the series of an instance has the modality and the description."""
        if self.modality and instance.modality != self.modality.strip().upper():
            return False
        if not self.description:
            return True
        text, pattern = instance.description.lower(), self.description.lower()
        return pattern in text or fnmatch.fnmatchcase(text, pattern)

    def nothing_matches(self, series: Iterable[Sequence[Instance]]) -> GrataError:
        """Return the error for a modality and a description that none of the series has."""
        found: dict[str, list[str]] = defaultdict(list)
        for group in series:
            # As a pattern, which can be given as it stands.
            shown = remove_identifiers(group[0].description, group[0].identifiers).replace(REMOVED, "*")
            found[group[0].modality].append(shown or "none")
        given = {key: value for key, value in self._asdict().items() if value and key != "chosen"}
        wanted = " and ".join(f"{key} '{value}'" for key, value in given.items())
        listed = "; ".join(
            f"{len(names)} of modality {key} (descriptions: {', '.join(sorted(set(names))[:10])})"
            for key, names in sorted(found.items())
        )
        return GrataError(f"no DICOM series has {wanted}. Found: {listed}. Choose one of these.", key=", ".join(given))


def index_dicom(paths: Sequence[Path]) -> DicomFiles:
    """Index files by their headers.

    Args:
        paths: files of any format.
    """
    found = DicomFiles()
    # None leaves it to tqdm, which shows the bar on a terminal only.
    disable = True if len(paths) < _FILES_FOR_PROGRESS else None
    for path in tqdm(paths, desc="Indexing scans", unit="file", leave=False, disable=disable):
        try:
            instance = read_instance(path)
        except EmptyFileError as error:
            if is_named_dicom(path):
                found.broken.append((path, str(error)))
            else:
                found.empty.append(path)
        except BrokenFileError as error:
            found.broken.append((path, str(error)))
        else:
            if isinstance(instance, NoScan):
                found.passed[instance] += 1
            elif instance is None:
                found.others.append(path)
            else:
                found.instances.append(instance)
    return found


def find_scans(
    files: DicomFiles, selection: Selection, root: Path, spatial_dims: int, fail: Report
) -> tuple[list[DicomScan], list[str]]:
    """Return the scans among indexed files, and notes on what a user should know of them.

    What else is passed over is counted in ``files``.

    Args:
        files: files as :func:`index_dicom` returns them.
        selection: series to keep.
        root: folder of the data set.
        spatial_dims: number of spatial dimensions that the images must have.
        fail: is called with each scan that cannot be used.

    Raises:
        GrataError: nothing matches the selection.
    """
    search = _ScanSearch(files, selection, root, spatial_dims, fail)
    search.run()
    return search.scans, search.notes()


@dataclass
class _ScanSearch:
    """One call of :func:`find_scans`: what it was given, and what it found so far.

    Attributes:
        scans: scans that can be used.
        several: in what the volumes of a series differ, by the id of the series.
        example: choice of one of them, as ``select`` takes it.
        inverted: ids of the scans that a viewer shows with their lowest value white.
    """

    files: DicomFiles
    selection: Selection
    root: Path
    spatial_dims: int
    fail: Report
    scans: list[DicomScan] = field(default_factory=list)
    several: dict[str, str] = field(default_factory=dict)
    example: str = ""
    inverted: list[str] = field(default_factory=list)

    def run(self) -> None:
        series = self._series()
        by_folder: dict[Path, set[str]] = defaultdict(set)
        for uid, group in series.items():
            for instance in group:
                by_folder[Path(instance.path).parent].add(uid)
        selected = {uid: group for uid, group in series.items() if self.selection.matches(group[0])}
        if series and not selected:
            raise self.selection.nothing_matches(series.values())
        defects = {**self._broken(by_folder), **self._emptied(series, by_folder)}
        found = [self._add_series(group, defects.get(uid)) for uid, group in selected.items()]
        if selected and not any(found):
            self._nothing_chosen(selected.values())

    def _nothing_chosen(self, series: Iterable[Sequence[Instance]]) -> NoReturn:
        differ = "; ".join(filter(None, map(self._shown_differences, series)))
        raise GrataError(
            f"no DICOM image has the attributes that were selected. Series differ in: {differ or 'nothing'}. Choose "
            "from these.",
            key="select",
        )

    def notes(self) -> list[str]:
        """Return the notes on series that hold several scans, and on inverted ones."""
        notes = self._note_several() if self.several else []
        if self.inverted:
            count = len(self.inverted)
            scans = "1 DICOM scan is" if count == 1 else f"{count} DICOM scans are"
            listed = ", ".join(self.inverted[:_LISTED]) + ", …" * (count > _LISTED)
            notes.append(
                f"{scans} MONOCHROME1, which a viewer shows inverted, the lowest value white ({listed}). Values "
                "are used as they are stored."
            )
        return notes

    def _note_several(self) -> list[str]:
        count = len(self.several)
        listed = "; ".join(f"{case}: {text}" for case, text in list(self.several.items())[:_LISTED])
        more = "; …" if count > _LISTED else ""
        held = "series holds" if count == 1 else "series hold"
        return [
            f"{count} DICOM {held} several volumes, each of which is a case of its own ({listed}{more}). Take some of "
            f"them alone with select, as in '{self.example}'."
        ]

    def _series(self) -> dict[str, list[Instance]]:
        """Return the instances by their series, without maker's objects beside images that can be read."""
        series: dict[str, list[Instance]] = defaultdict(list)
        for instance in self.files.instances:
            series[instance.series].append(instance)
        nowhere = series.pop("", [])
        if nowhere:
            count = len(nowhere)
            self.fail(
                anonymous_id("file", _relative(Path(nowhere[0].path), self.root)),
                f"{count} DICOM image{'s' * (count > 1)} (in '{self._folder(nowhere)}') cannot be used: without a "
                "Series Instance UID nothing tells which images are one volume. Export the scan again, or remove the "
                "patient with a tool that keeps the UIDs or replaces them.",
                Path(nowhere[0].path),
            )
        for uid, group in series.items():
            standard = [instance for instance in group if not instance.private]
            if standard and len(standard) < len(group):
                self.files.passed[NoScan(Kind.PICTURE, "private SOP class")] += len(group) - len(standard)
                series[uid] = standard
        return {uid: comparable(group) for uid, group in series.items()}

    def _broken(self, by_folder: dict[Path, set[str]]) -> dict[str, str]:
        """Return the message on a broken file by the series that it belongs to; other broken files become faults."""
        defects = {}
        for path, reason in self.files.broken:
            neighbours = by_folder.get(path.parent, set())
            if not neighbours and not is_named_dicom(path):
                continue
            # A broken header may not show all of the patient's identifiers, and its neighbours may be other patients'.
            name = safe_path(path, self.root)
            message = f"DICOM file '{name}' cannot be used: {reason}. Copy or export it again."
            if len(neighbours) == 1:
                # The file must belong to this series, which would otherwise be read without one slice.
                defects[next(iter(neighbours))] = message
            else:
                if neighbours:
                    message += (
                        f" It may belong to one of the {len(neighbours)} series in its folder: check their extent."
                    )
                self.fail(anonymous_id("file", _relative(path, self.root)), message, path)
        return defects

    def _emptied(self, series: Mapping[str, Sequence[Instance]], by_folder: Mapping[Path, object]) -> dict[str, str]:
        """Return the message on an empty file by the series that it belongs to; other empty files are passed over."""
        if not self.files.empty:
            return {}
        lost = {uid: self._lost(group) for uid, group in series.items()}
        passed = set(self.files.empty).difference(*lost.values())
        self.files.passed[NoScan(Kind.EMPTY)] += sum(path.parent in by_folder for path in passed)
        return {
            uid: f"DICOM file '{safe_path(min(paths), self.root)}' is empty (0 bytes). Copy or export it again."
            for uid, paths in lost.items()
            if paths
        }

    def _lost(self, group: Sequence[Instance]) -> set[Path]:
        """Return the empty files that were slices of a series.

        Between the slices of a series whose names are in order, the gap that a slice leaves shows.
        """
        names = [Path(instance.path).name for instance in sorted(group, key=_height)]
        in_order = names in (sorted(names), sorted(names, reverse=True))
        folders, shapes = {Path(instance.path).parent for instance in group}, set(map(_shape, names))
        alike = {path for path in self.files.empty if path.parent in folders and _shape(path.name) in shapes}
        return {path for path in alike if not (in_order and min(names) < path.name < max(names))}

    def _add_series(self, group: Sequence[Instance], defect: str | None) -> bool:
        """Add the scans of a series; return whether any of its images was selected."""
        case, identifiers = _case_id(group[0]), series_identifiers(group)
        try:
            whole = self._parts(group, defect)
        # Whatever a library raises is this series' fault alone.
        except Exception as error:  # noqa: BLE001
            self._fail_series(case, group, error)
            return True
        parts = list(filter(None, (part.only(self.selection.chosen) for part in whole)))
        if len(whole) > 1 and len(parts) > 1:
            self.several[case] = remove_identifiers(told_apart(parts), identifiers)
            self.example = self.example or remove_identifiers(parts[0].choice, identifiers)
        for part in parts:
            self._add_part(part, f"{case}{remove_identifiers(part.suffix, identifiers)}", most_slices(whole, part))
        return bool(parts) or not whole

    def _parts(self, group: Sequence[Instance], defect: str | None) -> list[Part]:
        """Return the volumes of a series; nothing where it is a localizer."""
        if defect:
            raise GeometryError(f"it is incomplete. {defect.removesuffix('.')}")
        unique = without_copies(group)
        self.files.passed[NoScan(Kind.COPY)] += len(group) - len(unique)
        if self._is_localizer(unique):
            self.files.passed[NoScan(Kind.LOCALIZER)] += len(unique)
            return []
        return split(unique)

    def _add_part(self, part: Part, case: str, most: int) -> None:
        try:
            ordered = sort_series(part.instances)
            # A volume that lacks its last slices is regular.
            if part.slices < most:
                raise GeometryError(f"it has {part.slices} slices, but another volume of its series has {most}")
            geometry = series_geometry(ordered)
        except Exception as error:  # noqa: BLE001
            self._fail_series(case, part.instances, error)
            return
        folder, name = self._folder(part.instances), self._name(case, part.instances)
        files = [instance.path for instance in ordered]
        about = _about(ordered[0])
        if any(instance.attributes.get("PhotometricInterpretation") == "MONOCHROME1" for instance in ordered):
            self.inverted.append(case)
        self.scans.append(DicomScan(case, files, folder, name, geometry, series_identifiers(part.instances), about))

    def _fail_series(self, case: str, group: Sequence[Instance], error: Exception) -> None:
        """Report a series that cannot be used, whatever exception a library raised."""
        identifiers = series_identifiers(group)
        reason = f"{type(error).__name__}: {error_reason(error, identifiers)}"
        remedy = getattr(error, "remedy", "")
        if isinstance(error, GeometryError):
            reason = remove_identifiers(str(error), identifiers)
        differ = self._shown_differences(group) if hold_several(group) else ""
        if differ and not remedy:
            reason = f"{reason}. Its images differ in: {differ}"
            choice = remove_identifiers(example_choice(group), identifiers)
            remedy = _REMEDY_FRAMES if len(group) == 1 else _REMEDY_PARTS.format(choice)
        remedy = _REMEDY_2D if self.spatial_dims == 2 else remedy or _REMEDY
        self.fail(
            case,
            f"{self._name(case, group)} cannot be used: {reason.removesuffix('.')}. {remedy}.",
            Path(group[0].path),
        )

    def _is_localizer(self, group: Sequence[Instance]) -> bool:
        """Return whether a series is a localizer by its name, and no volume."""
        if any(instance.defect for instance in group) or not _is_named_localizer(group):
            return False
        try:
            sort_series(group)
        except GeometryError:
            return True
        return False

    def _shown_differences(self, group: Sequence[Instance]) -> str:
        single = len(group) == 1 and group[0].multiframe
        return remove_identifiers(
            frame_differences(group[0]) if single else differences(group), series_identifiers(group)
        )

    def _name(self, case: str, group: Sequence[Instance]) -> str:
        count = len(group)
        return f"DICOM series {case} ({count} file{'s' * (count > 1)}, in '{self._folder(group)}')"

    def _folder(self, group: Sequence[Instance]) -> str:
        folder = _relative(Path(group[0].path).parent, self.root)
        return printable(remove_identifiers(folder, series_identifiers(group)))


def _height(instance: Instance) -> float:
    if not instance.planes:
        return 0.0
    plane = instance.planes[0]
    return float(np.dot(plane.position, np.cross(plane.orientation[:3], plane.orientation[3:])))


def _is_named_localizer(group: Sequence[Instance]) -> bool:
    if _LOCALIZER_NAME.search(group[0].description):
        return True
    text = f"{group[0].description} {group[0].attributes.get('ProtocolName', '')}"
    named = _LOCALIZER_NAME.search(text) or _LOCALIZER_WORD.search(text)
    planes = {instance.attributes.get("Orientation") for instance in group}
    return bool(named) and planes == {"axial", "coronal", "sagittal"} and len(group) <= _LOCALIZER_SLICES


def _shape(name: str) -> str:
    """Return a file's name without what counts the files of a series."""
    return re.sub(r"\d+", "0", name) if re.search(r"\d", name) else re.sub(r"[A-Za-z]", "a", name)


def _about(first: Instance) -> dict[str, str]:
    kinds = [first.attributes.get(keyword, "") for keyword in ("ImageType", "ComplexImageComponent")]
    return {"modality": first.modality, "image_type": "\\".join(filter(None, kinds))}


def _case_id(first: Instance) -> str:
    return f"{first.modality.lower()}-series{first.number:03d}-{short_digest(first.series)}"


def _relative(path: Path, root: Path) -> str:
    return os.fspath(path.relative_to(root))
