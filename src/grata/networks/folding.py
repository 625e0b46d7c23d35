"""ResUNet's decoder without gradients: the same function with half of the memory traffic."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, cast

import torch
from torch import nn
from torch.nn import functional as F

from ..normalization import channel_affine

__all__ = ["can_fold", "decode"]


class _Block(Protocol):
    """A block of :class:`grata.networks.ResUNet`'s decoder."""

    up: nn.ConvTranspose2d
    skip: nn.Conv2d
    norm: nn.BatchNorm2d


class _Network(Protocol):
    """The decoder of a :class:`grata.networks.ResUNet`."""

    decoder: nn.ModuleList
    up: nn.ConvTranspose2d
    norm: nn.BatchNorm2d
    head: nn.Conv2d


def can_fold(network: _Network, y: torch.Tensor) -> bool:
    """Return whether :func:`decode` can run: no gradient is needed, the channels are innermost, and no hook is set."""
    if torch.is_grad_enabled() or y.is_contiguous() or not y.is_contiguous(memory_format=torch.channels_last):
        return False
    skipped = [network.up, *(module for block in network.decoder for module in (block, cast(_Block, block).up))]
    return not any(module._forward_hooks or module._forward_pre_hooks for module in skipped)


def decode(network: _Network, maps: list[torch.Tensor]) -> torch.Tensor:
    """Return logits ``(B, out_channels, H, W)`` from the encoder's maps, equal to the plain decoder's up to rounding.

    A 2×2 transposed convolution with stride 2 is a 1×1 convolution to four times the channels, then a pixel shuffle.
    The batch normalization before it therefore folds into its weights once its statistics are known, and ReLU, shuffle
    and concatenation become one pass that writes into the concatenated map. The last shuffle is applied to the logits,
    which have the fewest channels.

    Args:
        network: network whose weights and normalization layers are used.
        maps: result of :meth:`grata.networks.ResUNet.features`, in ``channels_last``.
    """
    *skips, y = maps
    affine = None
    for block, skip in zip(_blocks(network), reversed(skips)):
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
    # Normalization and 1×1 convolution do not depend on the order of pixels.
    unshuffled = up.permute(0, 1, 3, 2, 4, 5).reshape(batch, height, 4 * width, channels).permute(0, 3, 1, 2)
    logits = network.head(F.relu(network.norm(unshuffled), inplace=True))
    logits = logits.reshape(batch, -1, height, width, 2, 2).permute(0, 1, 2, 4, 3, 5)
    return logits.reshape(batch, -1, 2 * height, 2 * width)


def _blocks(network: _Network) -> Iterable[_Block]:
    return cast("Iterable[_Block]", network.decoder)


def _up(layer: nn.ConvTranspose2d, y: torch.Tensor, affine: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
    """Return the transposed convolution of ``affine(y)`` as a view ``(B, H, 2, W, 2, C)``.

    Element [h, a, w, b] of a map is its pixel (2h + a, 2w + b).
    """
    assert layer.bias is not None, "every layer of ResUNet's decoder has a bias"
    # The axes are (a, b, out, in).
    weight = layer.weight.permute(2, 3, 1, 0)
    bias = layer.bias.expand(2, 2, -1)
    if affine is not None:
        scale, shift = affine
        bias = bias + weight @ shift
        weight = weight * scale
    channels, (batch, _, height, width) = weight.shape[2], y.shape
    up = F.conv2d(y, weight.reshape(4 * channels, -1, 1, 1), bias.reshape(-1))
    return up.permute(0, 2, 3, 1).reshape(batch, height, width, 2, 2, channels).permute(0, 1, 3, 2, 4, 5)
