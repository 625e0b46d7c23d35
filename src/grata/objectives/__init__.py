"""Self-supervised losses, one file each."""

from .activation import ACTIVATIONS, activate
from .agreement import view_agreement
from .branch import Branch, check_branch
from .consistency import consistency_loss
from .denoising import denoising_loss
from .entropy import ENTROPIES, entropy_loss
from .reconstruction import reconstruction_loss
from .rotation import ROTATION_VIEWS, rotation_loss
from .super_resolution import super_resolution_loss

__all__ = [
    "ACTIVATIONS",
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
