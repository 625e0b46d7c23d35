"""What a dense prediction says: its probabilities, distributions and confidence, and the agreement of several."""

from .activation import ACTIVATIONS, activate, check_activation
from .agreement import soft_dice, view_agreement
from .confidence import NOTHING_KEPT, NothingKept, kept_mean, kept_share, maximal_entropy, voxel_entropy
from .distributions import kl_divergence, log_distributions, symmetric_divergence
from .probabilities import are_probabilities, logits_of

# The function `confidence` of `probabilities` would hide the module of that name.
__all__ = [
    "ACTIVATIONS",
    "NOTHING_KEPT",
    "NothingKept",
    "activate",
    "are_probabilities",
    "check_activation",
    "kept_mean",
    "kept_share",
    "kl_divergence",
    "log_distributions",
    "logits_of",
    "maximal_entropy",
    "soft_dice",
    "symmetric_divergence",
    "view_agreement",
    "voxel_entropy",
]
