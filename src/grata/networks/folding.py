"""ResUNet's decoder without gradients: the same function, with half of the memory traffic."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from ..normalization import channel_affine

if TYPE_CHECKING:
    from .resunet import ResUNet

__all__ = ["can_fold", "decode"]


def can_fold(network: ResUNet, y: torch.Tensor) -> bool:
    """Whether :func:`decode` takes this map: no gradient is wanted, its channels lie innermost, and no hook waits."""
    if torch.is_grad_enabled() or y.is_contiguous() or not y.is_contiguous(memory_format=torch.channels_last):
        return False
    passed_by = [network.up, *(module for block in network.decoder for module in (block, block.up))]
    return not any(module._forward_hooks or module._forward_pre_hooks for module in passed_by)


def decode(network: ResUNet, maps: list[torch.Tensor]) -> torch.Tensor:
    """Logits ``(B, out_channels, H, W)`` from the encoder's maps, equal to the plain decoder's up to rounding.

    A transposed convolution of 2×2 with stride 2 is a 1×1 convolution to four times the channels and a shuffle of
    pixels. So the batch normalization before it folds into its weights, once its statistics are known; and ReLU,
    shuffle and concatenation are one pass, written into the concatenated map. The last shuffle is done on the logits,
    which have the fewest channels.

    Args:
        network: whose weights are taken; its normalization layers as they are at present.
        maps: from :meth:`grata.networks.ResUNet.features`, ``channels_last``.
    """
    *skips, y = maps
    affine = None
    for block, skip in zip(network.decoder, reversed(skips)):
        up = _up(block.up, y, affine)
        batch, height, _, width, _, half = up.shape
        z = up.new_empty((batch, height, 2, width, 2, 2 * half))
        torch.clamp_min(up, 0, out=z[..., :half])
        z = z.view(batch, 2 * height, 2 * width, 2 * half)
        torch.clamp_min(block.skip(skip).permute(0, 2, 3, 1), 0, out=z[..., half:])
        y = z.permute(0, 3, 1, 2)
        affine = channel_affine(block.norm, y)
        y = block.norm(y) if affine is None else y
    up = _up(network.up, y, affine)
    batch, height, _, width, _, channels = up.shape
    # The order of pixels is the same to normalization and 1×1 convolution.
    unshuffled = up.permute(0, 1, 3, 2, 4, 5).reshape(batch, height, 4 * width, channels).permute(0, 3, 1, 2)
    logits = network.head(F.relu(network.norm(unshuffled), inplace=True))
    logits = logits.reshape(batch, -1, height, width, 2, 2).permute(0, 1, 2, 4, 3, 5)
    return logits.reshape(batch, -1, 2 * height, 2 * width)


def _up(layer: nn.ConvTranspose2d, y: torch.Tensor, affine: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
    """Transposed convolution of ``affine(y)`` as a view ``(B, H, 2, W, 2, C)``: at [h, a, w, b] pixel
    (2h + a, 2w + b).
    """
    # (a, b, out, in)
    weight = layer.weight.permute(2, 3, 1, 0)
    bias = layer.bias.expand(2, 2, -1)
    if affine is not None:
        scale, shift = affine
        bias = bias + weight @ shift
        weight = weight * scale
    channels, (batch, _, height, width) = weight.shape[2], y.shape
    up = F.conv2d(y, weight.reshape(4 * channels, -1, 1, 1), bias.reshape(-1))
    return up.permute(0, 2, 3, 1).reshape(batch, height, width, 2, 2, channels).permute(0, 1, 3, 2, 4, 5)
