"""Auxiliary branches that learn from an image alone, on the deepest feature of an encoder (GraTa's ablation)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import GrataError
from ..views import ROTATION_VIEWS

__all__ = ["BRANCHES", "find_branch", "make_branches"]

_WIDTHS = (256, 128, 64, 32)


class UpBlock(nn.Module):
    """Block of bilinear ×2 interpolation, 1×1 convolution, ReLU and batch normalization."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, out_channels, 2H, 2W)``."""
        # A 1×1 convolution commutes with interpolation and costs a quarter before it.
        return self.norm(F.relu(_double(self.conv(x))))


class ImageBranch(nn.Module):
    """Branch from the deepest feature (1/32) to an image of the input's size: reconstruction, denoising."""

    def __init__(self, in_channels: int, image_channels: int) -> None:
        super().__init__()
        self.blocks = _blocks(in_channels)
        self.head = nn.Conv2d(_WIDTHS[-1], image_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, C, H, W)`` to logits of the image ``(B, image_channels, 32H, 32W)``."""
        return _double(self.head(self.blocks(x)))


class SuperResolutionBranch(nn.Module):
    """Branch from the deepest feature of a half-size image to the image: sub-pixel convolution (ESPCN, CVPR 2016)."""

    def __init__(self, in_channels: int, image_channels: int) -> None:
        super().__init__()
        self.blocks = _blocks(in_channels)
        self.convolutions = nn.Sequential(
            nn.Conv2d(_WIDTHS[-1], _WIDTHS[-1], 5, padding=2),
            nn.Tanh(),
            nn.Conv2d(_WIDTHS[-1], _WIDTHS[-1], 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(_WIDTHS[-1], image_channels * 4, 3, padding=1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, C, H, W)`` to logits of the image ``(B, image_channels, 64H, 64W)``."""
        return F.pixel_shuffle(self.convolutions(_double(self.blocks(x))), 2)


class RotationBranch(nn.Module):
    """Branch that predicts which of six flips and turns an image has: global pooling and a three-layer perceptron."""

    def __init__(self, in_channels: int, image_channels: int) -> None:
        super().__init__()
        self.perceptron = nn.Sequential(
            nn.Linear(in_channels, 256),
            nn.LeakyReLU(0.2),
            nn.Linear(256, 64),
            nn.LeakyReLU(0.2),
            nn.Linear(64, len(ROTATION_VIEWS)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, C, H, W)`` to logits ``(B, 6)``."""
        return self.perceptron(x.mean((2, 3)))


BRANCHES: dict[str, Callable[[int, int], nn.Module]] = {
    "reconstruction": ImageBranch,
    "denoising": ImageBranch,
    "super_resolution": SuperResolutionBranch,
    "rotation": RotationBranch,
}
"""Auxiliary branches by name."""


def make_branches(names: Iterable[str], in_channels: int, image_channels: int) -> nn.ModuleDict:
    """Return the branches of these names.

    Args:
        names: keys of :data:`BRANCHES`.
        in_channels: number of channels of the deepest feature.
        image_channels: number of channels of the image.

    Raises:
        GrataError: there is no such branch.
    """
    return nn.ModuleDict({name: _make_branch(name, in_channels, image_channels) for name in names})


def _make_branch(name: str, in_channels: int, image_channels: int) -> nn.Module:
    if name not in BRANCHES:
        raise GrataError(f"there is no branch {name!r}; there are {', '.join(BRANCHES)}.", key="network_def#branches")
    return BRANCHES[name](in_channels, image_channels)


def find_branch(branches: nn.ModuleDict, name: str) -> nn.Module:
    """Return one of a network's branches.

    Raises:
        GrataError: the network does not have this branch.
    """
    if name not in branches:
        raise GrataError(
            f"The network has no {name} branch (its branches: {', '.join(branches) or 'none'}). Name it in "
            f"network_def#branches and train it; there are {', '.join(BRANCHES)}."
        )
    return branches[name]


def _blocks(in_channels: int) -> nn.Sequential:
    return nn.Sequential(*(UpBlock(a, b) for a, b in zip((in_channels, *_WIDTHS), _WIDTHS)))


def _double(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
