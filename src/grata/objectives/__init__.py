"""Self-supervised losses, one file each, and how well predictions of several views agree."""

from collections.abc import Callable

import torch

from .activation import ACTIVATIONS, activate
from .agreement import view_agreement
from .branch import Branch, check_branch
from .consistency import consistency_loss
from .denoising import denoising_loss
from .entropy import ENTROPIES, entropy_loss
from .reconstruction import reconstruction_loss
from .rotation import ROTATION_VIEWS, rotation_loss
from .super_resolution import super_resolution_loss

BRANCH_LOSSES: dict[str, Callable[[Branch, torch.Tensor, torch.Generator], torch.Tensor]] = {
    "reconstruction": reconstruction_loss,
    "rotation": rotation_loss,
    "denoising": denoising_loss,
    "super_resolution": super_resolution_loss,
}
"""Losses ``loss(branch, images, generator)`` that need an auxiliary branch, by the name of that branch."""

__all__ = [
    "ACTIVATIONS",
    "BRANCH_LOSSES",
    "ENTROPIES",
    "ROTATION_VIEWS",
    "Branch",
    "activate",
    "check_branch",
    "consistency_loss",
    "denoising_loss",
    "entropy_loss",
    "reconstruction_loss",
    "rotation_loss",
    "super_resolution_loss",
    "view_agreement",
]
