"""Recognition of the flip or quarter turn that an image was turned by (Sun et al. 2020, with GraTa's six classes)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from ..errors import GrataError
from ..views import View, resolve_views
from .branch import Branch

__all__ = ["ROTATION_VIEWS", "rotation_loss"]

ROTATION_VIEWS = ("identity", "flip_w", "flip_h", "rot90", "rot180", "rot270")
"""The classes, in the order of the rotation branch's outputs."""


def rotation_loss(
    branch: Branch, x: torch.Tensor, generator: torch.Generator, views: Sequence[str] = ROTATION_VIEWS
) -> torch.Tensor:
    """Cross-entropy of the rotation branch on views of ``x``, one drawn for every sample.

    Args:
        branch: runs an auxiliary branch.
        x: ``(B, C, H, W)`` or ``(B, C, D, H, W)``; the plane of a quarter turn is square.
        generator: draws the classes, on the CPU.
        views: names of the classes, in the order of the branch's outputs.

    Raises:
        GrataError: a view that is not known or needs a 3D image, or an image whose plane is not square, so that a
            quarter turn would give itself away by its shape.
    """
    turns = resolve_views(views, x.shape[2:])
    for view in turns:
        _check_square(view, x)
    classes = torch.randint(len(turns), (len(x),), generator=generator)
    turned = torch.stack([turns[k](sample) for k, sample in zip(classes.tolist(), x)])
    return F.cross_entropy(branch("rotation", turned).float(), classes.to(x.device))


def _check_square(view: View, x: torch.Tensor) -> None:
    first, second = (x.shape[axis] for axis in view.plane)
    if view.quarter_turn and first != second:
        size = "×".join(map(str, x.shape[2:]))
        needed, unit = ("square images", "pixels") if x.ndim == 4 else (f"for {view.name} a square plane", "voxels")
        raise GrataError(f"The rotation objective needs {needed}, these have {size} {unit}.")
