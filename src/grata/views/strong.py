"""GraTa's strong view: brightness, contrast, gamma of the negative, noise and blur, drawn per sample and per channel.

The transforms take one sample ``(C, H, W)`` or ``(C, D, H, W)`` and one value for each channel; none changes its input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from monai.networks.layers import gaussian_1d, separable_filtering

from ..settings import Settings, choice, number, numbers

__all__ = ["StrongView", "brightness", "contrast", "gamma_inverted", "gaussian_blur", "min_max"]


# A kernel this wide already takes longer than the network.
_WIDEST_BLUR = 100

_range = partial(numbers, length=2, at_least=0, increasing=True, convert=False)


def _per_channel(values: Sequence[float] | torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    values = torch.as_tensor(values, dtype=x.dtype).to(x.device)
    return values.reshape([-1] + [1] * (x.ndim - 1))


def _spatial(x: torch.Tensor) -> list[int]:
    return list(range(1, x.ndim))


def brightness(x: torch.Tensor, multipliers: Sequence[float] | torch.Tensor) -> torch.Tensor:
    """Return ``x·m``, with one multiplier for each channel."""
    return x * _per_channel(multipliers, x)


def contrast(x: torch.Tensor, factors: Sequence[float] | torch.Tensor) -> torch.Tensor:
    """Return ``(x − mean)·f + mean`` about each channel's mean, clipped to the channel's old minimum and maximum."""
    dims = _spatial(x)
    mean = x.mean(dims, keepdim=True)
    stretched = (x - mean) * _per_channel(factors, x) + mean
    return torch.clamp(stretched, x.amin(dims, keepdim=True), x.amax(dims, keepdim=True))


def gamma_inverted(x: torch.Tensor, gammas: Sequence[float] | torch.Tensor) -> torch.Tensor:
    """Return the gamma of the negative, channel by channel.

    With ``z = −x`` of range ``r``: ``−(((z − min z)/(r + 1e-7))^γ·(r + 1e-7) + min z)``.
    """
    z = -x
    low = z.amin(_spatial(x), keepdim=True)
    span = z.amax(_spatial(x), keepdim=True) - low + 1e-7
    return -(((z - low) / span) ** _per_channel(gammas, x) * span + low)


def gaussian_blur(x: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """Blur each channel by a Gaussian with its own σ (voxels); channels with σ 0 stay as they are.

    The kernel reaches ``int(4σ + 0.5)`` voxels, the border is mirrored half a voxel outside (``d c b a | a b c d``).
    """
    channels = []
    for channel, sigma in zip(x, sigmas, strict=True):
        if sigma > 0:
            kernel = gaussian_1d(torch.tensor(float(sigma)), truncated=4.0, approx="sampled").to(x)
            kernel = kernel / kernel.sum()  # MONAI samples the density, whose sum is 1 only for large σ
            radius = (len(kernel) - 1) // 2
            padded = channel
            for axis in range(channel.ndim):
                size = channel.shape[axis]
                # index of the mirrored voxel, also where the kernel is longer than the image
                reflected = torch.arange(-radius, size + radius, device=x.device) % (2 * size)
                padded = padded.index_select(axis, torch.minimum(reflected, 2 * size - 1 - reflected))
            blurred = separable_filtering(padded[None, None], [kernel] * channel.ndim, mode="zeros")[0, 0]
            channel = blurred[tuple(slice(radius, radius + size) for size in channel.shape)]
        channels.append(channel)
    return torch.stack(channels)


def min_max(x: torch.Tensor) -> torch.Tensor:
    """Scale one sample to 0..1 over all its channels; a constant one becomes 0."""
    low = x.min()
    span = x.max() - low
    return (x - low) / torch.where(span > 0, span, torch.ones_like(span))


class StrongView(Settings):
    """Draws a strong view of every sample of a batch; ranges and probabilities are those of GraTa's reference.

    Applied in this order, each with its probability to a sample: brightness, contrast, gamma of the negative (one value
    for each channel), Gaussian noise (one level for all channels), Gaussian blur (each channel with probability ½ and
    its own σ); then min-max scaling of the sample to 0..1. The contrast factor and γ lie below 1 or above 1 with equal
    chance.
    """

    brightness: tuple[float, float] = _range(default=(0.5, 1.5), help="range of the multipliers")
    contrast: tuple[float, float] = _range(default=(0.5, 1.5), help="range of the factors")
    gamma: tuple[float, float] = _range(default=(0.5, 2.0), help="range of γ")
    noise: tuple[float, float] = _range(
        default=(0.0, 0.05), help="range of the noise's standard deviation, in units of the image scaled to 0..1"
    )
    blur: tuple[float, float] = _range(default=(0.5, 1.5), at_most=_WIDEST_BLUR, help="range of σ, in voxels")
    probabilities: tuple[float, float, float, float, float] = numbers(
        default=(0.75, 0.75, 0.75, 0.5, 0.5),
        length=5,
        at_least=0,
        at_most=1,
        convert=False,
        help="probabilities of the five transforms, in the order above",
    )
    blur_channel_probability: float = number(
        default=0.5, at_least=0, at_most=1, convert=False, help="probability of blurring a channel of a blurred sample"
    )
    output_range: str = choice(
        default="unit",
        of=("unit", "input"),
        help="unit: the view lies in 0..1, as the image does that the network was trained on; input: for networks "
        "trained on another scale, the sample is taken to 0..1 first and the view back to the sample's range",
    )

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return strong views of ``images``.

        Args:
            images: ``(B, C, H, W)`` or ``(B, C, D, H, W)``, any float dtype, any device; not changed.
            generator: a CPU generator; a draw depends on it alone, not on the global one.

        Returns:
            A tensor of the same shape, dtype and device.
        """
        return torch.stack([self._sample(image, generator) for image in images])

    def _sample(self, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        x = image.float()
        if self.output_range == "input":
            low, high = x.min(), x.max()
            x = min_max(x)
        for applied, transform in zip(_chance(self.probabilities, generator), self._transforms()):
            if applied:
                x = transform(x, generator)
        x = min_max(x)
        if self.output_range == "input":
            x = x * (high - low) + low
        return x.to(image.dtype)

    def _transforms(self) -> tuple[Callable[[torch.Tensor, torch.Generator], torch.Tensor], ...]:
        return (
            lambda x, g: brightness(x, _uniform(self.brightness, len(x), g)),
            lambda x, g: contrast(x, _about_one(self.contrast, len(x), g)),
            lambda x, g: gamma_inverted(x, _about_one(self.gamma, len(x), g)),
            self._add_noise,
            self._blur,
        )

    def _add_noise(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        level = _uniform(self.noise, 1, generator).item()
        # The field is drawn where the image lies, from a seed that the one generator gives: no copy of a volume.
        seed = int(torch.randint(2**62, (1,), generator=generator).item())
        on_device = torch.Generator(x.device).manual_seed(seed)
        return x + level * torch.randn(x.shape, generator=on_device, device=x.device, dtype=x.dtype)

    def _blur(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        blurred = _chance([self.blur_channel_probability] * len(x), generator)
        sigmas = _uniform(self.blur, len(x), generator)
        return gaussian_blur(x, torch.where(blurred, sigmas, torch.zeros_like(sigmas)).tolist())


def _uniform(interval: tuple[float, float], n: int, generator: torch.Generator) -> torch.Tensor:
    low, high = interval
    return low + (high - low) * torch.rand(n, generator=generator)


def _chance(probabilities: Sequence[float], generator: torch.Generator) -> torch.Tensor:
    return torch.rand(len(probabilities), generator=generator) < torch.tensor(probabilities)


def _about_one(interval: tuple[float, float], n: int, generator: torch.Generator) -> torch.Tensor:
    low, high = interval
    if not low < 1 < high:
        return _uniform(interval, n, generator)
    below = _chance([0.5] * n, generator)
    return torch.where(below, _uniform((low, 1.0), n, generator), _uniform((1.0, high), n, generator))
