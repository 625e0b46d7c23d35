"""How gradients become steps: their cosine, laws of the learning rate, optimizers, a mean teacher and a memory."""

from .cosine import cosine_similarity, gradient_norm
from .discrepancy import DiscrepancyRate
from .gradients import add_gradients, cloned, gradient_of, load_optimizer
from .laws import LAWS, learning_rate_factor
from .memory import MemoryBank
from .optimizer import MakeOptimizer, Stepper, make_optimizer
from .rates import RATES, CosineRate, Rate, StepSignals, make_rate
from .teacher import Teacher

__all__ = [
    "LAWS",
    "RATES",
    "CosineRate",
    "DiscrepancyRate",
    "MakeOptimizer",
    "MemoryBank",
    "Rate",
    "StepSignals",
    "Stepper",
    "Teacher",
    "add_gradients",
    "cloned",
    "cosine_similarity",
    "gradient_norm",
    "gradient_of",
    "learning_rate_factor",
    "load_optimizer",
    "make_optimizer",
    "make_rate",
]
