"""Images of the source as other scanners would give them, and images that are no such images at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.transforms import (
    AdjustContrast,
    GaussianSmooth,
    GibbsNoise,
    RandBiasField,
    RandHistogramShift,
    RandomizableTransform,
    RandRicianNoise,
    RandSimulateLowResolution,
)
from torch.nn import functional as F

__all__ = ["SHIFTS", "WRONG", "Simulation"]


@dataclass(frozen=True)
class Simulation:
    """A change of a preprocessed image, and of its label where it moves anything.

    Args:
        name: name of the change.
        image: function of an image ``(C, ...)`` scaled to 0..1, and of a seed.
        label: function of a label ``(K, ...)``; None: nothing moves.
        channels: number of channels that an image needs for it.
    """

    name: str
    image: Callable[[torch.Tensor, int], torch.Tensor]
    label: Callable[[torch.Tensor], torch.Tensor] | None = None
    channels: int = 1

    def __call__(self, image: torch.Tensor, seed: int) -> torch.Tensor:
        """Return the changed image, with the lowest and the highest value of ``image``, ``(C, ...)``."""
        plain = (image.as_tensor() if hasattr(image, "as_tensor") else image).float()
        low, high = plain.min(), plain.max()
        span = (high - low).clamp_min(1e-12)
        changed = self.image((plain - low) / span, seed)
        return torch.as_tensor(np.asarray(changed), dtype=torch.float32) * span + low


def _transform(make: Callable[[], Any]) -> Callable[[torch.Tensor, int], torch.Tensor]:
    def changed(image: torch.Tensor, seed: int) -> torch.Tensor:
        transform = make()
        if isinstance(transform, RandomizableTransform):
            transform.set_random_state(seed=seed)
        result = transform(image)
        return torch.as_tensor(np.asarray(result), dtype=torch.float32).clamp(0, 1)

    return changed


def _coarse(x: torch.Tensor, seed: int) -> torch.Tensor:
    mode = "bilinear" if x.ndim == 3 else "trilinear"
    return _transform(lambda: RandSimulateLowResolution(prob=1.0, zoom_range=(0.4, 0.5), upsample_mode=mode))(x, seed)


def _zoomed(x: torch.Tensor, factor: float, mode: str) -> torch.Tensor:
    """Return an image or label of the same size, seen ``factor`` times as large; the border is repeated outside."""
    grid = [torch.linspace(-1, 1, size) / factor for size in x.shape[1:]]
    mesh = torch.stack(torch.meshgrid(*grid, indexing="ij")[::-1], -1)[None]
    padding = "border" if mode != "nearest" else "zeros"
    return F.grid_sample(x[None].float(), mesh, mode=mode, padding_mode=padding, align_corners=True)[0]


def _zoom(name: str, factor: float) -> Simulation:
    return Simulation(
        name, lambda x, seed: _zoomed(x, factor, "bilinear"), lambda label: _zoomed(label, factor, "nearest")
    )


def _turned(x: torch.Tensor, turns: int) -> torch.Tensor:
    square = x.shape[-1] == x.shape[-2]
    if turns % 2 and not square:
        size = x.shape[-2:]
        turned = torch.rot90(x, turns, (-2, -1)).float()
        return F.interpolate(turned.reshape(1, -1, *turned.shape[-2:]), size=size, mode="nearest").reshape(x.shape)
    return torch.rot90(x, turns, (-2, -1))


def _noise(x: torch.Tensor, seed: int) -> torch.Tensor:
    return torch.rand(x.shape, generator=torch.Generator().manual_seed(seed))


def _texture(x: torch.Tensor, seed: int) -> torch.Tensor:
    smooth = GaussianSmooth(sigma=max(1.0, max(x.shape[1:]) / 32))(_noise(x, seed))
    smooth = torch.as_tensor(np.asarray(smooth))
    return (smooth - smooth.min()) / (smooth.max() - smooth.min()).clamp_min(1e-12)


def _constant(x: torch.Tensor, seed: int) -> torch.Tensor:
    flat = torch.full_like(x, (0.0, 0.5, 1.0)[seed % 3])
    # a trace of noise, because scanners give no exact constant, and a scaling to 0..1 must stay defined
    return (flat + 0.01 * (_noise(x, seed) - 0.5)).clamp(0, 1)


def _phantom(x: torch.Tensor, seed: int) -> torch.Tensor:
    """Return ellipses of random size, place and grey value."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> float:
        return torch.rand(1, generator=generator).item()

    image = torch.full(x.shape[1:], 0.1 * draw())
    mesh = torch.meshgrid(*[torch.linspace(-1, 1, size) for size in x.shape[1:]], indexing="ij")
    for _ in range(4):
        inside = sum(((axis - (1.4 * draw() - 0.7)) / (0.1 + 0.5 * draw())) ** 2 for axis in mesh)
        image = torch.where(torch.as_tensor(inside) < 1, torch.full_like(image, draw()), image)
    tints = torch.tensor([0.5 + 0.5 * draw() for _ in range(len(x))]).reshape(-1, *[1] * image.ndim)
    return image[None] * (tints if len(x) > 1 else 1.0)


def _shuffled(x: torch.Tensor, seed: int) -> torch.Tensor:
    """Return the image cut into quarters along each axis, which change places: its values stay, its anatomy goes."""
    generator = torch.Generator().manual_seed(seed)
    for axis in range(1, x.ndim):
        pieces = x.chunk(4, axis)
        order = torch.randperm(len(pieces), generator=generator).tolist()
        x = torch.cat([pieces[i] for i in order], axis)
    return x


def _tinted(x: torch.Tensor, seed: int) -> torch.Tensor:
    """Return each channel with a gamma of its own, as another camera or another protocol has it."""
    gamma = torch.exp(torch.empty(len(x)).uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(seed)))
    return x.clamp(0, 1) ** gamma.reshape(-1, *[1] * (x.ndim - 1))


def _both(*changes: Callable[[torch.Tensor, int], torch.Tensor]) -> Callable[[torch.Tensor, int], torch.Tensor]:
    def changed(x: torch.Tensor, seed: int) -> torch.Tensor:
        for change in changes:
            x = change(x, seed)
        return x

    return changed


_DARKER = _transform(lambda: AdjustContrast(gamma=1.8))
_BRIGHTER = _transform(lambda: AdjustContrast(gamma=0.55))
_BLUR = _transform(lambda: GaussianSmooth(sigma=1.5))
_RICIAN = _transform(lambda: RandRicianNoise(prob=1.0, std=0.08, sample_std=False))

SHIFTS: tuple[Simulation, ...] = (
    Simulation("none", lambda x, seed: x),
    Simulation("darker", _DARKER),
    Simulation("brighter", _BRIGHTER),
    Simulation("histogram", _transform(lambda: RandHistogramShift(num_control_points=5, prob=1.0))),
    Simulation("bias_field", _transform(lambda: RandBiasField(coeff_range=(0.0, 0.15), prob=1.0))),
    Simulation("blur", _BLUR),
    Simulation("low_resolution", _coarse),
    Simulation("gibbs", _transform(lambda: GibbsNoise(alpha=0.6))),
    Simulation("noise", _RICIAN),
    Simulation("tinted", _tinted),
    Simulation("dark_and_blurred", _both(_DARKER, _BLUR)),
    Simulation("bright_and_noisy", _both(_BRIGHTER, _RICIAN)),
    _zoom("larger", 1.25),
    _zoom("smaller", 0.8),
)
"""Shifts that a network meets at another hospital: intensity, colour, field, resolution, noise, two of these at once,
and moderate scale."""

WRONG: tuple[Simulation, ...] = (
    Simulation("upside_down", lambda x, seed: _turned(x, 2), lambda label: _turned(label, 2)),
    Simulation("sideways", lambda x, seed: _turned(x, 1), lambda label: _turned(label, 1)),
    Simulation("inverted", lambda x, seed: 1 - x),
    Simulation("channels_exchanged", lambda x, seed: x.flip(0), channels=2),
    _zoom("twice_as_large", 2.0),
    _zoom("half_as_large", 0.5),
    Simulation("constant", _constant),
    Simulation("only_noise", _noise),
    Simulation("texture", _texture),
    Simulation("phantom", _phantom),
    Simulation("shuffled", _shuffled),
)
"""Inputs that a network must not be trusted with."""
