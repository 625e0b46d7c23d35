"""Size, centroid and spread of what is predicted, against those of a prior (TTAS, Bateson et al., MICCAI 2022)."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from .activation import activate

__all__ = ["class_weights", "moment_penalty", "predicted", "proportion_divergence", "soft_moments", "weighted_entropy"]

_TINY = 1e-10


def soft_moments(probabilities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Moments of every channel of ``(B, C, ...)`` in 2D or 3D, with gradients; each axis goes from 0 to 1.

    .. code-block:: text

        size      = mean_i p_i
        centroid  = Σ_i p_i·x_i / Σ_i p_i
        spread    = sqrt(Σ_i p_i·(x_i − centroid)² / Σ_i p_i)

    Returns:
        The size ``(B, C)``, the centroid and the spread ``(B, C, spatial dims)``, in the units of
        :class:`grata.prepared.Prepared`; the first of n voxels lies at 0.5/n.
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
        # the root has no finite slope at 0, the spread of a single voxel
        spreads.append((variance + _TINY).sqrt())
    size = volume / probabilities[0, 0].numel()
    return size, torch.stack(centroids, -1), torch.stack(spreads, -1)


def class_weights(sizes: torch.Tensor, activation: str) -> torch.Tensor:
    """Weights that are inversely proportional to the size of each class, with sum 1.

    Returns:
        ``softmax``: of every class, ``(C,)``; ``sigmoid``: of each channel's foreground and background, ``(C, 2)``.
    """
    parts = sizes if activation == "softmax" else torch.stack([sizes, 1 - sizes], -1)
    inverse = 1 / parts.clamp_min(_TINY)
    return inverse / inverse.sum(-1, keepdim=True)


def weighted_entropy(logits: torch.Tensor, weights: torch.Tensor, activation: str) -> torch.Tensor:
    """Entropy of the prediction ``(B, C, ...)``, each class' term with its own weight; mean over samples and voxels.

    ``softmax``: ``−Σ_c w_c·p_c·log p_c``; ``sigmoid``: ``−Σ_c [w_c1·p_c·log p_c + w_c2·(1 − p_c)·log(1 − p_c)]``.

    Args:
        logits: ``(B, C, ...)``.
        weights: of :func:`class_weights`.
        activation: ``sigmoid`` or ``softmax``.
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
    """Kullback-Leibler divergence of predicted class proportions from a prior, mean over samples.

    ``softmax``: ``Σ_c s_c·log(s_c/τ_c)``; ``sigmoid``: that of each channel's foreground and background, summed.

    Args:
        sizes: ``(B, C)``.
        prior: ``(C,)``.
        activation: ``sigmoid`` or ``softmax``.
    """
    divergence = sizes * ((sizes + _TINY).log() - (prior + _TINY).log())
    if activation == "sigmoid":
        rest, rest_prior = 1 - sizes, 1 - prior
        divergence = divergence + rest * ((rest + _TINY).log() - (rest_prior + _TINY).log())
    return divergence.sum(1).mean()


def moment_penalty(moments: torch.Tensor, prior: torch.Tensor, there: torch.Tensor, margin: float) -> torch.Tensor:
    """Squared distance of moments from the interval ``prior·(1 ± margin)``, summed over classes and axes.

    Args:
        moments: ``(B, C, spatial dims)``.
        prior: ``(C, spatial dims)``.
        there: ``(B, C)`` of 0 and 1: whether there is a structure whose moments mean anything.
        margin: relative, at least 0.

    Returns:
        The mean over samples.
    """
    above = F.relu(moments - prior * (1 + margin)).square()
    below = F.relu(prior * (1 - margin) - moments).square()
    return ((above + below) * there[..., None]).sum([1, 2]).mean()


def predicted(logits: torch.Tensor, activation: str, least: int) -> torch.Tensor:
    """Whether more than ``least`` voxels of each channel are predicted to be foreground, ``(B, C)`` of 0 and 1."""
    if activation == "softmax":
        mask = F.one_hot(logits.argmax(1), logits.shape[1]).movedim(-1, 1)
    else:
        mask = activate(logits, activation) > 0.5
    return (mask.flatten(2).sum(2) > least).to(logits)
