"""Check whether image planes form one regular volume. Nothing is repaired and nothing is guessed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .sizes import LARGEST_VOLUME

__all__ = [
    "ORIENTATION_TOLERANCE",
    "SAME_PLACE",
    "GeometryError",
    "Plane",
    "is_perpendicular",
    "order_planes",
    "perpendicular",
    "spacing_tolerance",
]

ORIENTATION_TOLERANCE = 1e-3
"""Difference of two direction cosines that counts as rounding: headers give as few as four digits."""

SAME_PLACE = 0.1
"""Distance (mm) up to which two slices lie at one place."""

# Distance (mm) from the origin beyond which a position is damaged.
_FARTHEST = 1e6
# Pixels that the slices of a stack may shift over its whole length: rounding shifts less, a tilted gantry far more.
_DRIFT_IN_PIXELS = 0.1
# Part of the spacing that a slice may lie away from its place in a regular grid.
_DRIFT_IN_SLICES = 0.1
# Distance (mm) below which one slice is a duplicate of another.
_DUPLICATE = 1e-3


class GeometryError(ValueError):
    """Planes that do not form one regular volume.

    Args:
        message: why not, without the name of a file.
        remedy: what helps; empty where the series is to be exported again.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True)
class Plane:
    """Position of one image plane in the patient, in DICOM's LPS coordinates.

    Attributes:
        position: centre of the first pixel, (3,), mm.
        orientation: direction cosines along a row and along a column, (6,).
        spacing: distance between rows and between columns, (2,), mm.
        size: number of rows and columns.
    """

    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    size: tuple[int, int]


def spacing_tolerance(spacing: float) -> float:
    """Return how far (mm) a slice distance may differ from ``spacing``: 1 % of it, and at least 0.01 mm."""
    return max(0.01 * spacing, 0.01)


def perpendicular(orientation: Sequence[float]) -> tuple[float, ...]:
    """Return direction cosines without their rounding error, as perpendicular unit vectors.

    Args:
        orientation: direction cosines along a row and along a column, (6,).

    Returns:
        The nearest pair of perpendicular unit vectors, (6,); ``orientation`` itself where its deviation is larger than
        rounding to three digits explains.
    """
    vectors = np.asarray(orientation, dtype=float).reshape(2, 3)
    if not is_perpendicular(orientation):
        return tuple(float(value) for value in orientation)
    left, _, right = np.linalg.svd(vectors, full_matrices=False)
    return tuple((left @ right).ravel().tolist())


def is_perpendicular(orientation: Sequence[float]) -> bool:
    """Return whether direction cosines, (6,), are a pair of perpendicular unit vectors but for their rounding."""
    vectors = np.asarray(orientation, dtype=float).reshape(2, 3)
    close = np.allclose(vectors @ vectors.T, np.eye(2), atol=2 * ORIENTATION_TOLERANCE)
    return bool(np.isfinite(vectors).all()) and close


def order_planes(
    planes: Sequence[Plane], nominal_spacing: float | None = None, thickness: float | None = None
) -> list[int]:
    """Return the order of the planes along their normal, from low to high.

    Args:
        planes: planes of one series, in any order.
        nominal_spacing: Spacing Between Slices of the header (mm), used only to notice when, for example, every second
            slice is missing.
        thickness: Slice Thickness of the header (mm), used only to notice when a scanner wrote the gap between slices
            as their spacing.

    Returns:
        Indices into ``planes``. The normal is the cross product of the row and the column direction.

    Raises:
        GeometryError: there are fewer than two planes; their sizes, pixel spacings or orientations are mixed; several
            planes have one position; a slice is missing; distances are irregular; or slices are shifted against each
            other.
    """
    if len(planes) < 2:
        raise GeometryError("it is a single slice, but a volume is needed")
    _check_alike(planes)
    rows, columns = planes[0].size
    if rows * columns * len(planes) > LARGEST_VOLUME:
        raise GeometryError(
            f"it has {columns} × {rows} × {len(planes)} voxels, more than {LARGEST_VOLUME}",
            "Crop it, or resample it to larger voxels",
        )
    orientation = np.asarray(planes[0].orientation, dtype=float)
    normal = np.cross(orientation[:3], orientation[3:])
    positions = np.asarray([plane.position for plane in planes], dtype=float)
    heights = positions @ normal
    order = np.argsort(heights, kind="stable")
    _check_distances(heights[order], nominal_spacing, thickness)
    _check_alignment(positions[order], heights[order], normal, min(planes[0].spacing))
    return order.tolist()


def _check_alike(planes: Sequence[Plane]) -> None:
    sizes = sorted({plane.size for plane in planes})
    if len(sizes) > 1:
        raise GeometryError(f"its slices have different sizes (rows × columns): {_listed(sizes, ' × ')}")
    _check_numbers(planes)
    spacings = sorted({plane.spacing for plane in planes})
    if not np.allclose(spacings, spacings[0], rtol=1e-4):
        raise GeometryError(f"its slices have different pixel spacings (mm): {_listed(spacings, ' × ')}")
    if min(spacings[0]) <= 0:
        raise GeometryError(f"its pixel spacing is not positive (mm): {_listed(spacings, ' × ')}")
    orientations = np.asarray([plane.orientation for plane in planes], dtype=float)
    if not all(is_perpendicular(plane.orientation) for plane in planes):
        raise GeometryError("its Image Orientation (Patient) is not a pair of perpendicular unit vectors")
    deviating = int((np.abs(orientations - orientations[0]).max(axis=1) > ORIENTATION_TOLERANCE).sum())
    if deviating:
        raise GeometryError(
            f"its slices have mixed orientations ({len(planes) - deviating} like the first, {deviating} others), "
            "as in a localizer or several stacks in one series"
        )


def _check_numbers(planes: Sequence[Plane]) -> None:
    if not np.isfinite([(*p.position, *p.orientation, *p.spacing) for p in planes]).all():
        raise GeometryError("a position, orientation or pixel spacing in its headers is not a finite number")
    if np.abs([plane.position for plane in planes]).max() > _FARTHEST:
        raise GeometryError("a position in its headers is farther away than any scanner reaches")


def _check_distances(heights: np.ndarray, nominal_spacing: float | None, thickness: float | None) -> None:
    distances = np.diff(heights)
    apart = distances >= _DUPLICATE
    if not apart.all():
        _raise_duplicates(heights, apart)
    spacing = _spacing_of(distances)
    irregular = np.flatnonzero(np.abs(distances - spacing) > spacing_tolerance(spacing))
    if irregular.size:
        _raise_irregular(heights, int(irregular[0]), spacing)
    places = np.linspace(heights[0], heights[-1], len(heights))
    drift = float(np.abs(heights - places).max())
    if drift > max(_DRIFT_IN_SLICES * spacing, 0.01):
        raise GeometryError(
            f"its slice spacing is not uniform: a slice lies {drift:.2f} mm away from its place at equal distances"
        )
    if thickness and nominal_spacing and abs(thickness + nominal_spacing - spacing) <= spacing_tolerance(spacing):
        return
    steps = spacing / nominal_spacing if nominal_spacing and nominal_spacing > 0 else 1.0
    if round(steps) > 1 and abs(steps - round(steps)) < 0.01 * steps:
        raise GeometryError(
            f"slices are missing: its slices lie {spacing:.2f} mm apart, but the header says "
            f"{nominal_spacing:.2f} mm (Spacing Between Slices)"
        )


def _raise_duplicates(heights: np.ndarray, apart: np.ndarray) -> None:
    """Say how slices share places, given whether each lies apart from the one before it."""
    first = np.flatnonzero(np.r_[True, apart])
    counts = np.diff(np.r_[first, len(heights)])
    usual = int(np.bincount(counts).argmax())
    odd = np.flatnonzero(counts != usual)
    if usual > 1 and odd.size:
        raise GeometryError(
            f"it has duplicate slices, and not as many at each place: {len(counts) - odd.size} of {len(counts)} places "
            f"hold {usual}, but that at {heights[first[odd[0]]]:.2f} mm along the slice normal holds {counts[odd[0]]}, "
            "as when an image of a cine or of another series in time is missing",
            "Export the series again, complete",
        )
    shared = heights[first[np.argmax(counts > 1)]]
    raise GeometryError(
        f"it has duplicate slices: {len(heights) - len(counts)} of {len(heights)} lie at the position of another one "
        f"(the first at {shared:.2f} mm along the slice normal), as when a series holds copies of a file, "
        "several echoes or several time points"
    )


def _spacing_of(distances: np.ndarray) -> float:
    """Return the distance of two slices between which none is missing."""
    spacing = float(np.median(distances))
    # Where most slices are missing, the median is a gap, and the smallest distance is the true spacing.
    if distances.min() < spacing - spacing_tolerance(spacing) and not _is_displaced(distances, spacing):
        return float(distances.min())
    return spacing


def _is_displaced(distances: np.ndarray, spacing: float) -> bool:
    """Return whether the smallest distance is that of a slice which is not at its place between its neighbours."""
    index = int(distances.argmin())
    both = [distances[index] + distances[beside] for beside in (index - 1, index + 1) if 0 <= beside < len(distances)]
    others = int((np.abs(distances - spacing) > spacing_tolerance(spacing)).sum())
    return others == 2 and any(abs(gap - 2 * spacing) <= 2 * spacing_tolerance(spacing) for gap in both)


def _raise_irregular(heights: np.ndarray, index: int, spacing: float) -> None:
    low, high = heights[index], heights[index + 1]
    missing = round((high - low) / spacing) - 1
    where = f"between {low:.2f} mm and {high:.2f} mm along the slice normal"
    if missing > 0 and abs((high - low) / (missing + 1) - spacing) <= spacing_tolerance(spacing):
        count = "a slice is" if missing == 1 else f"{missing} slices are"
        raise GeometryError(f"{count} missing {where}: the expected spacing is {spacing:.2f} mm")
    raise GeometryError(f"its slice spacing is not uniform: {high - low:.2f} mm {where} instead of {spacing:.2f} mm")


def _check_alignment(positions: np.ndarray, heights: np.ndarray, normal: np.ndarray, pixel: float) -> None:
    inplane = positions - positions[0] - np.outer(heights - heights[0], normal)
    drift = float(np.linalg.norm(inplane, axis=1).max())
    if drift > max(_DRIFT_IN_PIXELS * pixel, 0.01):
        raise GeometryError(
            f"its slices are shifted against each other by up to {drift:.2f} mm within the slice plane, as with a "
            "tilted gantry. Resample it to an upright stack first"
        )


def _listed(values: Sequence[tuple], joiner: str) -> str:
    return ", ".join(joiner.join(f"{number:g}" for number in value) for value in values[:4])
