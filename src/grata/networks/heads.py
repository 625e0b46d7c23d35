"""Auxiliary heads for any network: self-supervised tasks on the network's deepest feature."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from monai.networks import eval_mode
from torch import nn
from torch.nn import functional as F

from ..errors import GrataError
from ..normalization.features import depth, is_map
from ..views import default_views
from .wrappers import plain_naming, without_prefix

__all__ = ["HEADS", "AuxiliaryHeads", "RotationHead", "SavedHeads"]

HEADS = ("rotation", "denoising")
"""Names of all heads."""

_WIDTHS = (256, 128, 64, 32)
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class RotationHead(nn.Module):
    """Head that predicts the view of an image: global pooling and a three-layer perceptron (Sun et al. 2020).

    The widths are GraTa's. The pooled feature is standardized with its statistics on the source set: where every image
    is normalized by its own statistics, pooled features hardly differ between images, and a perceptron could not
    separate them.

    Args:
        channels: number of channels of the feature.
        views: number of classes.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, channels: int, views: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))
        self.perceptron = nn.Sequential(
            nn.Linear(channels, 256),
            nn.LeakyReLU(0.2),
            nn.Linear(256, 64),
            nn.LeakyReLU(0.2),
            nn.Linear(64, views),
        )

    def forward(self, feature: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """Map ``(B, C, ...)`` to logits ``(B, views)``; ``size``, the spatial size of the image, is not used."""
        return self.perceptron((feature.flatten(2).mean(2) - self.mean) / self.deviation)

    def standardize(self, pooled: torch.Tensor) -> None:
        """Set each channel's mean and deviation from pooled features ``(N, C)``; a constant channel is only centred."""
        deviation, mean = torch.std_mean(pooled, 0, correction=0)
        self.mean.copy_(mean)
        self.deviation.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))


class DenoisingHead(nn.Module):
    """Head that predicts the image: blocks of linear ×2 interpolation, 1×1 convolution, ReLU and batch normalization.

    Args:
        channels: number of channels of the feature.
        image_channels: number of channels of the image.
        spatial_dims: number of spatial dimensions, 1 to 3.
        blocks: number of blocks, 0 to 4.
    """

    def __init__(self, channels: int, image_channels: int, spatial_dims: int, blocks: int) -> None:
        super().__init__()
        convolution = _CONVOLUTIONS[spatial_dims]
        widths = (channels, *_WIDTHS[:blocks])
        self.convolutions = nn.ModuleList(convolution(a, b, 1) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(_NORMS[spatial_dims](width) for width in widths[1:])
        self.last = convolution(widths[-1], image_channels, 1)

    def forward(self, feature: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """Map ``(B, C, ...)`` to logits of the image ``(B, image_channels, *size)``."""
        y = feature
        for convolution, norm in zip(self.convolutions, self.norms):
            doubled = [min(2 * n, full) for n, full in zip(y.shape[2:], size)]
            # A 1×1 convolution commutes with interpolation and costs a fraction before it.
            y = norm(F.relu(_resized(convolution(y), doubled)))
        return _resized(self.last(y), size)


@dataclass(frozen=True)
class SavedHeads:
    """Auxiliary heads as they are stored; :meth:`AuxiliaryHeads.load` makes the heads from them.

    Attributes:
        feature: name of the network's module whose output the heads take.
        names: names of the heads: ``rotation``, ``denoising``.
        views: classes of the rotation head, in the order of its outputs.
        channels: number of channels of the feature.
        image_channels: number of channels of the image.
        spatial_dims: number of spatial dimensions, 2 or 3.
        blocks: number of blocks of the denoising head.
        state: state dict of all heads.
    """

    feature: str
    names: tuple[str, ...]
    views: tuple[str, ...]
    channels: int
    image_channels: int
    spatial_dims: int
    blocks: int
    state: Mapping[str, torch.Tensor]


class AuxiliaryHeads:
    """Heads on the deepest feature of a network, which keeps its modules, its state dict and its hooks.

    :meth:`create` makes heads for training, :meth:`load` heads for use.

    Args:
        network: network of 1 to 3 spatial dimensions, not TorchScript.
        saved: description of the heads, with their weights.

    Attributes:
        names: names of the heads.
        views: classes of the rotation head, in the order of its outputs.
        modules: heads by name.

    Raises:
        GrataError: the network is scripted or lacks the feature, or a head is not known.

    Example::

        heads = AuxiliaryHeads.load(network, prepared.heads)
        loss = rotation_loss(heads.branch, images, generator, heads.views)
    """

    def __init__(self, network: nn.Module, saved: SavedHeads) -> None:
        _check_not_scripted(network)
        self.names = saved.names
        self.views = saved.views
        self._network = network
        self._saved = saved
        plain = plain_naming(network)
        layers = {plain(name): module for name, module in network.named_modules()}
        feature = saved.feature if saved.feature in layers else without_prefix(saved.feature)
        if feature not in layers:
            raise GrataError(
                f"its heads are attached to {saved.feature}, which this {type(network).__name__} does not have. "
                "Prepare them for this network: python -m grata prepare.",
                key="prepared",
            )
        self._layer = layers[feature]
        self.modules = nn.ModuleDict()
        for name in saved.names:
            if name == "rotation":
                self.modules[name] = RotationHead(saved.channels, len(saved.views))
            elif name == "denoising":
                self.modules[name] = DenoisingHead(
                    saved.channels, saved.image_channels, saved.spatial_dims, saved.blocks
                )
            else:
                raise GrataError(f"there is no head {name!r}; there are {', '.join(HEADS)}.", key="heads")

    @classmethod
    def create(
        cls,
        network: nn.Module,
        image: torch.Tensor,
        names: Sequence[str] = HEADS,
        views: Sequence[str] | None = None,
        seed: int = 0,
    ) -> AuxiliaryHeads:
        """Return untrained heads in training mode, on the deepest feature that the network computes from an image.

        That is the output with the fewest positions among those shaped like a feature map; among several the one with
        the most channels (a network may predict at low resolution, and logits carry little information), and among
        those the last one. An output pooled to a single position is not a map, and modules that run more than once are
        skipped.

        Args:
            network: network on the device of ``image``; it is not changed.
            image: input of the network, ``(B, C, H, W)`` or ``(B, C, D, H, W)``.
            names: names of the heads.
            views: classes of the rotation head; None: :func:`grata.views.default_views` of the image.
            seed: seed of the heads' first weights.

        Raises:
            GrataError: a head is not known, or the network is scripted or has no such feature.
        """
        _check_not_scripted(network)
        feature, shape = _deepest_feature(network, image)
        size = image.shape[2:]
        stride = max(full / n for full, n in zip(size, shape[2:]))
        saved = SavedHeads(
            feature=plain_naming(network)(feature),
            names=tuple(names),
            views=tuple(views or (view.name for view in default_views(size))),
            channels=shape[1],
            image_channels=image.shape[1],
            spatial_dims=len(size),
            blocks=min(len(_WIDTHS), max(0, math.ceil(math.log2(stride)))),
            state={},
        )
        # Layers draw their first weights from the global generator, which is restored.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            heads = cls(network, saved)
        heads.modules.to(image.device)
        return heads

    @classmethod
    def load(cls, network: nn.Module, saved: SavedHeads) -> AuxiliaryHeads:
        """Return trained heads, frozen and in evaluation mode, on the network's device.

        Args:
            network: network that the heads were trained for.
            saved: value of :attr:`grata.methods.Prepared.heads`.

        Raises:
            GrataError: the heads do not fit the network, or are damaged.
        """
        with torch.random.fork_rng(devices=[]):
            heads = cls(network, saved)
        try:
            heads.modules.load_state_dict(dict(saved.state))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise GrataError(
                f"the weights of its heads do not fit: {reason} Prepare them again.", key="prepared"
            ) from error
        heads.modules.requires_grad_(False).eval()
        parameter = next(network.parameters(), None)
        if parameter is not None:
            heads.modules.to(parameter.device, parameter.dtype)
        return heads

    def saved(self) -> SavedHeads:
        """Return the heads with their present weights, on the CPU."""
        state = {name: value.detach().cpu().clone() for name, value in self.modules.state_dict().items()}
        return SavedHeads(**{**vars(self._saved), "state": state})

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the deepest feature ``(B, channels, ...)`` of ``x`` ``(B, C, ...)``; the network stops there.

        Raises:
            GrataError: the network did not compute the feature.
        """

        def stop(_: nn.Module, __: tuple[object, ...], output: torch.Tensor) -> None:
            raise _ReachedError(output)

        handle = self._layer.register_forward_hook(stop)
        try:
            self._network(x)
        except _ReachedError as reached:
            return reached.feature
        finally:
            handle.remove()
        raise GrataError(
            f"The network made a prediction without {self._saved.feature}, which the auxiliary heads are attached to. "
            "Prepare them for the network as it is now: python -m grata prepare."
        )

    def head(self, name: str, feature: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """Return the output of a head.

        Args:
            name: name of the head.
            feature: deepest feature ``(B, channels, ...)``.
            size: spatial size of the images.

        Raises:
            GrataError: there is no such head.
        """
        if name not in self.modules:
            raise GrataError(
                f"There is no {name} head among those that were prepared ({', '.join(self.names)}). Run python -m "
                f'grata prepare with --heads "{",".join((*self.names, name))}".'
            )
        return self.modules[name](feature, size)

    def branch(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Return the output of a head for an image; gradients flow into the network.

        Args:
            name: name of the head.
            x: input of the network ``(B, C, ...)``: a view for the rotation head, a noisy image for the denoising head.

        Returns:
            Logits ``(B, views)`` from the rotation head, logits of an image ``(B, C, ...)`` from the denoising head.

        Raises:
            GrataError: there is no such head.
        """
        return self.head(name, self.features(x), x.shape[2:])


class _ReachedError(Exception):
    """Signal that ends a forward at the feature."""

    def __init__(self, feature: torch.Tensor) -> None:
        super().__init__()
        self.feature = feature


def _deepest_feature(network: nn.Module, image: torch.Tensor) -> tuple[str, torch.Size]:
    """Return the name of the module that computes the feature, and the feature's shape."""
    runs: list[tuple[str, torch.Size]] = []

    def watch(name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def hook(_: nn.Module, __: tuple[object, ...], output: object) -> None:
            runs.append((name, output.shape if isinstance(output, torch.Tensor) else torch.Size()))

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in network.named_modules() if name]
    try:
        with eval_mode(network):
            network(image)
    finally:
        for handle in handles:
            handle.remove()
    times = Counter(name for name, _ in runs)
    maps = [(name, shape) for name, shape in runs if times[name] == 1 and is_map(shape, image.shape)]
    if not maps:
        raise GrataError(
            f"{type(network).__name__} has no feature map for auxiliary heads: none of its modules "
            f"returns a tensor (B, C, ...) of {image.ndim - 2} spatial dimensions. Prepare without heads: --heads none."
        )
    return max(reversed(maps), key=lambda found: depth(found[1]))


def _check_not_scripted(network: nn.Module) -> None:
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        raise GrataError(
            "A TorchScript network cannot have auxiliary heads: it cannot be stopped at its deepest feature. Use the "
            "Python network (model.pt) instead of model.ts, or a method without heads."
        )


def _resized(y: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    if tuple(y.shape[2:]) == tuple(size):
        return y
    return F.interpolate(y, size=tuple(size), mode=_LINEAR[y.ndim - 2], align_corners=True)
