"""TENT: test entropy minimization (ICLR 2021)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..alignment import gradient_norm
from ..objectives import entropy_loss
from .base import StepRecord
from .gradient import SKIPPED, GradientMethod, non_finite

__all__ = ["Tent", "TentRecord"]


@dataclasses.dataclass(frozen=True)
class TentRecord(StepRecord):
    """One step of entropy minimization.

    Attributes:
        auxiliary_loss: entropy of the prediction before the step.
        auxiliary_gradient_norm: Euclidean norm of its gradient over all adapted parameters.
        learning_rate: of the step; 0 when skipped.
    """

    auxiliary_loss: float = math.nan
    auxiliary_gradient_norm: float = math.nan
    learning_rate: float = 0.0


class Tent(GradientMethod):
    """One optimizer step on the mean entropy of the prediction (TENT, Wang et al., ICLR 2021).

    Batch statistics, affine parameters of the normalization layers, online. The prediction is made after the step; the
    authors' code predicts with the forward that gave the gradient, one step earlier.

    Args:
        network: the source network; it needs normalization layers with affine parameters.
        activation: ``sigmoid`` (multi-label) or ``softmax`` (multi-class).
        optimizer: name of a class of ``torch.optim``, or a callable that makes one of a list of ``(name, parameter)``.
        lr: learning rate, for an optimizer that is named.
        seed: of the method's own random generator, which only the choice of windows draws from.
        optimizer_options: further arguments of a named optimizer.
        entropy: None: Shannon's, of each channel for sigmoid (``binary``), over the classes for softmax; or ``plogp``.
        batch_statistics: weight of the batch's statistics in batch normalization, 1 (default) to 0 (the source's).
        episodic: back to the source network for every case, instead of online.
        autocast: ``bfloat16`` or ``float16`` for the forwards; None: as the surrounding ``torch.autocast`` says.
        output: key or index of the logits, for a network that returns a dict, list or tuple.

    Raises:
        GrataError: a setting is out of range, or the network has nothing to adapt.
    """

    name = "tent"
    summary = "one step of entropy minimization on each batch"
    changes = "affine parameters of normalization layers, batch normalization statistics"

    def __init__(
        self,
        network: nn.Module,
        activation: str = "sigmoid",
        optimizer: str | Callable[[list[tuple[str, nn.Parameter]]], torch.optim.Optimizer] = "Adam",
        lr: float = 1e-3,
        seed: int = 0,
        optimizer_options: Mapping[str, Any] | None = None,
        entropy: str | None = None,
        batch_statistics: float = 1.0,
        episodic: bool = False,
        autocast: str | None = None,
        output: str | int | None = None,
    ) -> None:
        entropy = ("binary" if activation == "sigmoid" else "plogp") if entropy is None else entropy
        super().__init__(
            network,
            activation=activation,
            optimizer=optimizer,
            lr=lr,
            seed=seed,
            optimizer_options=optimizer_options,
            entropy=entropy,
            batch_statistics=batch_statistics,
            episodic=episodic,
            autocast=autocast,
            output=output,
        )

    def _adapt(self, images: torch.Tensor) -> TentRecord:
        before = self._copy()
        loss, gradient = self._loss_and_gradient(
            images, lambda x: entropy_loss(self._logits(x), self.activation, self.entropy)
        )
        record = TentRecord(auxiliary_loss=loss, auxiliary_gradient_norm=gradient_norm(gradient))
        if flags := non_finite("auxiliary", record.auxiliary_loss, record.auxiliary_gradient_norm):
            return dataclasses.replace(record, flags=flags)
        learning_rate = self._optimizer_step(gradient, 1.0)
        if learning_rate is None:
            self._write(before)
            return dataclasses.replace(record, flags=("non_finite_parameters", SKIPPED))
        return dataclasses.replace(record, learning_rate=learning_rate)
