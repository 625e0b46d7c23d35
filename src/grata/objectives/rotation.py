"""Recognition of the flip or quarter turn that an image was turned by (Sun et al. 2020, with GraTa's six classes)."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ..errors import GrataError
from ..views import VIEWS
from .branch import Branch

__all__ = ["ROTATION_VIEWS", "rotation_loss"]

ROTATION_VIEWS = ("identity", "flip_w", "flip_h", "rot90", "rot180", "rot270")
"""The classes, in the order of the rotation branch's outputs."""


def rotation_loss(branch: Branch, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Cross-entropy of the rotation branch on views of ``x``, one drawn for every sample.

    Args:
        branch: runs an auxiliary branch.
        x: ``(B, C, H, W)``, square.
        generator: draws the classes, on the CPU.

    Raises:
        GrataError: the images are not square, so that a quarter turn would give itself away by its shape.
    """
    if x.shape[-2] != x.shape[-1]:
        raise GrataError(f"The rotation objective needs square images, these have {x.shape[-2]}×{x.shape[-1]} pixels.")
    classes = torch.randint(len(ROTATION_VIEWS), (len(x),), generator=generator)
    views = torch.stack([VIEWS[ROTATION_VIEWS[k]](sample) for k, sample in zip(classes.tolist(), x)])
    return F.cross_entropy(branch("rotation", views).float(), classes.to(x.device))
