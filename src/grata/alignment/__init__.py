"""How two gradients make one step: their cosine, and the learning rate that follows from it."""

from .cosine import cosine_similarity, gradient_norm
from .laws import LAWS, learning_rate_factor

__all__ = ["LAWS", "cosine_similarity", "gradient_norm", "learning_rate_factor"]
