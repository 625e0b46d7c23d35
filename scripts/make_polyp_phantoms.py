"""Draw the sample pictures of the polyp bundle: phantoms, because they may be redistributed without anyone's consent.

They show the lit field of a colonoscope on black, the colon's wall with folds, vessels and a dark lumen, and one polyp.
The second picture has the blocks of an endoscopy tower's display beside the field; they are no text. The same versions
of numpy, scipy and Pillow give the same bytes.

    python scripts/make_polyp_phantoms.py --label_dir <folder>
"""

from dataclasses import dataclass
from pathlib import Path

import fire
import numpy as np
from drawing import as_bytes, blend, smooth_noise, vessels
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "polyp_endoscopy_segmentation"
BLOOD, GLOSS = [0.55, 0.13, 0.12], [1.0, 0.97, 0.95]


@dataclass(frozen=True)
class Scene:
    """What one picture shows. Points are (x, y) in fractions of the field's size, from its middle.

    Attributes:
        size: height and width of the picture, in pixels.
        field: first row, first column, height and width of the lit field, in pixels.
        corner: what is cut from the field's corners, as a fraction of its size.
        border: brightness of the picture around the field.
        lumen: point where the colon's lumen is.
        polyp: middle of the polyp.
        radius: mean radius of the polyp, as a fraction of the field's size.
        wall_colour: colour of the wall in full light.
        polyp_colour: colour of the polyp in full light.
        light: brightness; 1 is that of a good picture.
        noise: standard deviation of the noise, where 1 is white.
        seed: seed of all that is drawn at random.
    """

    size: tuple[int, int]
    field: tuple[int, int, int, int]
    corner: float
    border: float
    lumen: tuple[float, float]
    polyp: tuple[float, float]
    radius: float
    wall_colour: tuple[float, float, float]
    polyp_colour: tuple[float, float, float]
    light: float
    noise: float
    seed: int


SCENES = {
    "phantom_tower_a": Scene(
        size=(352, 352),
        field=(0, 0, 352, 352),
        corner=0.27,
        border=0.0,
        lumen=(-0.26, -0.24),
        polyp=(0.12, 0.13),
        radius=0.17,
        wall_colour=(0.86, 0.50, 0.42),
        polyp_colour=(0.95, 0.55, 0.45),
        light=1.0,
        noise=0.008,
        seed=1,
    ),
    "phantom_tower_b": Scene(
        size=(320, 384),
        field=(6, 46, 308, 326),
        corner=0.22,
        border=0.06,
        lumen=(0.22, -0.25),
        polyp=(-0.08, 0.12),
        radius=0.14,
        wall_colour=(0.80, 0.47, 0.43),
        polyp_colour=(0.84, 0.40, 0.37),
        light=0.95,
        noise=0.015,
        seed=2,
    ),
}


def grid(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of each pixel, in fractions of the field's size from its middle."""
    top, left, height, width = scene.field
    y, x = np.mgrid[: scene.size[0], : scene.size[1]] + 0.5
    return (x - left - width / 2) / height, (y - top - height / 2) / height


def lit(scene: Scene) -> np.ndarray:
    """Return the lit field, an octagon: 1 inside, 0 outside, with an edge of one pixel."""
    top, left, height, width = scene.field
    x, y = grid(scene)
    a, b = width / height / 2, 0.5
    diagonal = (a + b - scene.corner - abs(x) - abs(y)) / np.sqrt(2)
    # A field that fills the picture is not cut at the picture's sides.
    sides = [inside for inside, whole in ((a - abs(x), left == 0), (b - abs(y), top == 0)) if not whole]
    return np.clip(np.min([diagonal, *sides], 0) * height + 0.5, 0, 1)


def dome(scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where each pixel lies on the polyp: x and y in radii from its middle, and the distance, 1 at its rim."""
    x, y = grid(scene)
    x, y = (x - scene.polyp[0]) / scene.radius, (y - scene.polyp[1]) / scene.radius
    angle, outline = np.arctan2(y, x), np.ones(scene.size)
    for lobes, size in ((2, 0.12), (3, 0.06), (5, 0.03)):
        outline += size * np.cos(lobes * angle + rng.uniform(0, 2 * np.pi))
    return x / outline, y / outline, np.hypot(x, y) / outline


def wall(scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the wall's picture, without polyp and gloss, and how much it faces the camera, 0 to 1."""
    x, y = grid(scene)
    height = scene.field[2]
    x, y = (v + 0.02 * smooth_noise(scene.size, height / 9, rng) for v in (x - scene.lumen[0], y - scene.lumen[1]))
    r = np.hypot(x, y * 1.15)
    # Folds follow each other at equal distances along the colon, so at equal ratios of the distance from its axis.
    depth = 2.1 * np.log(r + 0.03) + 0.18 * smooth_noise(scene.size, height / 6, rng)
    rise = (depth % 1) ** 3
    edge = np.clip((1 - depth % 1) / 0.08, 0, 1)
    folds = gaussian_filter(rise * edge, height / 250)
    strength = np.clip(1.4 - 1.3 * r, 0.25, 1)
    shade = np.clip(1.12 - 0.85 * np.exp(-((r / 0.2) ** 2)) - 0.35 * r, 0.06, 1.2)
    shade *= 1 + strength * (0.45 * folds - 0.22 * gaussian_filter(1.0 * (depth % 1 < 0.18), height / 120))
    shade *= 1 + 0.05 * smooth_noise(scene.size, height / 14, rng) + 0.02 * smooth_noise(scene.size, 1.2, rng)
    # What gets little light looks redder.
    picture = np.array(scene.wall_colour) * shade[..., None] ** [0.9, 1.15, 1.2]
    side = max(scene.size)
    blood = np.zeros((side, side))
    for _ in range(4):
        blood = np.maximum(blood, vessels(side, tuple(rng.uniform(0, side, 2)), height / 140, rng))
    place = np.mgrid[: scene.size[0], : scene.size[1]]
    winding = [height / 70 * smooth_noise(scene.size, height / 35, rng) for _ in range(2)]
    blood = map_coordinates(gaussian_filter(blood, 0.8), place + winding, order=1, mode="nearest")
    picture = blend(picture, 0.32 * blood * np.clip(2 * r, 0, 1), np.array(BLOOD) * shade[..., None])
    return picture, np.clip(shade, 0, 1) * (0.5 + 0.5 * folds)


def draw(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Return the picture, uint8, (height, width, 3), and the polyp's mask, uint8, 0 or 255, (height, width)."""
    rng = np.random.default_rng(scene.seed)
    height = scene.field[2]
    picture, gloss = wall(scene, rng)
    x, y, distance = dome(scene, rng)
    inside = np.clip((1 - distance) * scene.radius * height + 0.5, 0, 1)
    # The polyp hides light from the wall behind it, on the lumen's side, and the wall sinks around its foot.
    away = np.subtract(scene.lumen, scene.polyp)
    away = away / np.linalg.norm(away)
    shadow = np.exp(-(np.clip(np.hypot(x - 0.28 * away[0], y - 0.28 * away[1]) - 0.85, 0, None) ** 2) / 0.05)
    foot = np.exp(-(((distance - 1) / 0.1) ** 2))
    picture *= (1 - 0.38 * shadow - 0.15 * foot)[..., None]
    rise = np.sqrt(np.clip(1 - distance**2, 0, 1))
    facing = 0.62 * rise - 0.3 * (x * away[0] + y * away[1]) - 0.12 * y
    spots = smooth_noise(scene.size, height / 130, rng) - smooth_noise(scene.size, height / 60, rng)
    shade = 0.42 + 0.95 * facing + 0.03 * spots + 0.04 * smooth_noise(scene.size, height / 25, rng)
    own = np.array(scene.polyp_colour) * np.clip(shade, 0.15, 1.25)[..., None] ** [0.9, 1.15, 1.2]
    own = blend(own, np.clip(0.12 * (spots - 0.5), 0, 0.3), BLOOD)
    picture = blend(picture, inside, own)
    picture = blend(picture, highlights(scene, (1 - inside) * gloss + inside * (0.2 + 1.15 * facing), rng), GLOSS)
    picture = gaussian_filter(picture, (0.7, 0.7, 0)) * scene.light + rng.normal(0, scene.noise, picture.shape)
    field = lit(scene)
    picture = blend(np.full(picture.shape, scene.border), field, picture)
    if scene.border:
        picture = np.maximum(picture, 0.8 * blocks(scene, rng)[..., None])
    return as_bytes(picture), (255 * (distance < 1) * (field > 0.5)).astype(np.uint8)


def highlights(scene: Scene, gloss: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the mirror images of the lamp, 0 to 1: irregular spots where the surface faces the camera.

    Args:
        scene: scene that is drawn.
        gloss: how much each pixel's surface faces the camera, 0 to 1, shape (height, width).
        rng: generator of the spots.
    """
    height = scene.field[2]
    spots = smooth_noise(scene.size, height / 110, rng) + 0.8 * smooth_noise(scene.size, height / 22, rng)
    mirrored = np.clip((gloss + 0.17 * spots - 1.13) / 0.1, 0, 1)
    return np.maximum(mirrored, 0.7 * gaussian_filter(mirrored, height / 110))


def blocks(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Return what stands for the tower's display left of the field: rows of small glyphs that mean nothing, 0 or 1."""
    display = np.zeros(scene.size)
    for row, glyphs in zip((8, 20, 40, 50, 60, 92, 102, 122), (3, 6, 9, 7, 8, 10, 6, 8), strict=True):
        for column in range(4, 4 + 5 * glyphs, 5):
            display[row : row + 5, column : column + 3] = rng.random((5, 3)) < 0.6
    return display


def main(output_dir: str = str(BUNDLE / "sample_scans"), label_dir: str | None = None) -> None:
    """Write the pictures.

    Args:
        output_dir: folder of the pictures.
        label_dir: folder of the polyps' masks (PNG, 0 or 255, with the pictures' names); without it, none are written.
    """
    for folder in (output_dir, label_dir):
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
    for name, scene in SCENES.items():
        picture, mask = draw(scene)
        Image.fromarray(picture).save(Path(output_dir, f"{name}.jpg"), quality=92)
        if label_dir is not None:
            Image.fromarray(mask).save(Path(label_dir, f"{name}.png"))


if __name__ == "__main__":
    fire.Fire(main)
