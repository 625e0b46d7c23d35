"""Figure of a case on one page: the organ, the outline of each segmentation, and where they differ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from monai.utils import convert_to_numpy
from skimage.measure import find_contours

from ..errors import GrataError
from ..files import atomic_write

__all__ = ["contact_sheet"]

# Okabe and Ito's colours, which people with a colour vision deficiency can distinguish. Lines are drawn in this order,
# the broad one first and the dashed one last, so that each can be seen where outlines coincide.
_LINES: dict[str, dict[str, Any]] = {
    "label": {"color": "#009E73", "linewidth": 3.6},
    "adapted": {"color": "#56B4E9", "linewidth": 1.9},
    "source": {"color": "#E69F00", "linewidth": 1.6, "dashes": (2.2, 1.8)},
}
_OTHER_COLOURS = ("#F0E442", "#D55E00", "#0072B2")
_CHANGED = to_rgba("#CC79A7", 0.55)
_PAPER, _TEXT, _QUIET = "#141518", "#F2F2F2", "#A8ADB4"

_DPI = 150
_WIDTH = 12.0
_GAP, _CAPTION, _HEADER, _FOOTER = 0.06, 0.2, 0.72, 0.3
_TALLEST_ROW = 6.0
_LETTER = 0.07
_LONGEST_TITLE = 90
_COLUMNS_3D, _SLICES = 6, 12
_ANISOTROPIC = 1.5
_FEW_SLICES = 1 / 6
_CONTEXT = 0.25
_ALMOST_ALL = 0.75

_DISPLAY = ("P", "L", "S")
_OPPOSITE = {"P": "A", "L": "R", "S": "I"}
_VIEWS = ("coronal", "sagittal", "axial")


def contact_sheet(
    image: np.ndarray | torch.Tensor,
    outlines: Mapping[str, np.ndarray | torch.Tensor],
    path: str | Path,
    title: str,
    spacing: Sequence[float],
    axcodes: Sequence[str] | None = None,
) -> None:
    """Draw a case and its segmentations as PNG, 1800 pixels wide; equal inputs give equal bytes.

    A volume is shown in three orthogonal planes through the largest cross-sections of the outlined structures, each
    with and without outlines; planes of a few voxels' height are left out. Up to 12 slices, cropped around the
    structures, follow: along the axis of the thickest voxels, or, where the voxels are nearly cubes, along an axis of
    few voxels, or along the longest axis of the structures. A 2D image is shown as a
    whole, with and without outlines, and enlarged. Where both ``"source"`` and ``"adapted"`` are given, the voxels in
    which they differ are filled.

    Args:
        image: intensities of shape ``(H, W, D)`` or ``(H, W)``, or colours of shape ``(H, W, 3)``, in any range. Grey
            values are scaled from their 1st to their 99th percentile around the outlined structures, colours from 0 to
            their largest value, which keeps their hue. Values that are not finite are shown black.
        outlines: integer label maps on the image's grid by name, background 0. ``"source"``, ``"adapted"`` and
            ``"label"`` have their own colours.
        path: file to write, in a folder that exists; an existing file is replaced.
        title: heading, shown on one line; the middle of a long one is left out.
        spacing: distance between neighbouring voxels along each axis, in mm; ones for a picture. Its length
            distinguishes a colour image from a volume of three slices.
        axcodes: directions of a volume's axes in the patient, as :func:`nibabel.aff2axcodes` gives them. With them, the
            volume is turned into the radiological view (patient's left on the right) and lettered. Without them, the
            first axis points down, the second to the right and the third up. Captions count voxels along the axes i, j,
            k as given, from 0.

    Raises:
        GrataError: the shapes of image, outlines and spacing do not fit together, or the file cannot be written.
    """
    pixels = convert_to_numpy(image)
    maps = {name: convert_to_numpy(values) for name, values in outlines.items()}
    dims = len(spacing)
    if dims not in (2, 3) or pixels.shape[dims:] not in ((), (3,)) or (dims == 3 and pixels.ndim != 3):
        raise GrataError(
            f"{title}: an image of shape {pixels.shape} with spacing {tuple(spacing)} cannot be drawn. Give a "
            "volume and three distances, or a 2D image and two."
        )
    for name, values in maps.items():
        if values.shape != pixels.shape[:dims]:
            raise GrataError(
                f"{title}: the outline {name!r} has shape {values.shape}, but the image {pixels.shape}. Give a label "
                "map on the voxels of the image."
            )

    volume = _Grid(pixels, maps, tuple(float(mm) for mm in spacing))
    if dims == 3:
        rows = _volume_rows(_displayed(volume, axcodes) if axcodes else volume)
    else:
        rows = _plane_rows(volume)
    figure = _draw(rows, _window(volume), _lines(maps), title, _sizes(volume))
    FigureCanvasAgg(figure)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI, metadata={"Software": None}, facecolor=_PAPER)


@dataclass(frozen=True)
class _Grid:
    """An image and its label maps, possibly turned.

    Attributes:
        pixels: image, (H, W[, D]) or (H, W, 3).
        outlines: label maps by name.
        spacing: distance between neighbouring voxels along each axis, in mm.
        axes: name of each axis in the file.
        flipped: whether each axis runs against the file's.
        lettered: whether directions in the patient are known and lettered.
    """

    pixels: np.ndarray
    outlines: Mapping[str, np.ndarray]
    spacing: tuple[float, ...]
    axes: tuple[str, ...] = ("i", "j", "k")
    flipped: tuple[bool, ...] = (False, False, False)
    lettered: bool = False

    def mask(self) -> np.ndarray:
        shape = self.pixels.shape[: len(self.spacing)]
        return np.any([values != 0 for values in self.outlines.values()], axis=0) if self.outlines else np.zeros(shape)

    def crop(self, region: tuple[slice, ...]) -> _Grid:
        outlines = {name: values[region] for name, values in self.outlines.items()}
        return replace(self, pixels=self.pixels[region], outlines=outlines)


@dataclass(frozen=True)
class _Panel:
    """A plane as it is drawn, its first axis down and its second to the right.

    Attributes:
        pixels: image, (rows, columns) or (rows, columns, 3).
        outlines: label maps by name.
        spacing: distance between rows and between columns, in mm.
        caption: text above the plane.
        edges: letters at the left and at the upper edge.
    """

    pixels: np.ndarray
    outlines: Mapping[str, np.ndarray]
    spacing: tuple[float, float]
    caption: str
    edges: tuple[str, str] = ("", "")

    @property
    def width_per_height(self) -> float:
        rows, columns = self.pixels.shape[:2]
        return columns * self.spacing[1] / (rows * self.spacing[0])


def _displayed(volume: _Grid, axcodes: Sequence[str]) -> _Grid:
    try:
        turn = nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt(tuple(axcodes)), nib.orientations.axcodes2ornt(_DISPLAY)
        )
    except (ValueError, KeyError, IndexError) as error:
        raise GrataError(f"must be three directions such as R, A, S, got {tuple(axcodes)}.", key="axcodes") from error
    source_axis = np.argsort(turn[:, 0])
    return _Grid(
        nib.orientations.apply_orientation(volume.pixels, turn),
        {name: nib.orientations.apply_orientation(values, turn) for name, values in volume.outlines.items()},
        tuple(volume.spacing[axis] for axis in source_axis),
        tuple(volume.axes[axis] for axis in source_axis),
        tuple(bool(turn[axis, 1] < 0) for axis in source_axis),
        lettered=True,
    )


def _plane(volume: _Grid, axis: int, index: int, view: bool = False) -> _Panel:
    """Return the plane across ``axis``; the third axis, where it lies in the plane, points up."""
    down, right = {0: (2, 1), 1: (2, 0), 2: (0, 1)}[axis]

    def cut(values: np.ndarray) -> np.ndarray:
        plane = values.take(index, axis)
        return plane if axis == 2 else plane.T[::-1]

    caption = f"{volume.axes[axis]} {volume.pixels.shape[axis] - 1 - index if volume.flipped[axis] else index}"
    edges = ("", "")
    if view and volume.lettered:
        caption = f"{_VIEWS[axis]}, {caption}"
        top = _DISPLAY[down] if axis != 2 else _OPPOSITE[_DISPLAY[down]]
        edges = (_OPPOSITE[_DISPLAY[right]], top)
    return _Panel(
        cut(volume.pixels),
        {name: cut(values) for name, values in volume.outlines.items()},
        (volume.spacing[down], volume.spacing[right]),
        caption,
        edges,
    )


def _with_bare(panel: _Panel) -> list[_Panel]:
    """Return the panel without outlines, and then with them if there are any."""
    bare = replace(panel, outlines={})
    return [bare, panel] if any(values.any() for values in panel.outlines.values()) else [bare]


def _volume_rows(volume: _Grid) -> list[list[_Panel]]:
    mask = volume.mask()
    counts = [mask.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
    region = _region(volume, mask)
    axis = _slice_axis(volume, mask)
    shown = np.flatnonzero(counts[axis]) if mask.any() else np.arange(mask.shape[axis])
    indices = np.unique(np.linspace(shown[0], shown[-1], _SLICES).round().astype(int))
    strip = volume.crop(tuple(slice(None) if other == axis else part for other, part in enumerate(region)))
    slices = [_plane(strip, axis, int(index)) for index in indices]
    rows = (slices[start : start + _COLUMNS_3D] for start in range(0, len(slices), _COLUMNS_3D))
    return [_overview(volume, counts), *rows]


def _overview(volume: _Grid, counts: Sequence[np.ndarray]) -> list[_Panel]:
    """Return the planes through the largest cross-sections, by the number of outlined voxels along each axis."""
    largest = [np.flatnonzero(count == count.max()) for count in counts]
    views = [_plane(volume, axis, int(largest[axis][len(largest[axis]) // 2]), view=True) for axis in (2, 0, 1)]
    legible = [view for view in views if _FEW_SLICES < view.width_per_height < 1 / _FEW_SLICES]
    return [panel for view in legible or views for panel in _with_bare(view)]


def _plane_rows(plane: _Grid) -> list[list[_Panel]]:
    spacing = plane.spacing[0], plane.spacing[1]
    row = _with_bare(_Panel(plane.pixels, plane.outlines, spacing, "whole image"))
    region = _region(plane, plane.mask())
    enlarged = plane.crop(region)
    if any(np.divide(enlarged.pixels.shape[:2], plane.pixels.shape[:2]) < _ALMOST_ALL):
        row.append(_Panel(enlarged.pixels, enlarged.outlines, spacing, "enlarged"))
    return [row]


def _slice_axis(volume: _Grid, mask: np.ndarray) -> int:
    if max(volume.spacing) > _ANISOTROPIC * min(volume.spacing):
        return int(np.argmax(volume.spacing))
    # A stack of thick slices whose header has lost their thickness.
    shortest, second = np.sort(mask.shape)[:2]
    if shortest < _FEW_SLICES * second:
        return int(np.argmin(mask.shape))
    if not mask.any():
        return 2
    return int(np.argmax([np.ptp(found) * mm for found, mm in zip(np.nonzero(mask), volume.spacing, strict=True)]))


def _region(grid: _Grid, mask: np.ndarray) -> tuple[slice, ...]:
    """Return the box around the outlined structures, with a margin; the whole grid where nothing is outlined."""
    if not mask.any():
        return (slice(None),) * mask.ndim
    spans = [(int(found.min()), int(found.max()) + 1) for found in np.nonzero(mask)]
    context = _CONTEXT * max((stop - start) * mm for (start, stop), mm in zip(spans, grid.spacing, strict=True))
    margins = [math.ceil(context / mm) for mm in grid.spacing]
    return tuple(
        slice(max(start - margin, 0), stop + margin) for (start, stop), margin in zip(spans, margins, strict=True)
    )


def _window(grid: _Grid) -> tuple[float, float]:
    if grid.pixels.ndim > len(grid.spacing):
        finite = grid.pixels[np.isfinite(grid.pixels)]
        return min(0.0, float(finite.min(initial=0))), max(float(finite.max(initial=0)), 1e-6)
    values = grid.crop(_region(grid, grid.mask())).pixels
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, (1, 99)) if values.size else (0.0, 0.0)
    return (float(low), float(high)) if high > low else (float(low) - 0.5, float(low) + 0.5)


def _lines(outlines: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Return the style of each outline, in the order of drawing."""
    others = cycle(_OTHER_COLOURS)
    known = {name: line for name, line in _LINES.items() if name in outlines}
    return known | {name: {"color": next(others), "linewidth": 1.1} for name in outlines if name not in known}


def _sizes(grid: _Grid) -> str:
    """Return in words how much each map outlines, and how much adaptation changed."""

    def size(mask: np.ndarray) -> str:
        count = int(mask.sum())
        if not count:
            return "nothing"
        if len(grid.spacing) == 2:
            return f"{count} pixels"
        return f"{count * math.prod(grid.spacing) / 1000:.2f} mL"

    parts = [f"{name} {size(values != 0)}" for name, values in grid.outlines.items()]
    if {"source", "adapted"} <= grid.outlines.keys():
        changed = grid.outlines["source"] != grid.outlines["adapted"]
        parts.append(f"source and adapted differ in {size(changed)}" if changed.any() else "source and adapted agree")
    return "outlined: " + ", ".join(parts) if parts else ""


def _draw(
    rows: Sequence[Sequence[_Panel]],
    window: tuple[float, float],
    lines: Mapping[str, Mapping[str, Any]],
    title: str,
    footnote: str,
) -> Figure:
    columns = max(map(len, rows))
    heights = [_row_height(row, columns) for row in rows]
    total = _HEADER + sum(heights) + len(rows) * (_CAPTION + _GAP) + _FOOTER
    figure = Figure(figsize=(_WIDTH, total))
    bottom = total - _HEADER
    for row, height in zip(rows, heights, strict=True):
        bottom -= _CAPTION + height
        left = _GAP
        for panel in row:
            width = height * panel.width_per_height
            axes = figure.add_axes((left / _WIDTH, bottom / total, width / _WIDTH, height / total))
            _draw_panel(axes, replace(panel, caption=_caption(panel.caption, width)), window, lines)
            left += width + _GAP
        bottom -= _GAP
    style: dict[str, Any] = {"color": _TEXT, "va": "center", "parse_math": False}
    figure.text(_GAP / _WIDTH, 1 - 0.22 / total, _heading(title), fontsize=14, fontweight="bold", **style)
    figure.text(_GAP / _WIDTH, 0.17 / total, footnote, fontsize=10, **style)
    _draw_legend(figure, lines, (_GAP / _WIDTH, 1 - 0.55 / total))
    return figure


def _row_height(row: Sequence[_Panel], columns: int) -> float:
    """Return the height in inches at which a row of panels takes its part of the page's width."""
    width = len(row) / columns * (_WIDTH - _GAP) - len(row) * _GAP
    return min(width / sum(panel.width_per_height for panel in row), _TALLEST_ROW)


def _caption(caption: str, width: float) -> str:
    """Return as much of a caption as fits above a panel of this width in inches."""
    shorter = (caption, caption.rpartition(", ")[2])
    return next((text for text in shorter if len(text) * _LETTER <= width + _GAP), "")


def _heading(title: str) -> str:
    title = " ".join(title.split())
    if len(title) > _LONGEST_TITLE:
        title = f"{title[: _LONGEST_TITLE // 2]}…{title[-_LONGEST_TITLE // 2 :]}"
    return title


def _draw_legend(figure: Figure, lines: Mapping[str, Mapping[str, Any]], place: tuple[float, float]) -> None:
    handles: list[Artist] = [Line2D([], [], label=name, **line) for name, line in reversed(list(lines.items()))]
    if {"source", "adapted"} <= lines.keys():
        handles.append(Patch(facecolor=_CHANGED, label="source and adapted differ"))
    if handles:
        figure.legend(
            handles=handles,
            loc="center left",
            bbox_to_anchor=place,
            ncols=len(handles),
            frameon=False,
            fontsize=10,
            labelcolor=_TEXT,
            borderpad=0,
            borderaxespad=0,
        )


def _draw_panel(axes: Axes, panel: _Panel, window: tuple[float, float], lines: Mapping[str, Mapping[str, Any]]) -> None:
    low, high = window
    finite = np.nan_to_num(panel.pixels.astype(float), nan=low, posinf=low, neginf=low)
    shown = np.clip((finite - low) / (high - low), 0, 1)
    aspect = panel.spacing[0] / panel.spacing[1]
    axes.set_axis_off()
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="bilinear", aspect=aspect)
    axes.set_title(panel.caption, fontsize=9, color=_QUIET, pad=2)
    if {"source", "adapted"} <= panel.outlines.keys():
        changed = panel.outlines["source"] != panel.outlines["adapted"]
        axes.imshow(np.where(changed[..., None], _CHANGED, 0.0), interpolation="nearest", aspect=aspect)
    for name, line in lines.items():
        for rows, columns in _contours(panel.outlines[name]) if name in panel.outlines else ():
            axes.plot(columns, rows, scalex=False, scaley=False, **line)
    rim = [withStroke(linewidth=2, foreground=_PAPER)]
    letter: dict[str, Any] = {"transform": axes.transAxes, "color": _TEXT, "fontsize": 9, "path_effects": rim}
    axes.text(0.02, 0.5, panel.edges[0], ha="left", va="center", **letter)
    axes.text(0.5, 0.98, panel.edges[1], ha="center", va="top", **letter)


def _contours(labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for value in np.unique(labels[labels != 0]):
        # Padding closes contours that touch the edge of the plane.
        for contour in find_contours(np.pad(labels == value, 1).astype(float), 0.5):
            yield contour[:, 0] - 1, contour[:, 1] - 1
