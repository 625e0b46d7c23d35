"""Self-supervised losses, one file each."""

from .activation import ACTIVATIONS, activate
from .consistency import consistency_loss
from .entropy import ENTROPIES, entropy_loss

__all__ = ["ACTIVATIONS", "ENTROPIES", "activate", "consistency_loss", "entropy_loss"]
