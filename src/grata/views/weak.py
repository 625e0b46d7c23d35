"""Flips and quarter turns of images ``(B, C, H, W)`` or ``(B, C, D, H, W)``, each with an exact inverse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import GrataError

__all__ = ["ROTATION_VIEWS", "VIEWS", "View", "default_views", "resolve_views"]


@dataclass(frozen=True)
class View:
    """A view and its inverse: ``view.inverse(view(x))`` equals ``x`` to the last bit.

    The flips come first, then the turns.

    Args:
        name: name in configurations.
        flips: axes to mirror, counted from the end (-1 is W).
        turns: number of quarter turns in the plane, counter-clockwise.
        plane: the two axes of the turns, counted from the end.

    Example:
        >>> view, x = VIEWS["rot90"], torch.rand(1, 3, 4, 6)
        >>> view(x).shape
        torch.Size([1, 3, 6, 4])
        >>> torch.equal(view.inverse(view(x)), x)
        True
    """

    name: str
    flips: tuple[int, ...] = ()
    turns: int = 0
    plane: tuple[int, int] = (-2, -1)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the view of ``x``; a quarter turn exchanges the sizes of the two axes of its plane."""
        if self.flips:
            x = torch.flip(x, self.flips)
        return torch.rot90(x, self.turns, self.plane) if self.turns else x

    def inverse(self, x: torch.Tensor) -> torch.Tensor:
        """Return a prediction for the view, mapped back onto the grid of the original image."""
        if self.turns:
            x = torch.rot90(x, -self.turns, self.plane)
        return torch.flip(x, self.flips) if self.flips else x

    @property
    def spatial_dims(self) -> int:
        """Least number of spatial dimensions that an image needs for this view."""
        axes = self.flips + (self.plane if self.turns else ())
        return max((-axis for axis in axes), default=0)

    @property
    def quarter_turn(self) -> bool:
        """Whether the view exchanges two axes."""
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
"""All weak views by name. ``rot90`` turns in the H,W plane, ``rot90_dh`` in D,H and ``rot90_dw`` in D,W."""

ROTATION_VIEWS = ("identity", "flip_w", "flip_h", "rot90", "rot180", "rot270")
"""GraTa's six classes, in the order of the outputs of the rotation branch."""


def default_views(spatial_shape: Sequence[int]) -> tuple[View, ...]:
    """Return the views that are used when none are named.

    All of them keep the shape that the network sees:

    - 2D, square: identity, both flips, rotations by 90°, 180° and 270° (GraTa, AAAI 2025).
    - 2D, not square: the same without the rotations by 90° and 270°.
    - 3D: identity, the three flips, and rotations in the H,W plane by the same rule. The depth axis is not turned into
      another one, because slices are often thicker than pixels.
    - 1D: identity and flip.

    Args:
        spatial_shape: size of the image without batch and channels, ``(H, W)`` or ``(D, H, W)``.
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
    """Return the views with these names.

    Args:
        names: names from :data:`VIEWS`, or a single one; None: the :func:`default_views`.
        spatial_shape: size of the image without batch and channels, ``(H, W)`` or ``(D, H, W)``.

    Raises:
        GrataError: a name is not known, there is no name, or a view needs more spatial dimensions than the image has.
    """
    if names is None:
        return default_views(spatial_shape)
    if isinstance(names, str):
        names = [names]
    if not isinstance(names, Sequence):
        raise GrataError(f"must be a list of names of weak views, got {names!r}.", key="views")
    if not names:
        raise GrataError("is empty. Name at least one weak view, for example identity.", key="views")
    views = []
    for name in names:
        if not isinstance(name, str) or name not in VIEWS:
            raise GrataError(f"there is no weak view {name!r}; there are {', '.join(VIEWS)}.", key="views")
        view = VIEWS[name]
        if view.spatial_dims > len(spatial_shape):
            raise GrataError(
                f"{name} needs a {view.spatial_dims}D image, and this one is {len(spatial_shape)}D. Leave it out.",
                key="views",
            )
        views.append(view)
    return tuple(views)
