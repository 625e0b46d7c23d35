"""Diagonal Fisher information: how much predictions on the source set depend on each parameter (EATA, ICML 2022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import GrataError

__all__ = ["pseudo_label_loss", "squared_gradient"]


def pseudo_label_loss(logits: torch.Tensor, activation: str) -> torch.Tensor:
    """Return the cross-entropy of a prediction to its own hard labels.

    Args:
        logits: logits ``(B, C, ...)``.
        activation: ``softmax``: the labels are the most probable classes, and the mean is taken over pixels;
            ``sigmoid``: the labels are the channels above 0.5, and the mean is taken over pixels and channels.
    """
    if activation == "softmax":
        return F.cross_entropy(logits, logits.detach().argmax(1))
    return F.binary_cross_entropy_with_logits(logits, (logits.detach() > 0).to(logits))


def squared_gradient(
    forward: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    parameters: Mapping[str, nn.Parameter],
    activation: str,
) -> dict[str, torch.Tensor]:
    """Return one image's part of the Fisher information: the squared gradient of :func:`pseudo_label_loss`.

    Args:
        forward: function from images to logits; the caller sets the batch statistics.
        images: windows of one image ``(N, C, ...)``, which form one batch.
        parameters: parameters that require gradients, by name.
        activation: ``softmax`` or ``sigmoid``.

    Returns:
        Squared gradients on the CPU by name, without parameters that the prediction does not depend on.

    Raises:
        GrataError: the gradient is not finite.
    """
    loss = pseudo_label_loss(forward(images), activation)
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    squares = {name: g.detach().square().cpu() for name, g in zip(parameters, gradients) if g is not None}
    if not all(torch.isfinite(square).all() for square in squares.values()):
        raise GrataError("The gradient of the prediction is not finite. Look at the image's intensities.")
    return squares
