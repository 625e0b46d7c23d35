"""How two gradients make one step: their cosine, and the learning rate that follows from it."""

from .cosine import cosine_similarity, gradient_norm
from .discrepancy import DiscrepancyRate
from .laws import LAWS, learning_rate_factor
from .rates import RATES, CosineRate, Rate, StepSignals, make_rate

__all__ = [
    "LAWS",
    "RATES",
    "CosineRate",
    "DiscrepancyRate",
    "Rate",
    "StepSignals",
    "cosine_similarity",
    "gradient_norm",
    "learning_rate_factor",
    "make_rate",
]
