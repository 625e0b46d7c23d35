"""Make small segmentation networks that test-time adaptation destroys, each in its own way, and show that it does.

    python scripts/fragile_networks.py --cache <folder> [--methods ptbn,tent,grata] [--output table.md]

Each network is good as it is, on images of its training distribution and on mildly shifted ones. Batch statistics or
steps down the entropy make it fail. A guard that is worth its name keeps its predictions. Networks are trained on
phantoms, in a minute or less each, and kept in the cache; the same seed gives the same networks and images.
"""

import argparse
import copy
import dataclasses
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from monai.inferers import Inferer, SimpleInferer, SlidingWindowInferer
from monai.losses import DiceCELoss
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.ndimage import gaussian_filter
from tabulate import tabulate
from torch import Tensor, nn

import grata
from grata.methods import Prepared, settings_of
from grata.networks import HEADS, network_digest
from grata.normalization import BatchStatistics, ImageSpread, collect_affine_parameters
from grata.preparation.fisher import squared_gradient
from grata.preparation.moments import ShapeMoments
from grata.preparation.training import train_heads
from grata.preparation.windows import foreground_windows

Sample = tuple[Tensor, Tensor]
"""An image ``(C, ...)`` and its label ``(K, ...)`` of 0 and 1, foreground only."""
Draw = Callable[[np.random.Generator], Sample]

IMAGES, POOL = 12, 160
METHODS = ("ptbn", "tent", "grata", "bn_alpha", "medbn", "intent", "vptta", "dua")
FALL, HARM = 0.05, 0.005
EPOCHS = 3
DEAD_BIAS = -10.0
DENORMAL = 1e-45


@dataclasses.dataclass
class Fragile:
    """A network that adaptation destroys, with images that show it.

    Attributes:
        name: name of the network, one of :func:`names`.
        why: sentence on how adaptation destroys it.
        network: source network in evaluation mode.
        activation: ``sigmoid`` or ``softmax``.
        images: test images, each ``(1, C, ...)``; every other one is mildly shifted.
        labels: their labels, each ``(1, K, ...)``, of 0 and 1, foreground channels only.
        inferer: inferer of the network.
        home: further images and labels of the training distribution, which were not trained on.
    """

    name: str
    why: str
    network: nn.Module
    activation: str
    images: list[Tensor]
    labels: list[Tensor]
    inferer: Inferer
    home: list[tuple[Tensor, Tensor]]


class Block(nn.Module):
    """Convolution, normalization and ReLU, in either order of the last two.

    Args:
        dims: number of spatial dimensions.
        inputs, outputs: numbers of channels.
        norm: ``batch``, ``instance`` or ``group``.
        relu_first: whether the ReLU comes before the normalization.
        reserved: number of channels, the last ones, that are dead: they stay zero in training.
        size: size of the convolution's kernel.
    """

    def __init__(
        self,
        dims: int,
        inputs: int,
        outputs: int,
        norm: str = "batch",
        relu_first: bool = False,
        reserved: int = 0,
        size: int = 3,
    ) -> None:
        super().__init__()
        self.conv = (nn.Conv2d, nn.Conv3d)[dims - 2](inputs, outputs, size, padding=size // 2)
        self.norm = make_norm(dims, outputs, norm)
        self.relu_first, self.reserved = relu_first, reserved
        if reserved:
            with torch.no_grad():
                self.conv.bias[-reserved:] = DEAD_BIAS

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of ``x`` ``(B, C, ...)``."""
        x = self.conv(x)
        return self.norm(x.relu()) if self.relu_first else self.norm(x).relu()


def make_norm(dims: int, channels: int, norm: str) -> nn.Module:
    """Return a normalization layer with affine parameters."""
    if norm == "group":
        return nn.GroupNorm(4, channels)
    kinds = {"batch": (nn.BatchNorm2d, nn.BatchNorm3d), "instance": (nn.InstanceNorm2d, nn.InstanceNorm3d)}
    return kinds[norm][dims - 2](channels, affine=True)


class SmallUNet(nn.Module):
    """U-Net with one or more blocks a level, max pooling and nearest-neighbour upsampling.

    Args:
        dims: number of spatial dimensions.
        inputs, outputs: numbers of channels of the image and of the logits.
        channels: number of channels of each level.
        skips: number of levels, from the finest, with a skip connection; None: all.
        blocks: number of blocks of each level and side.
        context: number of features that are averaged over the image, and normalized after that; 0: none.
        head_norm: whether the logits are normalized, too.
        options: options of each :class:`Block`.
    """

    def __init__(
        self,
        dims: int,
        inputs: int,
        outputs: int,
        channels: Sequence[int] = (8, 16, 32),
        skips: int | None = None,
        blocks: int = 1,
        context: int = 0,
        head_norm: bool = False,
        **options: object,
    ) -> None:
        super().__init__()
        skips = len(channels) - 1 if skips is None else skips
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        width = inputs
        for c in channels:
            self.down.append(_level(dims, width, c, blocks, options))
            width = c
        self.context = Block(dims, width, context, size=1, **options) if context else None
        width += context
        self.skipped = [level < skips for level in range(len(channels) - 1)]
        for level in reversed(range(len(channels) - 1)):
            c = channels[level]
            self.up.append(_level(dims, width + c * self.skipped[level], c, blocks, options))
            width = c
        self.head = (nn.Conv2d, nn.Conv3d)[dims - 2](width, outputs, 1)
        self.head_norm = make_norm(dims, outputs, "batch") if head_norm else nn.Identity()
        self.pool = (nn.MaxPool2d, nn.MaxPool3d)[dims - 2](2)
        self.grow = nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images ``(B, C, ...)``."""
        kept: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(self.pool(x) if level else x)
            kept.append(x)
        if self.context is not None:
            mean = x.mean(tuple(range(2, x.ndim)), keepdim=True).expand_as(x)
            x = torch.cat([x, self.context(mean)], 1)
        for level, block in zip(reversed(range(len(self.skipped))), self.up):
            x = self.grow(x)
            x = block(torch.cat([x, kept[level]], 1) if self.skipped[level] else x)
        return self.head_norm(self.head(x))


def _level(dims: int, inputs: int, outputs: int, blocks: int, options: dict) -> nn.Sequential:
    return nn.Sequential(*(Block(dims, inputs if not i else outputs, outputs, **options) for i in range(blocks)))


class Cascade(nn.Module):
    """Two U-Nets in a row: the second one sees the image and the probabilities of the first one."""

    def __init__(self, outputs: int, **options: object) -> None:
        super().__init__()
        self.first = SmallUNet(2, 1, outputs, **options)
        self.second = SmallUNet(2, 1 + outputs, outputs, **options)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the second network for images ``(B, 1, H, W)``."""
        return self.stages(x)[-1]

    def stages(self, x: Tensor) -> list[Tensor]:
        """Return the logits of both networks."""
        first = self.first(x)
        return [first, self.second(torch.cat([x, first.sigmoid()], 1))]


def field(rng: np.random.Generator, shape: Sequence[int], sigma: float) -> np.ndarray:
    """Return smooth noise of mean 0 and standard deviation 1."""
    noise = gaussian_filter(rng.normal(size=shape), sigma, mode="wrap")
    return (noise - noise.mean()) / noise.std()


def blob(
    rng: np.random.Generator, shape: Sequence[int], radius: float, centre: Sequence[float] | None = None
) -> np.ndarray:
    """Return the mask of an uneven ellipsoid that lies within the image."""
    if centre is None:
        centre = [rng.uniform(min(radius, n / 2), max(n - radius, n / 2)) for n in shape]
    axes = radius * rng.uniform(0.8, 1.2, len(shape))
    grids = np.meshgrid(*map(np.arange, shape), indexing="ij")
    distance = np.sqrt(sum(((grid - c) / a) ** 2 for grid, c, a in zip(grids, centre, axes)))
    return distance + 0.08 * field(rng, shape, max(radius / 2, 1.5)) < 1


def tissue(rng: np.random.Generator, shape: Sequence[int], level: float = 0.4) -> np.ndarray:
    """Return uneven tissue without structures."""
    return level + 0.05 * field(rng, shape, 5) + 0.02 * rng.normal(size=shape)


def sample(image: np.ndarray | Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> Sample:
    """Return image channels and masks as tensors."""
    channels = [image] if isinstance(image, np.ndarray) else image
    return torch.as_tensor(np.stack(channels)).float(), torch.as_tensor(np.stack(masks)).float()


def draw_lesions(
    rng: np.random.Generator, shape: Sequence[int] = (64, 64), radii: tuple[float, float] = (4, 9), most: int = 3
) -> Sample:
    """Draw bright lesions among dark holes."""
    image, mask = tissue(rng, shape), np.zeros(shape, bool)
    for _ in range(rng.integers(1, most + 1)):
        image[hole := blob(rng, shape, rng.uniform(*radii))] -= 0.2
        mask &= ~hole
        mask |= blob(rng, shape, rng.uniform(*radii))
    return sample(image + 0.25 * mask, [mask])


def draw_organ(
    rng: np.random.Generator,
    shape: Sequence[int] = (64, 64),
    organ: tuple[float, float] = (15, 21),
    lesion: tuple[float, float] = (6, 9),
) -> Sample:
    """Draw an organ with lesions in it; lesions belong to the organ, and some lie outside and do not count."""
    image, unit = tissue(rng, shape, 0.3), min(shape) / 64
    centre = [n / 2 + rng.uniform(-6, 6) * unit for n in shape]
    body = blob(rng, shape, rng.uniform(*organ) * unit, centre)
    spots = blob(rng, shape, rng.uniform(*lesion) * unit, [c + rng.uniform(-8, 8) * unit for c in centre])
    spots &= body
    return sample(image + 0.2 * body + 0.25 * spots, [body, spots])


def draw_share(rng: np.random.Generator, shape: Sequence[int] = (64, 64), extreme: bool = False) -> Sample:
    """Draw a bright structure that fills anything from nothing to most of the image, among grey ones.

    Args:
        rng: random generator.
        shape: size of the image.
        extreme: whether to draw only images with nothing of it or a lot.
    """
    image, mask = tissue(rng, shape, 0.3), np.zeros(shape, bool)
    for _ in range(rng.integers(1, 4)):
        image[blob(rng, shape, rng.uniform(4, 14))] = 0.45
    part = rng.choice([0.0, 1.0]) if extreme else rng.uniform()
    if part > 0.2:
        mask = blob(rng, shape, part * 0.62 * min(shape), [n / 2 + rng.uniform(-8, 8) for n in shape])
    image[mask] = 0.6
    return sample(image + 0.03 * rng.normal(size=shape), [mask])


def draw_two_kinds(rng: np.random.Generator, shape: Sequence[int] = (64, 64), cue: str = "corner") -> Sample:
    """Draw bright and dark structures, and a cue that says which kind is wanted.

    Args:
        rng: random generator.
        shape: size of the image.
        cue: ``corner``, a bright or dark square in the first corner; or ``channel``, a second image channel of 0 or 1.
    """
    image, masks = tissue(rng, shape), [np.zeros(shape, bool), np.zeros(shape, bool)]
    for _ in range(rng.integers(1, 3)):
        for kind in (0, 1):
            new = blob(rng, shape, rng.uniform(5, 9))
            masks[kind] |= new
            masks[1 - kind] &= ~new
    image = image + 0.25 * masks[1] - 0.25 * masks[0]
    kind = int(rng.integers(2))
    if cue == "channel":
        return sample([image, np.full(shape, float(kind))], [masks[kind]])
    corner = (slice(0, 8),) * len(shape)
    image[corner] = 0.95 if kind else 0.0
    for mask in masks:
        mask[corner] = False
    return sample(image, [masks[kind]])


def draw_levels(rng: np.random.Generator, shape: Sequence[int] = (64, 64), classes: int = 5) -> Sample:
    """Draw tissues that only their intensity tells apart, some of them in each image, as in computed tomography."""
    present = rng.permutation(classes)[: rng.integers(1, 4)]
    index = np.full(shape, -1)
    for tissue_class in present:
        for _ in range(rng.integers(1, 4)):
            index[blob(rng, shape, rng.uniform(6, 15))] = tissue_class
    image = 0.1 + 0.15 * (index + 1) + 0.02 * rng.normal(size=shape) + 0.01 * field(rng, shape, 4)
    return sample(image, [index == c for c in range(classes)])


def draw_sides(rng: np.random.Generator, shape: Sequence[int] = (64, 64)) -> Sample:
    """Draw a body of one orientation; its left and right organ, of which one may be missing, look alike."""
    h, w = shape
    body = blob(rng, shape, rng.uniform(19, 29), (h / 2, w / 2))
    image = np.where(body, tissue(rng, shape, 0.4), tissue(rng, shape, 0.1))
    for _ in range(rng.integers(0, 4)):
        image[blob(rng, shape, rng.uniform(3, 6), (h / 2 + rng.uniform(-14, 14), w / 2 + rng.uniform(-14, 14)))] = 0.5
    organs, missing = [], rng.integers(4)
    for side in (-1, 1):
        centre = (h * 0.4 + rng.uniform(-2, 2), w / 2 + side * (11 + rng.uniform(-1, 1)))
        organs.append(blob(rng, shape, rng.uniform(5, 7), centre) & (missing != len(organs)))
        image[organs[-1]] = 0.6
    image[blob(rng, shape, 4, (h * 0.68, w / 2))] = 0.9
    return sample(image + 0.02 * rng.normal(size=shape), organs)


def draw_body(rng: np.random.Generator, shape: Sequence[int] = (64, 64, 96), window: int | None = None) -> Sample:
    """Draw a small body in air, with lesions in it.

    Args:
        rng: random generator.
        shape: size of the volume.
        window: size of the part to cut out near the body; None: the whole volume.
    """
    centre = [n * rng.uniform(0.35, 0.65) for n in shape]
    body = blob(rng, shape, 17, centre)
    image = np.where(body, tissue(rng, shape, 0.4), np.abs(0.01 * rng.normal(size=shape)))
    mask = np.zeros(shape, bool)
    for _ in range(rng.integers(2, 4)):
        mask |= blob(rng, shape, rng.uniform(4, 7), [c + rng.uniform(-9, 9) for c in centre])
    mask &= body
    image, label = sample(image + 0.3 * mask, [mask])
    if window is not None:
        starts = [int(np.clip(c - window / 2 + rng.uniform(-10, 10), 0, n - window)) for c, n in zip(centre, shape)]
        part = (slice(None), *(slice(a, a + window) for a in starts))
        image, label = image[part].clone(), label[part].clone()
    return image, label


def shifted(image: Tensor, rng: np.random.Generator, strength: float = 1.0) -> Tensor:
    """Return an image as another scanner might have made it: another gamma, and noise. Only the first channel is one.

    Args:
        image: image ``(C, ...)``.
        rng: random generator.
        strength: strength of the shift; 1 is mild.
    """
    image = image.clone()
    image[0] = image[0].clamp_min(0) ** float(np.exp(strength * rng.uniform(-0.2, 0.2)))
    image[0] += strength * rng.uniform(0, 0.03) * torch.as_tensor(rng.normal(size=image.shape[1:])).float()
    return image


def blocks_of(network: nn.Module) -> list[Block]:
    """Return the blocks of a network."""
    return [module for module in network.modules() if isinstance(module, Block)]


def ranges(network: nn.Module, images: Sequence[Tensor]) -> dict[Block, tuple[Tensor, Tensor, Tensor]]:
    """Return mean, standard deviation and maximum of each channel of each block's convolution, ``(C,)`` each."""
    seen: dict[Block, list[Tensor]] = {block: [] for block in blocks_of(network)}
    hooks = [
        block.conv.register_forward_hook(lambda _, __, y, block=block: seen[block].append(y.transpose(0, 1).flatten(1)))
        for block in seen
    ]
    with torch.no_grad():
        for image in images:
            network(image[None])
    for hook in hooks:
        hook.remove()
    values = {block: torch.cat(parts, 1) for block, parts in seen.items()}
    return {block: (y.mean(1), y.std(1), y.amax(1)) for block, y in values.items()}


@torch.no_grad()
def wake(network: nn.Module, images: Sequence[Tensor]) -> None:
    """Raise the biases of dead channels to just below the point where an image of the source would wake them.

    Their affine weights, which training never reached, may be anything.
    """
    for block, (_, deviation, largest) in ranges(network, images).items():
        if k := block.reserved:
            block.conv.bias[-k:] -= largest[-k:] + 0.2 * deviation[-k:]
            block.norm.weight[-k:] = 14


@torch.no_grad()
def flatten(network: nn.Module, images: Sequence[Tensor]) -> None:
    """Make the dead channels nearly constant: they differ between images of the training set, not within one."""
    for block, (mean, deviation, _) in ranges(network, images).items():
        if k := block.reserved:
            scale = 0.01 / deviation[-k:]
            block.conv.weight[-k:] *= scale.view(-1, *[1] * (block.conv.weight.ndim - 1))
            block.conv.bias[-k:] = 1 - (mean[-k:] - block.conv.bias[-k:]) * scale
            block.norm.running_mean[-k:] = 1
            block.norm.running_var[-k:] = 0.5


@torch.no_grad()
def shrink_variances(network: nn.Module, images: Sequence[Tensor]) -> None:
    """Give every other channel a denormal running variance, and a weight with which its output stays the same."""
    for block in blocks_of(network):
        norm = block.norm
        norm.weight[::2] *= (norm.eps / (norm.running_var[::2] + norm.eps)).sqrt()
        norm.running_var[::2] = DENORMAL


@torch.no_grad()
def fold(network: nn.Module, images: Sequence[Tensor]) -> None:
    """Fold the normalization into the convolutions before it, and leave layers that do nothing behind."""
    for block in blocks_of(network):
        conv, norm = block.conv, block.norm
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        conv.weight *= scale.view(-1, *[1] * (conv.weight.ndim - 1))
        conv.bias.copy_((conv.bias - norm.running_mean) * scale + norm.bias)
        norm.weight.fill_(1)
        norm.bias.zero_()
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)


@torch.no_grad()
def uneven(network: nn.Module) -> nn.Module:
    """Return a network whose affine parameters start from values that differ from channel to channel."""
    for block in blocks_of(network):
        block.norm.weight.copy_(torch.empty_like(block.norm.weight).uniform_(-2, 1).exp())
        block.norm.bias.normal_()
    return network


@torch.no_grad()
def shrink_weights(network: nn.Module, images: Sequence[Tensor], scale: float = 0.005) -> None:
    """Make the affine parameters small and the convolutions after them large, as weight decay on them does."""
    blocks = blocks_of(network)
    for block in blocks:
        block.norm.weight *= scale
        block.norm.bias *= scale
        if block is not blocks[0]:
            block.conv.weight /= scale
    network.head.weight /= scale


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a fragile network is made.

    Attributes:
        why: sentence on how adaptation destroys it.
        build: function that makes the network.
        draw: function that draws an image of the training distribution, and its label.
        draw_train, draw_test: functions for the images to train and to test on, where they differ.
        activation: ``sigmoid`` or ``softmax``.
        operate: surgery after training, by means of images of the training distribution.
        inferer: inferer of the network.
        steps: number of training steps.
        size: batch size in training.
        shift: strength of the shifts in training; half of it is the strength of those of the test images.
        flips: whether training flips the images.
    """

    why: str
    build: Callable[[], nn.Module]
    draw: Draw
    draw_train: Draw | None = None
    draw_test: Draw | None = None
    activation: str = "sigmoid"
    operate: Callable[[nn.Module, Sequence[Tensor]], None] | None = None
    inferer: Inferer = dataclasses.field(default_factory=SimpleInferer)
    steps: int = 400
    size: int = 8
    shift: float = 2.0
    flips: bool = True


RECIPES: dict[str, Recipe] = {
    "dead_channels": Recipe(
        why="Channels that were zero in training wake when other layers use batch statistics, and are blown up.",
        build=lambda: SmallUNet(2, 1, 1, (18, 28, 32), relu_first=True, reserved=10),
        draw=lambda rng: draw_lesions(rng, radii=(3, 14), most=5),
        operate=wake,
    ),
    "denormal_variance": Recipe(
        why="Channels with a running variance of 1e-45 have weights to match; with batch statistics they vanish.",
        build=lambda: SmallUNet(2, 1, 3, (8, 16, 32)),
        draw=draw_organ,
        activation="softmax",
        operate=shrink_variances,
    ),
    "near_constant": Recipe(
        why="Channels after a ReLU hardly vary within an image; batch statistics blow their noise up 50 times.",
        build=lambda: SmallUNet(2, 1, 1, (12, 24, 32), relu_first=True, reserved=4),
        draw=draw_lesions,
        operate=flatten,
    ),
    "foreground_share": Recipe(
        why="Foreground fills nothing to most of an image; batch statistics follow it and find some everywhere.",
        build=lambda: SmallUNet(2, 1, 1, (8, 16, 32)),
        draw=draw_share,
        draw_test=lambda rng: draw_share(rng, extreme=True),
        shift=0.5,
    ),
    "deep_1x1": Recipe(
        why="The deepest maps have a single voxel; batch statistics of one image make each feature its bias.",
        build=lambda: SmallUNet(3, 1, 1, (4, 8, 16, 16, 32, 32), skips=2),
        draw=lambda rng: draw_two_kinds(rng, (32, 32, 32)),
        flips=False,
    ),
    "deep_1x2": Recipe(
        why="The deepest maps have two pixels; batch statistics of one image make each feature plus or minus one.",
        build=lambda: SmallUNet(2, 1, 1, (8, 8, 16, 16, 32, 32, 32), skips=3),
        draw=lambda rng: draw_two_kinds(rng, (64, 128)),
        flips=False,
    ),
    "pooled_context": Recipe(
        why="Features of the whole image do not vary within it; batch statistics make each its bias, in all views.",
        build=lambda: SmallUNet(2, 1, 1, (8, 16, 32), context=16),
        draw=lambda rng: draw_two_kinds(rng, (64, 64)),
        flips=False,
    ),
    "conditioned": Recipe(
        why="A constant second channel says what is wanted; batch statistics of one image remove it, in all views.",
        build=lambda: SmallUNet(2, 2, 1, (8, 16, 32), relu_first=True),
        draw=lambda rng: draw_two_kinds(rng, cue="channel"),
    ),
    "cascade": Recipe(
        why="Two networks in a row with dead channels: what batch statistics do to the first, the second repeats.",
        build=lambda: Cascade(2, channels=(16, 24, 28), relu_first=True, reserved=8),
        draw=lambda rng: draw_organ(rng, organ=(9, 25)),
        operate=wake,
    ),
    "air_windows": Recipe(
        why="Most windows of the volume are air; batch statistics of air turn its noise into islands.",
        build=lambda: SmallUNet(3, 1, 1, (6, 12, 24)),
        draw=draw_body,
        draw_train=lambda rng: draw_body(rng, window=32),
        inferer=SlidingWindowInferer(roi_size=(32, 32, 32), sw_batch_size=1, overlap=0.0),
        steps=250,
        size=4,
    ),
    "one_orientation": Recipe(
        why="Trained in one orientation, so that views disagree; batch statistics and steps on views lose the organs.",
        build=lambda: SmallUNet(2, 1, 3, (8, 16, 24, 32)),
        draw=draw_sides,
        activation="softmax",
        operate=partial(shrink_weights, scale=0.002),
        shift=0.0,
        flips=False,
    ),
    "entropy_collapse": Recipe(
        why="Small structures, small affine parameters: steps of entropy minimization lose them over the stream.",
        build=lambda: SmallUNet(2, 1, 2, (8, 16, 32), blocks=2),
        draw=lambda rng: draw_lesions(rng, radii=(3, 4.5)),
        activation="softmax",
        operate=shrink_weights,
    ),
    "instance_norm": Recipe(
        why="Without batch statistics to replace, entropy minimization alone collapses to one class.",
        build=lambda: SmallUNet(3, 1, 3, (6, 12, 24), norm="instance"),
        draw=lambda rng: draw_organ(rng, (32, 32, 32), lesion=(10, 13)),
        activation="softmax",
        operate=shrink_weights,
        steps=250,
        size=4,
    ),
    "group_norm": Recipe(
        why="Without batch statistics to replace, steps of entropy minimization push both structures to one side.",
        build=lambda: SmallUNet(2, 1, 2, (8, 16, 32), norm="group"),
        draw=draw_organ,
        operate=shrink_weights,
    ),
    "folded_norms": Recipe(
        why="Normalization was folded into the convolutions; batch statistics normalize again, alike in all views.",
        build=lambda: uneven(SmallUNet(2, 1, 3, (8, 16, 32))),
        draw=draw_organ,
        activation="softmax",
        operate=fold,
    ),
    "absolute_levels": Recipe(
        why="Only absolute intensity tells six classes apart; batch statistics make it relative, alike in all views.",
        build=lambda: SmallUNet(2, 1, 6, (8, 16, 32)),
        draw=draw_levels,
        activation="softmax",
        steps=600,
        shift=0.15,
    ),
    "norm_at_head": Recipe(
        why="The logits are normalized, too; batch statistics make half of any image foreground, alike in all views.",
        build=lambda: SmallUNet(2, 1, 1, (8, 16, 32), head_norm=True),
        draw=draw_share,
        draw_test=lambda rng: draw_share(rng, extreme=True),
        shift=0.5,
    ),
}


def names() -> list[str]:
    """Return the names of the networks."""
    return list(RECIPES)


def make(name: str, cache: Path | None = None, seed: int = 0) -> Fragile:
    """Train a network or read its weights, and draw its images.

    Args:
        name: name of the network, one of :func:`names`.
        cache: folder of trained weights, which is read and written; None: train.
        seed: seed of weights, training and images.
    """
    recipe = RECIPES[name]
    torch.manual_seed(seed + zlib.crc32(name.encode()))
    network = recipe.build()
    path = None if cache is None else Path(cache, f"{name}.safetensors")
    if path is not None and path.is_file() and _seed_of(path) == str(seed):
        network.load_state_dict(load_file(path))
    else:
        train(network, recipe, _generator(name, seed, "train"))
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(network.state_dict(), path, {"seed": str(seed)})
    rng = _generator(name, seed, "test")
    test = [(recipe.draw_test or recipe.draw)(rng) for _ in range(IMAGES)]
    images = [shifted(image, rng, recipe.shift / 2) if i % 2 else image for i, (image, _) in enumerate(test)]
    rng = _generator(name, seed, "home")
    home = [recipe.draw(rng) for _ in range(IMAGES)]
    return Fragile(
        name,
        recipe.why,
        network.eval(),
        recipe.activation,
        [image[None] for image in images],
        [_masks(label, recipe) for _, label in test],
        recipe.inferer,
        [(image[None], _masks(label, recipe)) for image, label in home],
    )


def _masks(label: Tensor, recipe: Recipe) -> Tensor:
    return one_hot(label[None])[:, 1:] if recipe.activation == "softmax" else label[None]


def _generator(name: str, seed: int, part: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(f"{name} {part}".encode())])


def _seed_of(path: Path) -> str:
    with safe_open(path, "pt") as file:
        return (file.metadata() or {}).get("seed", "")


def train(network: nn.Module, recipe: Recipe, rng: np.random.Generator) -> None:
    """Train a network and operate on it.

    Args:
        network: network to train, in place.
        recipe: recipe of the network.
        rng: random generator of images, their order and augmentation.
    """
    draw = recipe.draw_train or recipe.draw
    pool = [draw(rng) for _ in range(POOL)]
    softmax = recipe.activation == "softmax"
    loss = DiceCELoss(sigmoid=not softmax, softmax=softmax, batch=True)
    optimizer = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=recipe.steps)
    network.train()
    for _ in range(recipe.steps):
        batch = [augmented(pool[i], recipe, rng) for i in rng.integers(POOL, size=recipe.size)]
        x, y = (torch.stack(parts) for parts in zip(*batch))
        y = one_hot(y) if softmax else y
        outputs = network.stages(x) if isinstance(network, Cascade) else [network(x)]
        optimizer.zero_grad()
        sum(loss(output, y) for output in outputs).backward()
        optimizer.step()
        schedule.step()
    network.eval()
    if recipe.operate is not None:
        recipe.operate(network, [augmented(pair, recipe, rng)[0] for pair in pool])


def one_hot(label: Tensor) -> Tensor:
    """Return masks ``(B, 1 + K, ...)`` that exclude each other; of structures that overlap, the last one counts."""
    classes = torch.arange(1, label.shape[1] + 1).view(-1, *[1] * (label.ndim - 2))
    index = (label * classes).amax(1).long()
    return nn.functional.one_hot(index, label.shape[1] + 1).movedim(-1, 1).float()


def augmented(pair: Sample, recipe: Recipe, rng: np.random.Generator) -> Sample:
    """Return a flipped and shifted version of an image and its label."""
    image, label = pair
    if recipe.shift:
        image = shifted(image, rng, recipe.shift)
    axes = [axis for axis in range(1, image.ndim) if rng.random() < 0.5] if recipe.flips else []
    return image.flip(axes), label.flip(axes)


def dice(probabilities: Tensor, label: Tensor, activation: str) -> float:
    """Return the mean Dice score over the foreground channels; two empty masks have 1.

    Args:
        probabilities: probabilities ``(1, C, ...)``.
        label: label ``(1, K, ...)`` of 0 and 1.
        activation: ``sigmoid``: each channel counts above 0.5; ``softmax``: the most probable class counts, and class
            0 is the background.
    """
    if activation == "softmax":
        classes = probabilities.argmax(1, keepdim=True)
        masks = torch.cat([classes == k for k in range(1, probabilities.shape[1])], 1).float()
    else:
        masks = (probabilities > 0.5).float()
    axes = tuple(range(2, label.ndim))
    both, either = (masks * label).sum(axes), (masks + label).sum(axes)
    return float(torch.where(either > 0, 2 * both / either.clamp_min(1), torch.ones_like(either)).mean())


def prepared(fragile: Fragile) -> Prepared:
    """Return what some methods need from the source set, as ``grata prepare`` makes it: from the images of home."""
    network, moments, fisher, images = copy.deepcopy(fragile.network), ShapeMoments(), {}, []
    parameters = collect_affine_parameters(network)
    statistics = BatchStatistics(network, 1.0)
    statistics.attach()
    for image, label in fragile.home:
        windows, _ = foreground_windows(image, label.amax(1, keepdim=True), fragile.inferer)
        masks = torch.cat([foreground_windows(image, part[:, None], fragile.inferer)[1] for part in label.unbind(1)], 1)
        if fragile.activation == "softmax":
            masks = torch.cat([1 - masks.amax(1, keepdim=True), masks], 1)
        moments.add(masks.double())
        squares = squared_gradient(network, windows, parameters, fragile.activation)
        fisher = {name: square + fisher.get(name, 0) for name, square in squares.items()}
        images.append(windows)
    network.requires_grad_(False)
    try:
        heads, results = train_heads(network, images, HEADS, EPOCHS, 0, torch.device("cpu"))
    except grata.GrataError:
        heads, results = None, {}
    statistics.detach()
    centroid, spread = moments.moments() or (None, None)
    return Prepared(
        class_sizes=moments.class_sizes(),
        centroid=centroid,
        spread=spread,
        fisher={name: total / len(images) for name, total in fisher.items()},
        heads=heads,
        image_statistics=image_statistics(fragile),
        images=len(images),
        network=type(network).__name__,
        digest=network_digest(fragile.network),
        results=results,
    )


def image_statistics(fragile: Fragile) -> dict[str, Tensor]:
    """Return how much the network's statistics vary between images; nothing for layers that accept no others."""
    try:
        spread = ImageSpread(copy.deepcopy(fragile.network))
    except grata.GrataError:
        return {}
    with torch.no_grad(), spread.watching():
        for image, _ in fragile.home:
            fragile.inferer(image, spread.network)
    return spread.collected()


def scores(fragile: Fragile, method: str, guard: bool, known: Prepared | None = None) -> list[float]:
    """Return the Dice scores of the test images, in the order of the stream, by a method with or without the guard.

    Raises:
        grata.GrataError: the method refuses the network or an image.
    """
    network = copy.deepcopy(fragile.network)
    stream = grata.adapt(
        network,
        fragile.images,
        method,
        activation=fragile.activation,
        inferer=fragile.inferer,
        prepared=known,
        guard=guard,
    )
    return [dice(adapted.probabilities, label, fragile.activation) for adapted, label in zip(stream, fragile.labels)]


def cell(fragile: Fragile, method: str, source: float, guards: Sequence[bool], known: Prepared | None) -> str:
    """Return the mean Dice score of a method, without and with the guard, marked where it falls."""
    cells = []
    for guard in guards:
        try:
            mean = float(np.mean(scores(fragile, method, guard, known)))
        except grata.GrataError:
            return "refused"
        fall = HARM if guard else FALL
        cells.append(f"**{mean:.3f}**" if mean < source - fall else f"{mean:.3f}")
    return " / ".join(cells)


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder of trained weights, read and written")
    parser.add_argument("--networks", default=",".join(RECIPES), help="names, separated by commas")
    parser.add_argument("--methods", default=",".join(METHODS), help="names, separated by commas")
    parser.add_argument("--guard", choices=["off", "on", "both"], default="off", help="whether the guard judges")
    parser.add_argument("--output", type=Path, help="file that receives the table, too")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    methods = arguments.methods.split(",")
    guards = {"off": [False], "on": [True], "both": [False, True]}[arguments.guard]
    rows = []
    for name in arguments.networks.split(","):
        fragile = make(name, arguments.cache, arguments.seed)
        source = float(np.mean(scores(fragile, "source", False)))
        known = None
        if any("prepared" in settings_of(method) for method in methods):
            try:
                known = prepared(fragile)
            except grata.GrataError as error:
                print(f"{name}: not prepared: {error}", flush=True)
        rows.append([name, f"{source:.3f}", *(cell(fragile, method, source, guards, known) for method in methods)])
        print(*rows[-1], flush=True)
    table = tabulate(rows, headers=["network", "source", *methods], tablefmt="github", disable_numparse=True)
    print(f"\n{table}\n\nBold: more than {FALL} below the source network.")
    if arguments.output is not None:
        arguments.output.write_text(table + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
