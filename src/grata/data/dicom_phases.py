"""Phases of the heart: their numbers, and which of them each image of a DICOM series shows."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from .dicom_index import Instance
from .geometry import SAME_PLACE

__all__ = ["CARDIAC_PHASE", "TRIGGER_TIMES", "phase_numbers", "with_phases"]

CARDIAC_PHASE = "CardiacPhase"
"""Attribute for the number of the phase, from 1 on, which no header gives: in case ids, messages and selections."""

TRIGGER_TIMES = ("TriggerTime", "NominalCardiacTriggerDelayTime")
"""Attributes for the time since the heartbeat, the one that is preferred first."""

# How many times as long the phases may last at one place as at another: the heart rate changes between breath-holds.
_SPANS = 2


def phase_numbers(count: int) -> list[str]:
    """Return the numbers of all phases, from 1 on, with leading zeros, so that names sort in their order."""
    width = max(2, len(str(count)))
    return [f"{number:0{width}d}" for number in range(1, count + 1)]


def with_phases(instances: Sequence[Instance]) -> list[Instance]:
    """Return the instances of a series with the attribute :data:`CARDIAC_PHASE`, the rank of the trigger time.

    The trigger times of one phase differ from breath-hold to breath-hold, and so from slice to slice. The rank is
    given only where every slice place holds as many trigger times, each as often, and where they follow each other in
    the same rhythm: from the first to the last they take at one place less than twice the time that they take at
    another; the first ones differ by less than half of that time; and as shares of it, those of one rank differ by less
    than half of the smallest step between two ranks. So repetitions, whose trigger times scatter around one value, are
    not taken for phases.

    Where no image has a trigger time, Instance Number takes its place if each slice place holds as many images as
    Cardiac Number of Images says, and if from place to place the numbers of all ranks change by the same amount.

    Args:
        instances: instances of one series, in any order; those with one SOP Instance UID count once.

    Returns:
        The instances, in the same order; as they are where there is no such rank.
    """
    places = _places(instances)
    if len(places) < 2:
        return list(instances)
    numbers = _by_times(instances, places) or _by_order(instances, places)
    if not numbers:
        return list(instances)
    return [replace(one, attributes={**one.attributes, CARDIAC_PHASE: numbers[one.uid]}) for one in instances]


def _places(instances: Sequence[Instance]) -> list[list[str]]:
    """Return the UIDs of the instances at each slice place; nothing where an instance is not one plane."""
    heights: dict[str, dict[str, float]] = defaultdict(dict)
    for one in instances:
        if len(one.planes) != 1 or "ImageOrientationPatient" not in one.attributes:
            return []
        (plane,) = one.planes
        normal = np.cross(plane.orientation[:3], plane.orientation[3:])
        heights[one.attributes["ImageOrientationPatient"]][one.uid] = float(np.dot(plane.position, normal))
    places = []
    for stack in heights.values():
        uids = sorted(stack, key=lambda uid: stack[uid])
        steps = np.diff([stack[uid] for uid in uids])
        places += [part.tolist() for part in np.split(uids, np.flatnonzero(steps > SAME_PLACE) + 1)]
    return places


def _by_times(instances: Sequence[Instance], places: Sequence[Sequence[str]]) -> dict[str, str]:
    """Return the phase of each instance by its UID, from the trigger times; nothing where these are not of a cine."""
    for keyword in TRIGGER_TIMES:
        times = {one.uid: _number(one.attributes.get(keyword, "")) for one in instances}
        found = _ordered(times, places)
        if found is not None and _have_one_rhythm(found):
            return _ranked(times, places, found)
    return {}


def _by_order(instances: Sequence[Instance], places: Sequence[Sequence[str]]) -> dict[str, str]:
    """Return the phase of each instance by its UID, from Instance Number; nothing where it does not count phases."""
    counts = {one.attributes.get("CardiacNumberOfImages") for one in instances}
    timed = any(keyword in one.attributes for one in instances for keyword in TRIGGER_TIMES)
    if timed or counts != {str(len(place)) for place in places}:
        return {}
    order = {one.uid: _number(one.order) for one in instances}
    found = _ordered(order, places)
    if found is None or np.ptp(found - found[0], axis=1).any():
        return {}
    return _ranked(order, places, found)


def _number(value: str) -> float:
    """Return the value of an attribute as a number, NaN where it is none."""
    with suppress(ValueError):
        return float(value)
    return float("nan")


def _ordered(values: Mapping[str, float], places: Sequence[Sequence[str]]) -> np.ndarray | None:
    """Return the values at each place in order, (places, phases); None unless each has as many, each as often."""
    found = [np.unique([values[uid] for uid in place], return_counts=True) for place in places]
    _, first = found[0]
    if len(first) < 2 or np.ptp(first) or not all(np.array_equal(counts, first) for _, counts in found):
        return None
    rows = np.asarray([row for row, _ in found])
    return rows if np.isfinite(rows).all() else None


def _have_one_rhythm(times: np.ndarray) -> bool:
    spans = np.ptp(times, axis=1, keepdims=True)
    shares = (times - times[:, :1]) / spans
    step = np.diff(shares.mean(axis=0)).min()
    alike = spans.max() < _SPANS * spans.min() and np.ptp(times[:, 0]) < spans.min() / 2
    return bool(alike and np.ptp(shares, axis=0).max() < step / 2)


def _ranked(values: Mapping[str, float], places: Sequence[Sequence[str]], found: np.ndarray) -> dict[str, str]:
    """Return the number of the phase of each instance, by the place of its value among those of its slice place."""
    numbers = phase_numbers(found.shape[1])
    ranks = [dict(zip(row, numbers, strict=True)) for row in found.tolist()]
    return {uid: rank[values[uid]] for place, rank in zip(places, ranks, strict=True) for uid in place}
