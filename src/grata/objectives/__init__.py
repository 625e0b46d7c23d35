"""Self-supervised losses, one file each."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from .._moved import moved
from ..views import ROTATION_VIEWS
from .branch import Branch, check_branch
from .consistency import consistency_loss
from .denoising import denoising_loss
from .entropy import ENTROPIES, entropy_loss
from .reconstruction import reconstruction_loss
from .rotation import rotation_loss
from .super_resolution import super_resolution_loss

if TYPE_CHECKING:
    from ..predictions import ACTIVATIONS as ACTIVATIONS
    from ..predictions import activate as activate
    from ..predictions import view_agreement as view_agreement
else:
    __getattr__ = moved(__name__)

BRANCH_LOSSES: dict[str, Callable[[Branch, torch.Tensor, torch.Generator], torch.Tensor]] = {
    "reconstruction": reconstruction_loss,
    "rotation": rotation_loss,
    "denoising": denoising_loss,
    "super_resolution": super_resolution_loss,
}
"""Losses ``loss(branch, images, generator)`` that need an auxiliary branch, by the name of that branch."""

__all__ = [
    "BRANCH_LOSSES",
    "ENTROPIES",
    "ROTATION_VIEWS",
    "Branch",
    "check_branch",
    "consistency_loss",
    "denoising_loss",
    "entropy_loss",
    "reconstruction_loss",
    "rotation_loss",
    "super_resolution_loss",
]
