"""Phases of the heart: their numbers, and which of them each image of a DICOM series shows."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
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

    Args:
        instances: instances of one series, in any order; those with one SOP Instance UID count once.

    Returns:
        The instances, in the same order; as they are where there is no such rank.
    """
    numbers = next(filter(None, (_numbers(instances, keyword) for keyword in TRIGGER_TIMES)), {})
    if not numbers:
        return list(instances)
    return [replace(one, attributes={**one.attributes, CARDIAC_PHASE: numbers[one.uid]}) for one in instances]


def _numbers(instances: Sequence[Instance], keyword: str) -> dict[str, str]:
    """Return the number of the phase of each instance by its UID; nothing where they have none."""
    times = _times(instances, keyword)
    places = _places(instances) if times else []
    ranks = _ranks([Counter(times[uid] for uid in uids) for uids in places])
    return {uid: rank[times[uid]] for uids, rank in zip(places, ranks) for uid in uids}


def _ranks(places: Sequence[Counter[float]]) -> list[dict[float, str]]:
    """Return the number of each trigger time at each slice place; nothing where the times are not those of phases."""
    sizes = {len(place) for place in places}
    repeats = {count for place in places for count in place.values()}
    if len(places) < 2 or len(sizes) > 1 or len(repeats) > 1 or sizes == {1} or not _have_one_rhythm(places):
        return []
    numbers = phase_numbers(sizes.pop())
    return [dict(zip(sorted(place), numbers, strict=True)) for place in places]


def _times(instances: Sequence[Instance], keyword: str) -> dict[str, float]:
    """Return the trigger time of each instance by its UID; nothing where one has none, or not one plane."""
    try:
        times = {one.uid: float(one.attributes[keyword]) for one in instances}
    except (KeyError, ValueError):
        return {}
    placed = all(len(one.planes) == 1 and "ImageOrientationPatient" in one.attributes for one in instances)
    return times if placed and np.isfinite(list(times.values())).all() else {}


def _places(instances: Sequence[Instance]) -> list[list[str]]:
    """Return the UIDs of the instances at each slice place."""
    heights: dict[str, dict[str, float]] = defaultdict(dict)
    for one in instances:
        (plane,) = one.planes
        normal = np.cross(plane.orientation[:3], plane.orientation[3:])
        heights[one.attributes["ImageOrientationPatient"]][one.uid] = float(np.dot(plane.position, normal))
    places = []
    for stack in heights.values():
        uids = sorted(stack, key=lambda uid: stack[uid])
        steps = np.diff([stack[uid] for uid in uids])
        places += [part.tolist() for part in np.split(uids, np.flatnonzero(steps > SAME_PLACE) + 1)]
    return places


def _have_one_rhythm(places: Sequence[Iterable[float]]) -> bool:
    times = np.asarray([sorted(place) for place in places])
    spans = np.ptp(times, axis=1, keepdims=True)
    shares = (times - times[:, :1]) / spans
    step = np.diff(shares.mean(axis=0)).min()
    alike = spans.max() < _SPANS * spans.min() and np.ptp(times[:, 0]) < spans.min() / 2
    return bool(alike and np.ptp(shares, axis=0).max() < step / 2)
