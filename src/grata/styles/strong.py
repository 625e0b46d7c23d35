"""GraTa's strong view: brightness, contrast, gamma of the negative, noise and blur, drawn per sample and per channel.

The transforms take one sample ``(C, H, W)`` or ``(C, D, H, W)`` and one value for each channel; none writes into its input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.networks.layers import gaussian_1d, separable_filtering

from ..errors import GrataError

__all__ = ["StrongView", "brightness", "contrast", "gamma_inverted", "gaussian_blur", "min_max"]


# A kernel this wide already takes longer than the network.
_WIDEST_BLUR = 100


def _per_channel(values: Sequence[float] | torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    values = torch.as_tensor(values, dtype=x.dtype).to(x.device)
    return values.reshape([-1] + [1] * (x.ndim - 1))


def _spatial(x: torch.Tensor) -> list[int]:
    return list(range(1, x.ndim))


def brightness(x: torch.Tensor, multipliers: Sequence[float]) -> torch.Tensor:
    """``x·m``, one multiplier a channel."""
    return x * _per_channel(multipliers, x)


def contrast(x: torch.Tensor, factors: Sequence[float]) -> torch.Tensor:
    """``(x − mean)·f + mean`` about each channel's mean, clipped to the channel's old minimum and maximum."""
    dims = _spatial(x)
    mean = x.mean(dims, keepdim=True)
    stretched = (x - mean) * _per_channel(factors, x) + mean
    return torch.clamp(stretched, x.amin(dims, keepdim=True), x.amax(dims, keepdim=True))


def gamma_inverted(x: torch.Tensor, gammas: Sequence[float]) -> torch.Tensor:
    """Gamma of the negative, each channel.

    With ``z = −x`` of range ``r``: ``−(((z − min z)/(r + 1e-7))^γ·(r + 1e-7) + min z)``.
    """
    z = -x
    low = z.amin(_spatial(x), keepdim=True)
    span = z.amax(_spatial(x), keepdim=True) - low + 1e-7
    return -(((z - low) / span) ** _per_channel(gammas, x) * span + low)


def gaussian_blur(x: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """Gaussian blur of each channel with its own σ (voxels); channels with σ 0 stay as they are.

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
    """One sample scaled to 0..1 over all its channels; a constant one becomes 0."""
    low = x.min()
    span = x.max() - low
    return (x - low) / torch.where(span > 0, span, torch.ones_like(span))


@dataclass(frozen=True)
class StrongView:
    """Draws a strong view of every sample of a batch; ranges and probabilities are those of GraTa's reference.

    Applied in this order, each with its probability to a sample: brightness, contrast, gamma of the negative (one value
    a channel), Gaussian noise (one level for all channels), Gaussian blur (each channel with probability ½, its own σ);
    then min-max scaling of the sample to 0..1. Contrast factor and γ lie below 1 or above 1 with equal chance.

    Args:
        brightness: range of the multipliers.
        contrast: range of the factors.
        gamma: range of γ.
        noise: range of the noise's standard deviation, in units of the image scaled to 0..1.
        blur: range of σ, in voxels.
        probabilities: of the five transforms, in the order above.
        blur_channel_probability: of blurring a channel of a sample that is blurred.
        output_range: ``unit``: the view lies in 0..1, as the image does that the network was trained on; ``input``: for
            networks trained on another scale, the sample is taken to 0..1 first and the view back to the sample's range.
    """

    brightness: tuple[float, float] = (0.5, 1.5)
    contrast: tuple[float, float] = (0.5, 1.5)
    gamma: tuple[float, float] = (0.5, 2.0)
    noise: tuple[float, float] = (0.0, 0.05)
    blur: tuple[float, float] = (0.5, 1.5)
    probabilities: tuple[float, float, float, float, float] = (0.75, 0.75, 0.75, 0.5, 0.5)
    blur_channel_probability: float = 0.5
    output_range: str = "unit"

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "gamma", "noise", "blur"):
            interval = getattr(self, name)
            if not _are_numbers(interval, 2) or not 0 <= interval[0] <= interval[1] < math.inf:
                raise GrataError(f"{name} must be [low, high] with 0 ≤ low ≤ high, got {interval}.", key="strong_view")
        if self.blur[1] > _WIDEST_BLUR:
            raise GrataError(f"blur must not exceed {_WIDEST_BLUR} voxels, got {self.blur}.", key="strong_view")
        if not _are_numbers(self.probabilities, 5) or not all(0 <= p <= 1 for p in self.probabilities):
            raise GrataError(
                f"probabilities must be five numbers in 0..1, got {self.probabilities}.", key="strong_view"
            )
        if not _are_numbers((self.blur_channel_probability,), 1) or not 0 <= self.blur_channel_probability <= 1:
            raise GrataError(
                f"blur_channel_probability must lie in 0..1, got {self.blur_channel_probability}.", key="strong_view"
            )
        if self.output_range not in ("unit", "input"):
            raise GrataError(f"output_range must be unit or input, got {self.output_range!r}.", key="strong_view")

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Strong views of ``images``.

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
        seed = torch.randint(2**62, (1,), generator=generator).item()
        on_device = torch.Generator(x.device).manual_seed(seed)
        return x + level * torch.randn(x.shape, generator=on_device, device=x.device, dtype=x.dtype)

    def _blur(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        blurred = _chance([self.blur_channel_probability] * len(x), generator)
        sigmas = _uniform(self.blur, len(x), generator)
        return gaussian_blur(x, torch.where(blurred, sigmas, torch.zeros_like(sigmas)).tolist())


def _are_numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, Sequence)
        and len(values) == count
        and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    )


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
