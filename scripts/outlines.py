"""Say how outlines look: components, holes, and edges that lie on the network's grid of blocks, with Dice beside them.

    python scripts/outlines.py bundles/fundus_optic_disc_cup_segmentation --site home=<drishti_gs>:5 \
        --site rim_one_r2=<folder> --site refuge=<folder> --block 32

A site is a folder of labelled images, `:5` takes every fifth of them. The source network predicts each image, once with
the bundle's cleaning of label maps and once without. `on grid`: how often an outline crosses from one block of the
network's grid to the next one, against what a natural outline does (1.0): blocks show where a network decides by its
deepest feature alone.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from monai.networks import eval_mode
from scipy import ndimage
from tabulate import tabulate
from tqdm import tqdm

from grata.bundles.bundle import Bundle

UNCLEANED = {"keep_largest": False, "fill_holes": False, "smallest": 0}


def on_grid(mask: np.ndarray, block: int) -> tuple[int, int]:
    """Return how many steps between neighbouring pixels of different value lie on the grid, and how many there are."""
    on, total = 0, 0
    for axis in (0, 1):
        places = np.nonzero(np.diff(mask.astype(np.int8), axis=axis))[axis] + 1
        on, total = on + int((places % block == 0).sum()), total + len(places)
    return on, total


def look(mask: np.ndarray) -> tuple[int, int]:
    """Return the number of components of a mask, and of the pixels in its holes."""
    components = ndimage.label(mask, structure=np.ones((3, 3)))[1]
    return components, int((ndimage.binary_fill_holes(mask) & ~mask).sum())


def overlap(mask: np.ndarray, label: np.ndarray) -> float:
    """Return the Dice of two masks; NaN where both are empty."""
    total = mask.sum() + label.sum()
    return float(2 * (mask & label).sum() / total) if total else float("nan")


def measure(opened: Bundle, stride: int, block: int, limit: int | None) -> dict[str, np.ndarray]:
    """Return by structure one line for each image: components, hole pixels, steps on the grid, all steps, Dice."""
    network = opened.make_network()
    found: dict[str, list[tuple[float, ...]]] = {region.label: [] for region in opened.regions}
    for case in tqdm(opened.cases(limit, stride=stride), desc="outlines", unit="image"):
        image = opened.read_image(case)
        with torch.no_grad(), eval_mode(network):
            logits = opened.inferer(image["image"].as_tensor()[None], network)[0].float()
        maps = {space: opened.postprocess(image, logits, space)[0] for space in ("input", "network")}
        label = opened.read_label(case, image, "input")
        for region in opened.regions:
            mask, steps = (np.isin(maps[space], region.values) for space in ("input", "network"))
            real = np.isin(label, region.values)
            dice = overlap(mask, real) if real.any() else float("nan")
            found[region.label].append((*look(mask), *on_grid(steps, block), dice))
    return {name: np.array(lines) for name, lines in found.items()}


def line(site: str, structure: str, cleaned: bool, values: np.ndarray, block: int) -> dict[str, object]:
    """Return a line of the table from what :func:`measure` gives for a structure."""
    components, holes, on, total, dice = values.T
    return {
        "site": site,
        "structure": structure,
        "cleaned": "yes" if cleaned else "no",
        "images": len(values),
        "components, median (most)": f"{np.median(components):.0f} ({components.max():.0f})",
        "in one piece": f"{(components == 1).mean():.0%}",
        "hole pixels, median (most)": f"{np.median(holes):.0f} ({holes.max():.0f})",
        "on grid": f"{on.sum() / max(total.sum(), 1) * block:.2f}",
        "Dice": "-" if np.isnan(dice).all() else f"{np.nanmean(dice):.4f}",
    }


def main() -> None:
    """Print a table of all sites."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="folder of the bundle")
    parser.add_argument("--site", action="append", required=True, help="<name>=<folder>, or <name>=<folder>:<stride>")
    parser.add_argument("--block", type=int, default=32, help="pixels between neighbouring deepest features")
    parser.add_argument("--limit", type=int, help="number of first images of each site")
    parser.add_argument("--weights", help="weights in place of the bundle's")
    given = parser.parse_args()
    lines = []
    for site in given.site:
        name, _, place = site.partition("=")
        folder, _, stride = place.partition(":")
        keys = {"dataset_dir": folder, "prepared": None, "quality": None}
        keys |= {"weights": given.weights} if given.weights else {}
        for cleaned in (True, False):
            opened = Bundle(Path(given.bundle), keys if cleaned else keys | UNCLEANED, "outlines")
            found = measure(opened, int(stride or 1), given.block, given.limit)
            lines += [line(name, structure, cleaned, values, given.block) for structure, values in found.items()]
    print(tabulate(lines, "keys", "pipe", disable_numparse=True))


if __name__ == "__main__":
    main()
