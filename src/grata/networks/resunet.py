"""ResUNet: the U-Net with a ResNet encoder from GraTa's experiments (AAAI 2025)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets import resnet
from torch import nn
from torch.nn import functional as F

from ..errors import GrataError
from .branches import find_branch, make_branches
from .folding import can_fold, decode
from .sides import check_sides

__all__ = ["ResUNet"]

_DEPTHS = (18, 34, 50, 101, 152)
_WIDTH = 256
_HEAD_WIDTH = 32


class ResUNet(nn.Module):
    """U-Net with a ResNet encoder, the network of GraTa's experiments (with depth 34 there).

    Encoder: a ResNet without its classifier, with features at 1/2 (after the first ReLU), 1/4, 1/8, 1/16 and 1/32.
    Decoder: four blocks of 256 channels, ``BN(ReLU(concat(transposed convolution of the deeper map, 1×1 convolution of
    the skip)))``, then a transposed convolution to 32 channels, BN, ReLU and the 1×1 head. The keys of ``encoder`` are
    those of torchvision's ResNet.

    Args:
        out_channels: number of segmentation channels.
        in_channels: number of channels of the image.
        depth: depth of the ResNet: 18, 34, 50, 101 or 152.
        branches: names of auxiliary branches on the deepest feature, see :data:`grata.networks.BRANCHES`. They run in
            :meth:`branch`, not in the forward.

    Raises:
        GrataError: the depth or a branch is not known.

    Example::

        network = ResUNet(out_channels=2, depth=34)
        logits = network(torch.rand(1, 3, 512, 512))  # (1, 2, 512, 512)
    """

    def __init__(
        self, out_channels: int = 2, in_channels: int = 3, depth: int = 34, branches: Sequence[str] = ()
    ) -> None:
        super().__init__()
        if depth not in _DEPTHS:
            raise GrataError(f"must be one of {', '.join(map(str, _DEPTHS))}, got {depth!r}.", key="network_def#depth")
        self.depth = depth
        # The skip connections of torchvision's ResNet and of the paper are projections: shortcut type B.
        self.encoder = getattr(resnet, f"resnet{depth}")(
            spatial_dims=2,
            n_input_channels=in_channels,
            conv1_t_size=7,
            conv1_t_stride=2,
            shortcut_type="B",
            bias_downsample=False,
            feed_forward=False,
        )
        expansion = 1 if depth < 50 else 4
        skips = [256 * expansion, 128 * expansion, 64 * expansion, 64]
        deepest = 512 * expansion
        self.decoder = nn.ModuleList(
            DecoderBlock(channels, skip, _WIDTH) for channels, skip in zip([deepest, _WIDTH, _WIDTH, _WIDTH], skips)
        )
        self.up = nn.ConvTranspose2d(_WIDTH, _HEAD_WIDTH, 2, stride=2)
        self.norm = nn.BatchNorm2d(_HEAD_WIDTH)
        self.head = nn.Conv2d(_HEAD_WIDTH, out_channels, 1)
        self.branches = make_branches(branches, deepest, in_channels)

    def features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the encoder's features of ``x`` ``(B, C, H, W)``, from 1/2 to 1/32 of its resolution.

        Raises:
            GrataError: a side is not a multiple of 32.
        """
        if not torch.jit.is_scripting():
            check_sides(x, "ResUNet")
        encoder = self.encoder
        first = encoder.act(encoder.bn1(encoder.conv1(x)))
        maps = [first, encoder.layer1(encoder.maxpool(first))]
        # TorchScript cannot loop over a tuple of layers.
        maps.append(encoder.layer2(maps[-1]))
        maps.append(encoder.layer3(maps[-1]))
        maps.append(encoder.layer4(maps[-1]))
        return maps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images ``(B, in_channels, H, W)``, H and W multiples of 32, to logits ``(B, out_channels, H, W)``."""
        maps = self.features(x)
        # Two conditions: TorchScript leaves out only the block of a plain is_scripting().
        if not torch.jit.is_scripting():  # noqa: SIM102
            if can_fold(self, maps[-1]):
                return decode(self, maps)
        y = maps.pop()
        for block in self.decoder:
            y = block(y, maps.pop())
        return self.head(F.relu(self.norm(self.up(y)), inplace=True))

    def branch(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Return the output of an auxiliary branch: the logits of an image, or the logits of the rotation.

        Args:
            name: name of the branch.
            x: input of the branch ``(B, C, H, W)``: the image, a noisy one, one of half the size, or a view.

        Raises:
            GrataError: the network does not have this branch.
        """
        return find_branch(self.branches, name)(self.features(x)[-1])


class DecoderBlock(nn.Module):
    """Decoder block ``BN(ReLU(concat(up(y), project(skip))))``, with half of the channels from each input.

    Args:
        in_channels: number of channels of the deeper map.
        skip_channels: number of channels of the encoder's map at twice the resolution.
        out_channels: number of channels of the result.
    """

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, out_channels // 2, 2, stride=2)
        self.skip = nn.Conv2d(skip_channels, out_channels // 2, 1)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, y: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """Map ``(B, in_channels, H, W)`` and ``(B, skip_channels, 2H, 2W)`` to ``(B, out_channels, 2H, 2W)``."""
        return self.norm(F.relu(torch.cat([self.up(y), self.skip(skip)], 1), inplace=True))
