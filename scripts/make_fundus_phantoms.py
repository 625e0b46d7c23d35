"""Draw the sample pictures of the fundus bundles: phantoms, because photographs of patients may not be redistributed.

They show a disc with a cup, vessels that branch from it, the camera's field of view, uneven light and noise. The same
version of numpy gives the same bytes.

    python scripts/make_fundus_phantoms.py
"""

from pathlib import Path

import fire
import numpy as np
from drawing import as_bytes, blend, vessels
from PIL import Image
from scipy.ndimage import gaussian_filter

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"
RETINA, DISC, CUP, BLOOD = ([0.62, 0.26, 0.12], [0.92, 0.62, 0.34], [0.98, 0.83, 0.60], [0.42, 0.10, 0.06])


def ellipse(size: int, centre: tuple[float, float], axes: tuple[float, float]) -> np.ndarray:
    """Return an ellipse: 1 inside, 0 outside, with a soft edge of some pixels."""
    y, x = np.mgrid[:size, :size]
    inside = 1 - np.hypot((x - centre[0]) / axes[0], (y - centre[1]) / axes[1])
    return np.clip(inside * min(axes) / 6 + 0.5, 0, 1)


def phantom(size: int, disc: float, offset: float, width: float, light: float, noise: float, seed: int) -> np.ndarray:
    """Return a square picture, uint8, (size, size, 3).

    Args:
        size: number of pixels on a side.
        disc: radius of the optic disc, as a fraction of the size.
        offset: distance of the disc from the middle along x, as a fraction of the size.
        width: width of the largest vessels, in pixels.
        light: brightness; 1 is that of a good photograph.
        noise: standard deviation of the noise, where 1 is white.
        seed: seed of the vessels and the noise.
    """
    rng = np.random.default_rng(seed)
    centre = (size * (0.5 + offset), size * 0.5)
    radius = size * disc
    picture = np.ones((size, size, 3)) * RETINA
    y, x = np.mgrid[:size, :size] / size - 0.5
    picture *= (1.1 - 0.9 * np.hypot(x, y))[..., None]
    picture *= 1 + 0.5 * gaussian_filter(rng.normal(0, 1, (size, size)), size / 25)[..., None] * size / 50
    for colour, axes in ((DISC, (radius * 0.92, radius)), (CUP, (radius * 0.5, radius * 0.55))):
        picture = blend(picture, ellipse(size, centre, axes), colour)
    picture = blend(picture, 0.75 * gaussian_filter(vessels(size, centre, width, rng), 0.7), BLOOD)
    picture = gaussian_filter(picture, (1, 1, 0)) * light + rng.normal(0, noise, picture.shape)
    return as_bytes(picture)


def main(output_dir: str = str(BUNDLES)) -> None:
    """Write the pictures.

    Args:
        output_dir: folder of the bundles.
    """
    discs = Path(output_dir, "fundus_optic_disc_cup_segmentation", "sample_scans")
    fields = Path(output_dir, "retinal_vessel_segmentation", "sample_scans")
    for folder in (discs, fields):
        folder.mkdir(parents=True, exist_ok=True)
    for name, picture in (
        ("phantom_camera_a", phantom(480, disc=0.25, offset=0.02, width=11, light=1.0, noise=0.015, seed=1)),
        ("phantom_camera_b", phantom(420, disc=0.32, offset=-0.03, width=12, light=0.7, noise=0.04, seed=2)),
    ):
        Image.fromarray(picture).save(discs / f"{name}.jpg", quality=92)
    for name, picture in (
        ("phantom_camera_a", phantom(560, disc=0.07, offset=0.3, width=8, light=1.0, noise=0.015, seed=3)),
        ("phantom_camera_b", phantom(720, disc=0.09, offset=-0.25, width=12, light=0.75, noise=0.03, seed=4)),
    ):
        y, x = np.mgrid[: len(picture), : len(picture)] / len(picture) - 0.5
        picture[np.hypot(x, y) > 0.48] = 0
        Image.fromarray(picture).save(fields / f"{name}.jpg", quality=92)


if __name__ == "__main__":
    fire.Fire(main)
