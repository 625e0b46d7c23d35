"""Former place of the cosine and the laws of the learning rate, which are in :mod:`grata.optimization`."""

from ._moved import moved

_NAMES = (
    *("LAWS", "RATES", "CosineRate", "DiscrepancyRate", "Rate", "StepSignals"),
    *("cosine_similarity", "gradient_norm", "learning_rate_factor", "make_rate"),
)

__getattr__ = moved(__name__, dict.fromkeys(_NAMES, "grata.optimization"))
