"""Adapt a trained nnU-Net v2: its own preprocessing and predictor, with a method in between."""

from .description import describe
from .model import TrainedModel, load_model
from .predictor import AdaptedPredictor
from .run import predict

__all__ = ["AdaptedPredictor", "TrainedModel", "describe", "load_model", "predict"]
