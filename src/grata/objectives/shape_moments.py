"""Penalties on the size, centroid and spread of a prediction against a prior (TTAS, Bateson et al., MICCAI 2022)."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ..predictions import activate

__all__ = ["class_weights", "moment_penalty", "predicted", "proportion_divergence", "soft_moments", "weighted_entropy"]

_TINY = 1e-10


def soft_moments(probabilities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the size, the centroid and the spread of every channel of a prediction.

    .. code-block:: text

        size      = mean_i p_i
        centroid  = Σ_i p_i·x_i / Σ_i p_i
        spread    = sqrt(Σ_i p_i·(x_i − centroid)² / Σ_i p_i)

    The position ``x_i`` goes from 0 to 1 along each axis: the first of n voxels lies at 0.5/n. All three are
    differentiable, also for channels that are zero everywhere.

    Args:
        probabilities: probabilities ``(B, C, H, W)`` or ``(B, C, D, H, W)``.

    Returns:
        The size ``(B, C)``, 0 to 1, the centroid and the spread, both ``(B, C, spatial dims)``, in the units of
        :class:`grata.methods.Prepared`.
    """
    axes = range(2, probabilities.ndim)
    volume = probabilities.sum(list(axes))
    centroids, spreads = [], []
    for axis in axes:
        n = probabilities.shape[axis]
        position = (torch.arange(n, dtype=probabilities.dtype, device=probabilities.device) + 0.5) / n
        profile = probabilities.sum([other for other in axes if other != axis]) / (volume[..., None] + _TINY)
        centroid = profile @ position
        centroids.append(centroid)
        variance = (profile * (position - centroid[..., None]).square()).sum(-1)
        # the square root has no finite slope at 0, which is the variance of a single voxel
        spreads.append((variance + _TINY).sqrt())
    size = volume / probabilities[0, 0].numel()
    return size, torch.stack(centroids, -1), torch.stack(spreads, -1)


def class_weights(sizes: torch.Tensor, activation: str) -> torch.Tensor:
    """Return class weights ``w_c = (1/s_c) / Σ_k (1/s_k)``, inversely proportional to the sizes.

    Args:
        sizes: share of the voxels of each channel, ``(C,)``, 0 to 1.
        activation: ``softmax``: the channels are the classes; ``sigmoid``: foreground and background of each channel
            are two classes.

    Returns:
        Weights that sum to 1 over the classes: ``(C,)`` for softmax, ``(C, 2)`` for sigmoid (foreground, background).
    """
    parts = sizes if activation == "softmax" else torch.stack([sizes, 1 - sizes], -1)
    inverse = 1 / parts.clamp_min(_TINY)
    return inverse / inverse.sum(-1, keepdim=True)


def weighted_entropy(logits: torch.Tensor, weights: torch.Tensor, activation: str) -> torch.Tensor:
    """Return the entropy of a prediction with a weight for each class, mean over samples and voxels.

    .. code-block:: text

        softmax:  −Σ_c w_c·p_c·log p_c
        sigmoid:  −Σ_c [w_c1·p_c·log p_c + w_c2·(1 − p_c)·log(1 − p_c)]

    Args:
        logits: logits ``(B, C, ...)``.
        weights: weights from :func:`class_weights`, ``(C,)`` for softmax and ``(C, 2)`` for sigmoid.
        activation: ``sigmoid`` or ``softmax``.

    Returns:
        The loss in nats, a scalar of at least 0.
    """
    shape = [1, -1] + [1] * (logits.ndim - 2)
    if activation == "softmax":
        log_p = logits.log_softmax(1)
        return -(weights.view(shape) * log_p.exp() * log_p).sum(1).mean()
    foreground, background = (weights[:, part].reshape(shape) for part in (0, 1))
    terms = foreground * logits.sigmoid() * F.logsigmoid(logits)
    terms = terms + background * (-logits).sigmoid() * F.logsigmoid(-logits)
    return -terms.sum(1).mean()


def proportion_divergence(sizes: torch.Tensor, prior: torch.Tensor, activation: str) -> torch.Tensor:
    """Return the Kullback-Leibler divergence of predicted class proportions from a prior, mean over samples.

    .. code-block:: text

        softmax:  Σ_c s_c·log(s_c/τ_c)
        sigmoid:  Σ_c [s_c·log(s_c/τ_c) + (1 − s_c)·log((1 − s_c)/(1 − τ_c))]

    Args:
        sizes: predicted sizes ``s``, ``(B, C)``, 0 to 1.
        prior: expected sizes ``τ``, ``(C,)``, 0 to 1.
        activation: ``sigmoid`` or ``softmax``.

    Returns:
        The loss in nats, a scalar; 0 where the sizes equal the prior.
    """
    divergence = sizes * ((sizes + _TINY).log() - (prior + _TINY).log())
    if activation == "sigmoid":
        rest, rest_prior = 1 - sizes, 1 - prior
        divergence = divergence + rest * ((rest + _TINY).log() - (rest_prior + _TINY).log())
    return divergence.sum(1).mean()


def moment_penalty(moments: torch.Tensor, prior: torch.Tensor, there: torch.Tensor, margin: float) -> torch.Tensor:
    """Return the squared distance of moments from an interval about a prior, mean over samples.

    .. code-block:: text

        Σ_c,a there_c·[max(0, m_ca − μ_ca·(1 + margin))² + max(0, μ_ca·(1 − margin) − m_ca)²]

    Args:
        moments: centroids or spreads ``m``, ``(B, C, spatial dims)``.
        prior: expected moments ``μ``, ``(C, spatial dims)``.
        there: 1 where a structure is predicted, so that its moments mean something, else 0; ``(B, C)``.
        margin: half of the interval's width as a share of the prior, at least 0.

    Returns:
        The penalty, a scalar of at least 0.
    """
    above = F.relu(moments - prior * (1 + margin)).square()
    below = F.relu(prior * (1 - margin) - moments).square()
    return ((above + below) * there[..., None]).sum([1, 2]).mean()


def predicted(logits: torch.Tensor, activation: str, least: int) -> torch.Tensor:
    """Return 1 for every channel with more than ``least`` voxels of predicted foreground, else 0.

    Args:
        logits: logits ``(B, C, ...)``.
        activation: ``softmax``: a voxel belongs to its most probable class; ``sigmoid``: to each channel above 0.5.
        least: number of voxels that must be exceeded.

    Returns:
        Zeros and ones ``(B, C)`` in the dtype of ``logits``.
    """
    if activation == "softmax":
        mask = F.one_hot(logits.argmax(1), logits.shape[1]).movedim(-1, 1)
    else:
        mask = activate(logits, activation) > 0.5
    return (mask.flatten(2).sum(2) > least).to(logits)
