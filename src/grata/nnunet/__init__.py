"""Adaptation of a trained nnU-Net v2, between nnU-Net's own preprocessing and predictor."""

from .description import describe
from .model import TrainedModel, load_model
from .predictor import AdaptedPredictor
from .run import predict

__all__ = ["AdaptedPredictor", "TrainedModel", "describe", "load_model", "predict"]
