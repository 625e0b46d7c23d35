"""Flips and quarter turns of images of shape ``(B, C, H, W)`` or ``(B, C, D, H, W)``, with exact inverses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import GrataError

__all__ = ["VIEWS", "View", "default_views", "resolve_views"]


@dataclass(frozen=True)
class View:
    """A view ``v`` and its inverse: ``view.inverse(view(x))`` equals ``x`` to the last bit.

    Args:
        name: how configs call it.
        flips: axes that are mirrored, counted from the end (-1 is W).
        turns: quarter turns in the plane, counter-clockwise.
        plane: the two axes that the turns take place in.
    """

    name: str
    flips: tuple[int, ...] = ()
    turns: int = 0
    plane: tuple[int, int] = (-2, -1)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The view of ``x``; a quarter turn exchanges the sizes of its plane's axes."""
        if self.flips:
            x = torch.flip(x, self.flips)
        return torch.rot90(x, self.turns, self.plane) if self.turns else x

    def inverse(self, x: torch.Tensor) -> torch.Tensor:
        """Map a prediction made on the view back onto the original image's grid."""
        if self.turns:
            x = torch.rot90(x, -self.turns, self.plane)
        return torch.flip(x, self.flips) if self.flips else x

    @property
    def spatial_dims(self) -> int:
        """The least number of spatial dimensions an image needs for this view."""
        axes = self.flips + (self.plane if self.turns else ())
        return max((-axis for axis in axes), default=0)

    @property
    def quarter_turn(self) -> bool:
        """Whether two axes change places."""
        return self.turns % 2 == 1


_PLANES = {"": (-2, -1), "_dh": (-3, -2), "_dw": (-3, -1)}

VIEWS: dict[str, View] = {
    view.name: view
    for view in (
        View("identity"),
        View("flip_w", flips=(-1,)),
        View("flip_h", flips=(-2,)),
        View("flip_d", flips=(-3,)),
        View("flip_dhw", flips=(-3, -2, -1)),
        *(
            View(f"rot{90 * turns}{suffix}", turns=turns, plane=plane)
            for suffix, plane in _PLANES.items()
            for turns in (1, 2, 3)
        ),
    )
}
"""All weak views by name. ``rot90`` turns in the H,W plane, ``rot90_dh`` and ``rot90_dw`` in those of the depth axis."""


def default_views(spatial_shape: Sequence[int]) -> tuple[View, ...]:
    """The views used when none are named.

    2D, square: identity, both flips, rotations by 90°, 180° and 270° (GraTa, AAAI 2025). 2D, not square: without the
    quarter turns, which would change the shape that the network sees. 3D: identity, the three flips, and the rotations
    in the H,W plane by the same rule; the depth axis is never turned into the plane, because slices are often thicker
    than pixels. 1D: identity and flip.
    """
    if len(spatial_shape) == 1:
        return VIEWS["identity"], VIEWS["flip_w"]
    height, width = spatial_shape[-2:]
    names = ["identity", "flip_w", "flip_h"]
    if len(spatial_shape) == 3:
        names.append("flip_d")
    names += ["rot90", "rot180", "rot270"] if height == width else ["rot180"]
    return tuple(VIEWS[name] for name in names)


def resolve_views(names: Sequence[str] | None, spatial_shape: Sequence[int]) -> tuple[View, ...]:
    """The views called ``names``, or the default ones for an image of ``spatial_shape``.

    Raises:
        GrataError: unknown name, no name at all, or a view that needs more spatial dimensions than the image has.
    """
    if names is None:
        return default_views(spatial_shape)
    if isinstance(names, str):
        names = [names]
    if not isinstance(names, Sequence):
        raise GrataError(f"must be a list of names of weak views, got {names!r}.", key="views")
    if not names:
        raise GrataError("views is empty: name at least one weak view, for example identity.")
    views = []
    for name in names:
        if not isinstance(name, str) or name not in VIEWS:
            raise GrataError(f"there is no weak view named {name!r}; the names are {', '.join(VIEWS)}.", key="views")
        if VIEWS[name].spatial_dims > len(spatial_shape):
            raise GrataError(
                f"{name} needs a 3D image, but this one has {len(spatial_shape)} spatial axes.", key="views"
            )
        views.append(VIEWS[name])
    return tuple(views)
