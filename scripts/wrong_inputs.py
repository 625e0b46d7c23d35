"""Write wrong inputs for a bundle, to measure how many of them a guard recognizes.

    python scripts/wrong_inputs.py --task fundus --data ../shared/data --output_dir wrong/fundus

`data` holds the folders `hippocampus_mri`, `fundus_optic`, `retinal_vessel`, `polyp` and `cardiac_cine`. Every kind of
wrong input gets a folder `output_dir/<kind>`, which the bundle's `adapt.yaml` reads as `dataset_dir`. The file
`output_dir/manifest.csv` lists the columns case, kind and origin. The same seed gives the same files.

Kinds from other data sets, where the task has them:

- `other_organ`: heart MRI for the hippocampus, colonoscopy for the eye, eyes for the colon, heads for the heart
- `other_organ_region`: the heart, cut to the size of a hippocampus region; hippocampus regions for the heart
- `other_modality`: T2 and FLAIR regions for the hippocampus, MRI slices for eye and colon
- `video`: frames of a colonoscopy as the slices of a volume
- `whole_image`: the whole head or fundus instead of the region
- `disc_region`: the region around the disc instead of the whole fundus
- `no_structure`: a region of the same anatomy without the structure: upper brain, macula

Kinds that alter right images: held-out images of the source site, every fifth, as in the bundle's `train.yaml`. DRIVE
has 8 of them, so these kinds have 8 files for vessels.

- `upside_down`, `sideways`: turned by 180° or 90° under an unchanged header (not of colon and heart, which lie
  in any way)
- `half_scale`, `double_scale`: zoomed out or in by two under an unchanged header (not of the colon: a polyp has
  any size)
- `inverted`, `swapped_channels` (pictures)
- faults of intensity: `dark` (multiplied by 0.05), `bright` (saturated), `times_100` (volumes)

Drawn kinds: `empty`, `noise`, `texture` (smoothed noise) and `phantom` (spheres, checkerboards, stripes and boxes).
"""

import argparse
import csv
from collections.abc import Callable, Iterator
from itertools import chain, zip_longest
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
from monai.data import ITKReader, create_test_image_2d, create_test_image_3d
from monai.transforms import (
    CenterSpatialCrop,
    Compose,
    Identity,
    LoadImage,
    Orientation,
    Resize,
    Spacing,
    Zoom,
)
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.filters import threshold_otsu
from tqdm import tqdm

from grata.bundles.groups import every_group, optional_groups


class Case(NamedTuple):
    """Image to write.

    Attributes:
        name: file name without suffix.
        origin: path below the data folder, or what drew the image.
        values: float values, (1, H, W, D) for a volume, (3, H, W) in 0..255 for a picture.
        affine: affine of a volume; None: picture.
    """

    name: str
    origin: str
    values: np.ndarray
    affine: np.ndarray | None = None


Maker = Callable[[Path, int, np.random.Generator], Iterator[Case]]

PHOTOGRAPHS = ("retinal_vessel/drive", "retinal_vessel/stare", "retinal_vessel/chase_db1")
COLONOSCOPY = ("polyp/kvasir_seg", "polyp/cvc_clinicdb", "polyp/polypgen_c1", "polyp/polypgen_c2", "polyp/polypgen_c3")
HEARTS = ("cardiac_cine/mms_vendor_a", "cardiac_cine/mms_vendor_b")
DISC_REGIONS = ("fundus_optic/drishti_gs", "fundus_optic/rim_one_r2")
HEADS = "hippocampus_mri/dicom"
# The hippocampus ends more than 65 mm below the crown of an adult.
UPPER_BRAIN = 65


def paths_of(folder: Path) -> list[Path]:
    """Return the images of a site, sorted."""
    paths = sorted((folder / "images").glob("*.*"))
    if not paths:
        raise SystemExit(f"{folder / 'images'} holds no image. Give the folder of the data sets with --data.")
    return paths


def held_out(data: Path, task: "Task") -> list[Path]:
    """Return the images of the source site that were held out of the training: those of every fifth patient."""
    cases = [{"case": path.name.split(".")[0], "path": path} for path in paths_of(data / task.source)]
    return [case["path"] for case in every_group(cases, 5, optional_groups(task.groups))]


def draw(data: Path, sites: tuple[str, ...], count: int, rng: np.random.Generator) -> list[Path]:
    """Return up to `count` images, one from each site in turn."""
    shuffled = [rng.permutation(paths_of(data / site)) for site in sites]
    return [path for path in chain.from_iterable(zip_longest(*shuffled)) if path is not None][:count]


def read(path: Path, data: Path) -> Case:
    """Return an image as it is stored, named after its site and file."""
    name, origin = f"{path.parts[-3]}_{path.name.split('.')[0]}", path.relative_to(data).as_posix()
    if path.name.endswith((".nii", ".nii.gz")):
        image = nibabel.load(path)
        return Case(name, origin, image.get_fdata(dtype=np.float32)[None], image.affine)
    return Case(name, origin, np.asarray(Image.open(path).convert("RGB"), np.float32).transpose(2, 0, 1))


def write(case: Case, folder: Path) -> None:
    """Write a case as NIfTI or PNG."""
    if case.affine is None:
        pixels = np.clip(case.values, 0, 255).round().astype(np.uint8).transpose(1, 2, 0)
        Image.fromarray(pixels).save(folder / f"{case.name}.png")
    else:
        image = nibabel.Nifti1Image(case.values[0].astype(np.float32), case.affine)
        image.header.set_xyzt_units("mm")
        nibabel.save(image, folder / f"{case.name}.nii.gz")


# Images of other data sets


def unchanged(*sites: str) -> Maker:
    """Return a maker of images as the sites store them."""

    def make(data: Path, count: int, rng: np.random.Generator) -> Iterator[Case]:
        for path in draw(data, sites, count, rng):
            yield read(path, data)

    return make


def source_shapes(data: Path, task: str, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Return the shapes of a task's held-out source images, in random order."""
    return [nibabel.load(path).shape for path in rng.permutation(held_out(data, TASKS[task]))]


def heart_regions(data: Path, count: int, rng: np.random.Generator) -> Iterator[Case]:
    """Yield the middle of heart volumes in the size of hippocampus regions, at 1 mm for slices that are 8 mm apart."""
    shapes = source_shapes(data, "hippocampus", rng)
    for number, path in enumerate(draw(data, HEARTS, count, rng)):
        case = read(path, data)
        *plane, depth = case.values.shape[1:]
        crop = Compose([Resize((*plane, 8 * depth), mode="trilinear"), CenterSpatialCrop(shapes[number % len(shapes)])])
        yield case._replace(values=np.asarray(crop(case.values)))


def heads(data: Path, pattern: str, pixdim: tuple[float, ...] | None = None) -> Iterator[Case]:
    """Yield the head of each DICOM series whose folder matches a pattern.

    Args:
        data: folder of the data sets.
        pattern: pattern of the folder's name.
        pixdim: spacing in mm to resample to; None: as acquired.
    """
    load = Compose([LoadImage(ITKReader(), ensure_channel_first=True), Orientation("RAS", labels=None)])
    resample = Spacing(pixdim, mode="bilinear") if pixdim else Identity()
    for folder in sorted((data / HEADS).glob(f"*/{pattern}")):
        image = resample(load(folder))
        name = f"{folder.parent.name}_{folder.name}"
        yield Case(name, folder.relative_to(data).as_posix(), np.asarray(image), np.asarray(image.affine))


def whole_heads(data: Path, count: int, rng: np.random.Generator) -> Iterator[Case]:
    """Yield whole heads as acquired, then at 2 mm, then their upper and their lower halves."""
    acquired, coarse = list(heads(data, "*-T*")) + list(heads(data, "*-FLAIR*")), list(heads(data, "*-*", (2, 2, 2)))
    half = acquired[0].values.shape[-1] // 2
    cases = [case._replace(name=f"{case.name}_acquired") for case in acquired]
    cases += [case._replace(name=f"{case.name}_2mm") for case in coarse]
    for name, part in (("upper_half", slice(half, None)), ("lower_half", slice(None, half))):
        for case in acquired:
            affine = case.affine.copy()
            affine[:3, 3] += affine[:3, 2] * (part.start or 0)
            cases.append(Case(f"{case.name}_{name}", case.origin, case.values[..., part], affine))
    yield from cases[:count]


def head_regions(pattern: str, depth: float) -> Maker:
    """Return a maker of head regions at 1 mm, in the size of hippocampus regions.

    Args:
        pattern: pattern of the series' folder.
        depth: how far below the crown a region may reach, in mm.
    """

    def make(data: Path, count: int, rng: np.random.Generator) -> Iterator[Case]:
        sources, shapes = list(heads(data, pattern, (1, 1, 1))), source_shapes(data, "hippocampus", rng)
        for number in range(count):
            case, shape = sources[number % len(sources)], np.asarray(shapes[number % len(shapes)])
            first = place(case.values[0], shape, depth, rng)
            region = tuple(slice(a, a + b) for a, b in zip(first, shape))
            affine = case.affine.copy()
            affine[:3, 3] = nibabel.affines.apply_affine(affine, first)
            yield Case(f"{case.name}_{number:02d}", case.origin, case.values[:, *region], affine)

    return make


def place(head: np.ndarray, shape: np.ndarray, depth: float, rng: np.random.Generator) -> np.ndarray:
    """Return the first voxel of a random region that is filled by the head.

    Args:
        head: head at 1 mm in RAS order, (H, W, D).
        shape: shape of the region.
        depth: how far below the crown the region may reach, in mm.
        rng: generator of the place.
    """
    mask = gaussian_filter(head, 2) > threshold_otsu(head) / 2
    crown = np.flatnonzero(mask.mean((0, 1)) > 0.02).max()
    lowest = [0, 0, max(0, crown - int(depth))]
    for _ in range(10_000):
        first = rng.integers(lowest, np.maximum(np.add(lowest, 1), np.asarray(head.shape) - shape))
        if mask[tuple(slice(a, a + b) for a, b in zip(first, shape))].mean() > 0.95:
            return first
    raise SystemExit("No region is filled by the head.")


def videos(task: str) -> Maker:
    """Return a maker of volumes whose slices are frames of a colonoscopy, in the size of a task's source images."""

    def make(data: Path, count: int, rng: np.random.Generator) -> Iterator[Case]:
        shapes, sites = source_shapes(data, task, rng), COLONOSCOPY[1:]
        for number in range(count):
            *plane, depth = shapes[number % len(shapes)]
            paths = paths_of(data / sites[number % len(sites)])
            first = rng.integers(len(paths) - depth)
            frames = [Image.open(path).convert("L").resize(plane) for path in paths[first : first + depth]]
            volume = np.stack([np.asarray(frame, np.float32).T for frame in frames], -1)[None]
            name = f"{sites[number % len(sites)].split('/')[1]}_{number:02d}"
            yield Case(name, paths[first].relative_to(data).as_posix(), volume, np.eye(4))

    return make


def slices(data: Path, count: int, rng: np.random.Generator) -> Iterator[Case]:
    """Yield slices of hearts and heads as grey pictures of three equal channels."""
    whole = list(heads(data, "*-*"))
    hearts = draw(data, HEARTS, count, rng)
    for number in range(count):
        case = whole[number // 2 % len(whole)] if number % 2 else read(hearts[number], data)
        depth = case.values.shape[-1]
        index = rng.integers(depth // 4, 3 * depth // 4)
        picture = np.rot90(case.values[0, ..., index])
        low, high = np.percentile(picture, (0.5, 99.5))
        picture = np.clip((picture - low) / (high - low), 0, 1) * 255
        yield Case(f"{case.name}_slice_{index:02d}", case.origin, np.repeat(picture[None], 3, axis=0))


def maculas(data: Path, count: int, rng: np.random.Generator) -> Iterator[Case]:
    """Yield regions of DRIVE photographs, as wide as the usual region around the disc, on the side without disc."""
    for path in draw(data, PHOTOGRAPHS[:1], count, rng):
        case = read(path, data)
        height, width = case.values.shape[1:]
        # The photographs are centred on the macula, so the brightest spot shows the side of the disc.
        _, disc = np.unravel_index(gaussian_filter(case.values[:2].mean(0), width / 40).argmax(), (height, width))
        away = -1 if disc > width / 2 else 1
        # 13 of the camera's 45 degrees.
        size = round(width * 13 / 45)
        x = round(width * (0.5 + away * rng.uniform(0, 0.2))) - size // 2
        y = round(height * (0.5 + rng.uniform(-0.1, 0.1))) - size // 2
        yield case._replace(values=case.values[:, y : y + size, x : x + size])


# Right images, altered


def inverted(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return dark for bright."""
    return values.max() + values.min() - values


def bright(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return an image whose upper three quarters of the range are saturated."""
    low, high = values.min(), np.percentile(values, 99.5)
    return np.minimum(low + 4 * (values - low), high)


ALTERATIONS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "upside_down": lambda values, rng: np.rot90(values, 2, axes=(-2, -1)),
    "sideways": lambda values, rng: np.rot90(values, rng.choice([1, 3]), axes=(-2, -1)),
    "inverted": inverted,
    "half_scale": lambda values, rng: np.asarray(Zoom(0.5, mode="area", padding_mode="edge")(values)),
    "double_scale": lambda values, rng: np.asarray(Zoom(2.0, mode=1)(values)),
    "dark": lambda values, rng: 0.05 * values,
    "bright": bright,
}


# Drawn images


def empty(shape: tuple[int, ...], number: int, rng: np.random.Generator) -> np.ndarray:
    """Return black, white, mid grey, then random colours."""
    levels = [0.0, 1.0, 0.5]
    colour = np.full(shape[0], levels[number]) if number < len(levels) else rng.random(shape[0])
    return np.ones(shape) * colour.reshape(-1, *[1] * (len(shape) - 1))


def noise(shape: tuple[int, ...], number: int, rng: np.random.Generator) -> np.ndarray:
    """Return white noise, uniform or normal."""
    return rng.random(shape) if number % 2 else np.clip(rng.normal(0.5, 0.15, shape), 0, 1)


def texture(shape: tuple[int, ...], number: int, rng: np.random.Generator) -> np.ndarray:
    """Return noise smoothed by 1/64 to 1/8 of the shortest side, over the full range."""
    sigma = min(shape[1:]) * 2 ** rng.uniform(-6, -3)
    smooth = gaussian_filter(rng.normal(size=shape), (0, *[sigma] * (len(shape) - 1)))
    return (smooth - smooth.min()) / np.ptp(smooth)


def spheres(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return spheres of random size and value; discs in 2D."""
    create = create_test_image_3d if len(shape) == 3 else create_test_image_2d
    state = np.random.RandomState(rng.integers(2**31))
    largest = min(shape) // 3
    return create(*shape, num_objs=5, rad_max=largest, rad_min=largest // 3, noise_max=0.0, random_state=state)[0]


def checkerboard(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return fields with sides of 1/16 to 1/4 of the shortest side."""
    side = max(1, int(min(shape) * 2 ** rng.uniform(-4, -2)))
    return (np.indices(shape) // side).sum(0) % 2


def stripes(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return waves along a random direction."""
    direction = rng.normal(size=len(shape))
    place = np.tensordot(direction / np.linalg.norm(direction), np.indices(shape), 1) / min(shape)
    return np.sin(2 * np.pi * rng.uniform(2, 10) * place) / 2 + 0.5


def boxes(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return boxes inside each other, brighter towards the middle."""
    ends = np.asarray(shape).reshape(-1, *[1] * len(shape)) - 1
    depth = np.abs(2 * np.indices(shape) / ends - 1).max(0)
    count = rng.integers(2, 6)
    return np.floor((1 - depth) * count).clip(0, count - 1) / (count - 1)


def phantom(shape: tuple[int, ...], number: int, rng: np.random.Generator) -> np.ndarray:
    """Return a figure in one random colour on another, with noise of 2 %."""
    figure = (spheres, checkerboard, stripes, boxes)[number % 4](shape[1:], rng)
    ground, colour = rng.uniform([[0], [0.5]], [[0.5], [1]], (2, shape[0])).reshape(2, -1, *[1] * (len(shape) - 1))
    return np.clip(ground + figure * (colour - ground) + rng.normal(0, 0.02, shape), 0, 1)


DRAWINGS = {"empty": empty, "noise": noise, "texture": texture, "phantom": phantom}


class Task(NamedTuple):
    """What is wrong for a bundle.

    Attributes:
        source: source site, of which the images of every fifth patient are altered.
        foreign: kind to maker of images from other data sets.
        alterations: kind to function of a right image's values, besides those of every bundle.
        harmless: those of every bundle that leave a right image right.
        groups: pattern of an image's name that gives its patient; None: each image is of another one.
    """

    source: str
    foreign: dict[str, Maker]
    alterations: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]]
    harmless: tuple[str, ...] = ()
    groups: str | None = None


SWAPPED = {"swapped_channels": lambda values, rng: values[::-1]}
HUNDREDFOLD = {"times_100": lambda values, rng: 100 * values}
TURNED, SCALED = ("upside_down", "sideways"), ("half_scale", "double_scale")
TASKS = {
    "hippocampus": Task(
        "hippocampus_mri/source",
        {
            "other_organ": unchanged(*HEARTS),
            "other_organ_region": heart_regions,
            "other_modality": head_regions("*reg-*", depth=160),
            "video": videos("hippocampus"),
            "whole_image": whole_heads,
            "no_structure": head_regions("*T1*", depth=UPPER_BRAIN),
        },
        HUNDREDFOLD,
    ),
    "fundus": Task(
        "fundus_optic/drishti_gs",
        {
            "other_organ": unchanged(*COLONOSCOPY),
            "other_modality": slices,
            "whole_image": unchanged(*PHOTOGRAPHS),
            "no_structure": maculas,
        },
        SWAPPED,
    ),
    "vessel": Task(
        "retinal_vessel/drive",
        {"other_organ": unchanged(*COLONOSCOPY), "other_modality": slices, "disc_region": unchanged(*DISC_REGIONS)},
        SWAPPED,
    ),
    "polyp": Task(
        "polyp/kvasir_seg",
        {"other_organ": unchanged(*PHOTOGRAPHS, *DISC_REGIONS), "other_modality": slices},
        SWAPPED,
        TURNED + SCALED,
    ),
    "cardiac": Task(
        "cardiac_cine/mms_vendor_a",
        {
            "other_organ": whole_heads,
            "other_organ_region": unchanged("hippocampus_mri/source", "hippocampus_mri/target"),
            "video": videos("cardiac"),
        },
        HUNDREDFOLD,
        TURNED,
        groups="(.*)_E[DS]",
    ),
}


def altered(task: Task, alteration: Callable) -> Maker:
    """Return a maker of held-out source images that are altered."""

    def make(data: Path, count: int, rng: np.random.Generator) -> Iterator[Case]:
        for path in sorted(rng.permutation(held_out(data, task))[:count]):
            case = read(path, data)
            yield case._replace(values=alteration(case.values, rng))

    return make


def drawn(task: Task, kind: str) -> Maker:
    """Return a maker of drawn images in the size of held-out source images."""

    def make(data: Path, count: int, rng: np.random.Generator) -> Iterator[Case]:
        paths = rng.permutation(held_out(data, task))
        for number in range(count):
            case = read(paths[number % len(paths)], data)
            values = DRAWINGS[kind](case.values.shape, number, rng)
            scale = 255 if case.affine is None else 1000
            yield Case(f"{kind}_{number:02d}", "drawn", scale * values, case.affine)

    return make


def makers(task: Task) -> dict[str, Maker]:
    """Return the maker of each kind."""
    of_every = {kind: alteration for kind, alteration in ALTERATIONS.items() if kind not in task.harmless}
    alterations = of_every | task.alterations
    return (
        task.foreign
        | {kind: altered(task, alteration) for kind, alteration in alterations.items()}
        | {kind: drawn(task, kind) for kind in DRAWINGS}
    )


def main() -> None:
    """Parse the command line and write the images and the manifest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder that receives a folder for every kind")
    parser.add_argument("--count", type=int, default=20, help="largest number of images of a kind")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rows = []
    for kind, make in makers(TASKS[arguments.task]).items():
        folder = arguments.output_dir / kind
        folder.mkdir(parents=True, exist_ok=True)
        # A generator for each kind: another kind, added later, leaves the files of this one as they are.
        rng = np.random.default_rng([arguments.seed, *kind.encode()])
        for case in tqdm(make(arguments.data, arguments.count, rng), desc=kind, unit="case", total=arguments.count):
            write(case, folder)
            rows.append((case.name, kind, case.origin))
    with (arguments.output_dir / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("case", "kind", "origin"), *rows])


if __name__ == "__main__":
    main()
