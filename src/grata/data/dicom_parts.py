"""Tell copies of a file, and the volumes of one series, from each other."""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydicom import Dataset
from pydicom.datadict import dictionary_description
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag

from ..errors import GrataError
from .dicom import sort_series
from .dicom_file import quiet_libraries, read_file
from .dicom_index import ATTRIBUTES, TIMES, Instance, number_or_text
from .dicom_phases import CARDIAC_PHASE, TRIGGER_TIMES, with_phases
from .geometry import SAME_PLACE, GeometryError, Plane, is_perpendicular
from .identifiers import short_digest

__all__ = [
    "Chosen",
    "Part",
    "comparable",
    "differences",
    "example_choice",
    "frame_differences",
    "hold_several",
    "is_one_of",
    "most_slices",
    "parse_chosen",
    "split",
    "told_apart",
    "without_copies",
]

Chosen = Mapping[str, Sequence[str]]
"""Values that attributes may have, by keyword."""

# Attributes that are looked at together, and how many may be needed to tell volumes from each other.
_TRIED, _TOGETHER = 8, 3
_PIXELS = 0x7FE0
# Attributes that tell the volumes of one multi-frame object from each other, with their functional groups.
_FRAME_ATTRIBUTES = (
    ("MREchoSequence", "EffectiveEchoTime"), ("MRDiffusionSequence", "DiffusionBValue"),
    ("CTReconstructionSequence", "ConvolutionKernel"), ("CTReconstructionSequence", "ReconstructionAlgorithm"),
    ("CTXRayDetailsSequence", "KVP"), ("MRTimingAndRelatedParametersSequence", "FlipAngle"),
    ("MRTimingAndRelatedParametersSequence", "RepetitionTime"), ("MRModifierSequence", "InversionTimes"),
    ("MRImageFrameTypeSequence", "ComplexImageComponent"), ("MRImageFrameTypeSequence", "FrameType"),
    ("CTImageFrameTypeSequence", "FrameType"), ("FrameContentSequence", "TemporalPositionIndex"),
    ("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase"),
    ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"), ("FrameContentSequence", "StackID"),
    ("ContrastBolusUsageSequence", "ContrastBolusAgentNumber"), ("FrameContentSequence", "FrameAcquisitionNumber"),
    ("FrameContentSequence", "FrameAcquisitionDateTime"),
)  # fmt: skip
_ORIENTATIONS = ("Orientation", "ImageOrientationPatient")
_FRAME_TIMES = {"FrameAcquisitionDateTime"}
# Values that a message lists, and letters of a value that a case id shows.
_LISTED, _SHOWN = 8, 24
# Names of the attributes that are derived, and that the standard does not have.
_OWN_NAMES = {"Orientation": "Orientation", CARDIAC_PHASE: "Cardiac Phase"}
# What an absent value is called, in messages and in choices.
_NONE = "none"
# Attributes that scanners measure, and how far (as a share of the value) the slices of one volume may differ in them.
_MEASURED, _NOISE = ("EchoTime", "RepetitionTime", "InversionTime", "FlipAngle"), 1e-3


class Part(NamedTuple):
    """One of the volumes of a series, or the whole series.

    Attributes:
        instances: instances of the volume, in any order.
        values: values of the attributes that tell it from the others of its series; empty for the whole series.
    """

    instances: list[Instance]
    values: dict[str, str]

    @property
    def slices(self) -> int:
        """Number of slices."""
        return sum(len(instance.planes) for instance in self.instances)

    @property
    def orientation(self) -> str:
        """Direction cosines of the slices, rounded; empty where they are not known."""
        return self.instances[0].attributes.get("ImageOrientationPatient", "")

    @property
    def choice(self) -> str:
        """The part as :func:`parse_chosen` reads it."""
        return ",".join(f"{keyword}={value or _NONE}" for keyword, value in self.values.items()).replace("\\", "/")

    @property
    def suffix(self) -> str:
        """Words for the part, for the end of a case id; empty for the whole series."""
        return "".join(f"-{keyword}{_word(value)}" for keyword, value in self.values.items())

    def only(self, chosen: Chosen) -> "Part | None":
        """Return the part with the instances that were chosen alone, None where there are none."""
        kept = [
            instance
            for instance in self.instances
            if all(_is_chosen(instance, key, values) for key, values in chosen.items())
        ]
        if len(kept) == len(self.instances):
            return self
        return (
            Part(kept, {**self.values, **{key: "-".join(values) for key, values in chosen.items()}}) if kept else None
        )


def without_copies(instances: Sequence[Instance]) -> list[Instance]:
    """Return the instances of a series without those that have the same content as another one.

    Raises:
        GeometryError: instances have one SOP Instance UID, but not the same content.
    """
    by_uid: dict[str, list[Instance]] = defaultdict(list)
    for instance in sorted(instances, key=lambda instance: instance.path):
        by_uid[instance.uid].append(instance)
    for first, *others in by_uid.values():
        for other in others:
            different = _different_content(Path(first.path), Path(other.path))
            if different:
                raise GeometryError(
                    f"{len([first, *others])} of its files have the same SOP Instance UID, but differ in "
                    f"{', '.join(different)}",
                    "Remove the wrong file, or export the series again",
                )
    return [first for first, *_ in by_uid.values()]


def comparable(instances: Sequence[Instance]) -> list[Instance]:
    """Return the instances of a series with attributes by which its volumes can be told from each other.

    Times become their number in order, because they may identify the patient. Values that were measured become one
    value where they differ by their noise. The phase of the heart is added, as :func:`with_phases` finds it.

    Args:
        instances: instances of one series, in any order.
    """
    found = list(instances)
    for keyword, name_values in (*dict.fromkeys(TIMES, _numbered).items(), *dict.fromkeys(_MEASURED, _rounded).items()):
        values = {instance.attributes[keyword] for instance in found if keyword in instance.attributes}
        names = name_values(values)
        found = [
            replace(instance, attributes={**instance.attributes, keyword: names[instance.attributes[keyword]]})
            if keyword in instance.attributes
            else instance
            for instance in found
        ]
    return with_phases(found)


def _numbered(values: Iterable[str]) -> dict[str, str]:
    return {value: str(number) for number, value in enumerate(sorted(values, key=_in_order), 1)}


def _rounded(values: Iterable[str]) -> dict[str, str]:
    """Return for each value the shortest number that stands for all values that differ from it by noise alone."""
    names = {value: value for value in values}
    numbers = sorted((number, value) for value in names if np.isfinite(number := _in_order(value)[0]))
    while numbers:
        lowest = numbers[0][0]
        alike = [(number, value) for number, value in numbers if number - lowest <= _NOISE * abs(number)]
        numbers = numbers[len(alike) :]
        if len(alike) > 1:
            names.update(dict.fromkeys((value for _, value in alike), _shortest((lowest + alike[-1][0]) / 2)))
    return names


def _shortest(number: float) -> str:
    texts = (f"{float(f'{number:.{digits}g}'):.10g}" for digits in range(1, 10))
    return next((text for text in texts if abs(float(text) - number) <= _NOISE * abs(number)), f"{number:.10g}")


def split(instances: Sequence[Instance]) -> list[Part]:
    """Tell the volumes of a series from each other.

    Volumes lie at the same places, or are turned against each other, and differ in one to three of
    :data:`grata.data.dicom_index.ATTRIBUTES`, or where these do not tell them apart, in their phase of the heart. So a
    series in which slices are missing is never taken for several.

    Args:
        instances: instances of one series, in any order, without copies.

    Returns:
        The whole series as one part where it is a regular volume or its volumes cannot be told apart. Otherwise its
        parts, of which one at least is a regular volume.
    """
    whole = [Part(list(instances), {})]
    if _is_regular(instances):
        return whole
    best, most = whole, 0
    for parts in _partitions(instances):
        regular = [len(part.instances) for part in parts if _is_regular(part.instances)]
        if len(regular) == len(parts):
            return parts
        if sum(regular) > most and _are_alike(parts):
            best, most = parts, sum(regular)
    return best


def _are_alike(parts: Sequence[Part]) -> bool:
    """Return whether parts have about the same number of slices: a few odd ones are not a volume of their own."""
    sizes = [len(part.instances) for part in parts]
    return 2 * min(sizes) > max(sizes)


def most_slices(parts: Sequence[Part], part: Part) -> int:
    """Return how many slices the largest of several parts has that lie as ``part`` does; 0 for a single part."""
    return max(other.slices for other in parts if other.orientation == part.orientation) if len(parts) > 1 else 0


def hold_several(instances: Sequence[Instance]) -> bool:
    """Return whether images cannot be one volume because some lie at one place or are turned against each other."""
    planes = [plane for instance in instances for plane in instance.planes]
    if any(instance.defect for instance in instances) or not _are_perpendicular(planes):
        return False
    places = {(plane.position, tuple(np.round(plane.orientation, 2)), plane.size) for plane in planes}
    turned = {(orientation, size) for _, orientation, size in places}
    return len(turned) > 1 or len(places) < len(planes)


def differences(instances: Sequence[Instance]) -> str:
    """Return in what the images of a series differ, such as ``"Echo Time 11, 92"``; empty where nothing shows."""
    return _in_words({key: _tokens(values) for key, values in list(_telling(instances).items())[:3]})


def told_apart(parts: Sequence[Part]) -> str:
    """Return what tells the volumes of a series from each other, such as ``"Echo Time 11, 92"``."""
    return _in_words(
        {keyword: sorted({part.values[keyword] for part in parts}, key=_in_order) for keyword in parts[0].values}
    )


def _in_words(values: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{_shown_name(keyword)} {_listed(found)}" for keyword, found in values.items())


def example_choice(instances: Sequence[Instance]) -> str:
    """Return the most frequent value of the first of these differences, as :func:`parse_chosen` reads it."""
    for keyword in _telling(instances):
        (value, _), *_ = Counter(instance.attributes.get(keyword, "") for instance in instances).most_common(1)
        return f"{keyword}={value or _NONE}".replace("\\", "/")
    return ""


def _telling(instances: Sequence[Instance]) -> dict[str, list[str]]:
    """Return the attributes that may tell volumes from each other, with their values in order."""
    varying = _varying(instances)
    if "Orientation" in varying:
        varying.pop("ImageOrientationPatient", None)
    for keyword in TRIGGER_TIMES:
        # Where the times of one phase differ, its number says more.
        if CARDIAC_PHASE in varying and len(varying.get(keyword, ())) > len(varying[CARDIAC_PHASE]):
            del varying[keyword]
    return {keyword: values for keyword, values in varying.items() if len(values) <= len(instances) / 2}


def frame_differences(instance: Instance) -> str:
    """Return in what the frames of a multi-frame object differ, as :func:`differences`."""
    found = []
    # The file is read again, for the words of a message alone.
    with suppress(Exception), quiet_libraries():
        frames = read_file(instance.path, stop_before_pixels=True).PerFrameFunctionalGroupsSequence
        for group, keyword in _FRAME_ATTRIBUTES:
            values = {_frame_value(frame[group][0].get(keyword)) for frame in frames if group in frame}
            if 1 < len(values) <= len(frames) / 2:
                numbers = list(_numbered(values).values())
                shown = numbers if keyword in _FRAME_TIMES else sorted(values, key=_in_order)
                found.append(f"{_shown_name(keyword)} {_listed(shown)}")
    return "; ".join(found[:3])


def _frame_value(value: Any) -> str:
    if value is None:
        return ""
    parts = value if isinstance(value, MultiValue | list | tuple) else [value]
    return "\\".join(map(number_or_text, parts))


def parse_chosen(select: Any) -> dict[str, list[str]]:
    """Return the values that attributes must have.

    Args:
        select: ``"EchoTime=11"``, several such choices with commas between them or in a list, or a mapping. Several
            values of one attribute are alternatives. None chooses nothing.

    Raises:
        GrataError: a choice is not of this form, or there is no such attribute.
    """
    if select is None or select == "":
        return {}
    choices = list(_choices(select))
    known = {name.lower().replace(" ", ""): key for key in _KEYWORDS for name in (key, _name(key))}
    chosen: dict[str, list[str]] = defaultdict(list)
    for name, value in choices:
        keyword = known.get(name.lower().replace(" ", ""))
        if keyword is None:
            close = get_close_matches(name.lower(), known, n=1)
            meant = f"Did you mean {known[close[0]]}?" if close else f"Choose from {', '.join(_KEYWORDS)}."
            raise GrataError(f"'{name}' is not an attribute that volumes can be selected by. {meant}", key="select")
        chosen[keyword].append(value)
    return dict(chosen)


def is_one_of(value: str, wanted: Sequence[str]) -> bool:
    """Return whether the value of an attribute is one of those that were chosen; numbers may be written otherwise."""
    value = value or _NONE
    components = value.split("\\")
    return any(
        value.replace("\\", "/").lower() == other.replace("\\", "/").lower()
        or all(any(_is_same(component, word) for component in components) for word in re.split(r"[\\/]", other))
        for other in wanted
    )


_KEYWORDS = (CARDIAC_PHASE, *ATTRIBUTES, "InstanceNumber")


def _choices(select: Any) -> Iterator[tuple[str, str]]:
    if isinstance(select, Mapping):
        select = [f"{name}={value}" for name, values in select.items() for value in _as_list(values)]
    for text in ",".join(map(str, _as_list(select))).split(","):
        name, equals, value = text.partition("=")
        if not (name.strip() and equals and value.strip()):
            raise GrataError(
                f"must be like EchoTime=11, with commas between several choices, got '{select}'.", key="select"
            )
        yield name.strip(), value.strip()


def _as_list(values: Any) -> list[Any]:
    return list(values) if isinstance(values, list | tuple) else [values]


def _is_chosen(instance: Instance, keyword: str, values: Sequence[str]) -> bool:
    value = instance.attributes.get(keyword, "")
    # A damaged orientation is no choice: without its slices, what is left would look like a volume.
    return (not value and keyword in _ORIENTATIONS) or is_one_of(value, values)


def _is_same(text: str, other: str) -> bool:
    with suppress(ValueError):
        return bool(np.isclose(float(text), float(other), rtol=1e-6, atol=0))
    return text.lower() == other.lower()


def _is_regular(instances: Sequence[Instance]) -> bool:
    # A single file is compared as well: it may be a multi-frame object.
    with suppress(GeometryError):
        sort_series(instances)
        return True
    return False


def _varying(instances: Sequence[Instance]) -> dict[str, list[str]]:
    """Return the attributes in which instances differ, with their values in order."""
    found = {}
    for keyword in _KEYWORDS:
        values = {instance.attributes.get(keyword, "") for instance in instances}
        if len(values) > 1:
            found[keyword] = sorted(values, key=_in_order)
    return found


def _in_order(value: str) -> tuple[float, str]:
    with suppress(ValueError):
        return float(value), value
    return float("inf"), value


def _partitions(instances: Sequence[Instance]) -> Iterator[list[Part]]:
    """Yield the ways to tell volumes apart by their attributes, those with the fewest attributes first."""
    # A volume in several files has at least two.
    most = len(instances) if any(instance.multiframe for instance in instances) else len(instances) // 2
    varying = {keyword: values for keyword, values in _varying(instances).items() if len(values) <= most}
    seen = set()
    for keywords in _combinations(list(varying)):
        groups = _grouped(instances, keywords)
        parts = _named(groups, {keyword: varying[keyword] for keyword in keywords})
        signature = _signature(parts)
        if signature not in seen and len(groups) <= most and _lie_together(parts):
            yield parts
        seen.add(signature)


def _combinations(keywords: Sequence[str]) -> Iterator[tuple[str, ...]]:
    # What says something about a volume comes before the times, by which all can be told apart.
    times = [(keyword,) for keyword in keywords if keyword in TIMES]
    saying = [keyword for keyword in keywords if keyword not in (*TIMES, CARDIAC_PHASE)][:_TRIED]
    for number in range(1, _TOGETHER + 1):
        yield from itertools.combinations(saying, number)
    yield from times
    # What is derived comes after what the headers say.
    if CARDIAC_PHASE in keywords:
        for number in range(_TOGETHER):
            yield from ((*others, CARDIAC_PHASE) for others in itertools.combinations(saying, number))


def _signature(parts: Sequence[Part]) -> frozenset[frozenset[str]]:
    """Return what is alike for attributes that tell the same parts from each other."""
    return frozenset(frozenset(instance.path for instance in part.instances) for part in parts)


def _grouped(instances: Sequence[Instance], keywords: Sequence[str]) -> dict[tuple[str, ...], list[Instance]]:
    groups: dict[tuple[str, ...], list[Instance]] = defaultdict(list)
    for instance in instances:
        groups[tuple(instance.attributes.get(keyword, "") for keyword in keywords)].append(instance)
    return groups


def _named(groups: Mapping[tuple[str, ...], list[Instance]], varying: Mapping[str, Sequence[str]]) -> list[Part]:
    """Return groups as parts in the order of their values, which are named without what all have in common."""
    shown = [dict(zip(values, _tokens(values), strict=True)) for values in varying.values()]
    parts = []
    for values in sorted(groups, key=lambda values: [_in_order(value) for value in values]):
        words = [names[value] for names, value in zip(shown, values, strict=True)]
        parts.append(Part(groups[values], dict(zip(varying, words, strict=True))))
    return parts


def _lie_together(parts: Sequence[Part]) -> bool:
    """Return whether parts of one orientation lie at the same places, more than half of the slices of the smaller."""
    by_orientation: dict[str, list[np.ndarray]] = defaultdict(list)
    for part in parts:
        planes = [plane for instance in part.instances for plane in instance.planes]
        positions = np.asarray([plane.position for plane in planes])
        # Damaged slices are no volume of their own, and what is left without them is not whole.
        if not planes or not np.isfinite(positions).all() or not _are_perpendicular(planes):
            return False
        by_orientation[part.orientation].append(positions)
    return all(_share(places, other) > 0.5 for places, *others in by_orientation.values() for other in others)


def _are_perpendicular(planes: Sequence[Plane]) -> bool:
    return all(is_perpendicular(plane.orientation) for plane in planes)


def _share(places: np.ndarray, other: np.ndarray) -> float:
    few, many = sorted((places, other), key=len)
    nearest = [np.abs(many - place).max(axis=1).min() for place in few]
    return float(np.mean(np.asarray(nearest) < SAME_PLACE))


def _tokens(values: Sequence[str]) -> list[str]:
    """Return each value without the components that all of them have."""
    if not all("\\" in value for value in values):
        return list(values)
    components = [value.split("\\") for value in values]
    common = set.intersection(*map(set, components))
    shorter = ["\\".join(part for part in value if part not in common) for value in components]
    return shorter if len(set(shorter)) == len(values) else list(values)


def _word(value: str) -> str:
    word = re.sub(r"[^A-Za-z0-9.+-]+", "-", value).strip("-.") or "None"
    # A long or cut value would not be unique, or would not be a file name.
    is_whole = len(word) <= _SHOWN and word in (value, value.replace("\\", "-"))
    return word if is_whole or not value else short_digest(value)


def _name(keyword: str) -> str:
    return _OWN_NAMES.get(keyword) or dictionary_description(keyword)


def _shown_name(keyword: str) -> str:
    return f"{_name(keyword)}{' in order' * (keyword in TIMES or keyword in _FRAME_TIMES)}"


def _listed(values: Sequence[str]) -> str:
    shown = ", ".join(value.replace("\\", "/") or _NONE for value in values[:_LISTED])
    return shown if len(values) <= _LISTED else f"{shown}, …"


def _different_content(first: Path, second: Path) -> list[str]:
    """Return the attributes in which two files differ; none where they are copies, stored in the same form or not."""
    if first.read_bytes() == second.read_bytes():
        return []
    with quiet_libraries():
        one, other = read_file(first), read_file(second)
        tags = sorted({element.tag for element in (*one, *other) if element.tag.element})
        different = [tag for tag in tags if one.get(tag) != other.get(tag) and not _is_same_pixels(tag, one, other)]
        return [str((one if tag in one else other)[tag].name).strip("[]") for tag in different[:_LISTED]]


def _is_same_pixels(tag: BaseTag, one: Dataset, other: Dataset) -> bool:
    """Return whether an element is pixel data that were only compressed in another way."""
    # Decoders raise exceptions of any kind.
    with suppress(Exception):
        return tag.group == _PIXELS and bool(np.array_equal(one.pixel_array, other.pixel_array))
    return False
