"""Shapes and noise that the scripts of the phantoms share."""

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter


def vessels(size: int, centre: tuple[float, float], width: float, rng: np.random.Generator) -> np.ndarray:
    """Return the share of blood in each pixel, 0 to 1: arcades that start at a point, curve and branch.

    Args:
        size: number of pixels on a side.
        centre: point where the arcades start, (x, y), in pixels.
        width: width of the largest vessels, in pixels.
        rng: generator of directions and branches.
    """
    radius = np.zeros((size, size))
    # Position, direction, curvature, width and generation.
    tips = [(centre, a + rng.normal(0, 0.15), rng.choice([-1, 1]) * 0.004, width, 0) for a in np.arange(6) * np.pi / 3]
    while tips:
        (x, y), angle, curvature, w, generation = tips.pop()
        for _ in range(int(size * 0.6)):
            x, y = x + np.cos(angle), y + np.sin(angle)
            angle += curvature + rng.normal(0, 0.03)
            w *= 0.998
            if not (0 <= x < size and 0 <= y < size) or w < 0.6:
                break
            radius[int(y), int(x)] = max(radius[int(y), int(x)], w / 2)
            if generation < 2 and rng.random() < 0.007:
                turn = rng.choice([-1, 1]) * rng.uniform(0.4, 0.9)
                tips.append(((x, y), angle + turn, curvature, 0.75 * w, generation + 1))
    blood = np.zeros((size, size))
    for level in np.linspace(0.3, radius.max() * 0.99, 12):
        blood = np.maximum(blood, np.clip(level - distance_transform_edt(radius < level) + 0.5, 0, 1))
    return blood


def smooth_noise(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Return noise with mean 0 and standard deviation 1 whose spots have about a given size.

    Args:
        shape: number of pixels along each axis.
        sigma: standard deviation of the Gaussian filter, in pixels.
        rng: generator of the noise.
    """
    noise = gaussian_filter(rng.normal(0, 1, shape), sigma)
    return (noise - noise.mean()) / noise.std()


def blend(picture: np.ndarray, weight: np.ndarray, colour: np.ndarray | list[float]) -> np.ndarray:
    """Return a picture with a colour laid over it.

    Args:
        picture: picture of shape (height, width, 3).
        weight: how much of the colour each pixel takes, 0 to 1, shape (height, width).
        colour: one colour, or a picture of the same shape.
    """
    weight = weight[..., None]
    return (1 - weight) * picture + weight * np.asarray(colour)


def as_bytes(picture: np.ndarray) -> np.ndarray:
    """Return a picture with values 0 to 1 as uint8; values outside are clipped."""
    return (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)
