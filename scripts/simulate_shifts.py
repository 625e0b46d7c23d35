"""Simulate other scanners on the held-out cases of a source site, to choose settings without using a target site.

    python scripts/simulate_shifts.py --dataset_dir <source> --output_dir <folder>

`dataset_dir` holds `images` and `labels`. Every fifth image (those that the bundle's `train.yaml` holds out) is written
once per shift to `output_dir/<shift>/images`, and its label to `output_dir/<shift>/labels`. The shift `none` leaves the
image as it is. The same seed gives the same files.
"""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.transforms import (
    AdjustContrast,
    GaussianSmooth,
    GibbsNoise,
    Identity,
    RandBiasField,
    RandHistogramShift,
    RandomizableTransform,
    RandRicianNoise,
    RandSimulateLowResolution,
)
from tqdm import tqdm

SHIFTS: dict[str, Callable] = {
    "none": Identity(),
    "darker": AdjustContrast(gamma=2.0),
    "brighter": AdjustContrast(gamma=0.5),
    "histogram": RandHistogramShift(num_control_points=5, prob=1.0),
    "bias_field": RandBiasField(coeff_range=(0.0, 0.15), prob=1.0),
    "blur": GaussianSmooth(sigma=1.0),
    "low_resolution": RandSimulateLowResolution(prob=1.0, zoom_range=(0.4, 0.5)),
    "gibbs": GibbsNoise(alpha=0.6),
    "noise": RandRicianNoise(prob=1.0, std=0.08, sample_std=False),
}


def shift(image: nibabel.Nifti1Image, transform: Callable, seed: int) -> nibabel.Nifti1Image:
    """Return an image as another scanner might have made it.

    Args:
        image: image of one channel, (H, W, D).
        transform: function of a (1, H, W, D) tensor scaled to 0..1.
        seed: seed of the transform's random numbers.
    """
    values = torch.as_tensor(image.get_fdata(dtype=np.float32))
    low, high = values.min(), values.max()
    if isinstance(transform, RandomizableTransform):
        transform.set_random_state(seed=seed)
    shifted = transform(((values - low) / (high - low))[None])[0]
    shifted = np.asarray(shifted, dtype=np.float32) * float(high - low) + float(low)
    return nibabel.Nifti1Image(shifted, image.affine, image.header)


def main() -> None:
    """Parse the command line and write the scans."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder that holds images/ and labels/")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder that receives a folder for every shift")
    parser.add_argument("--stride", type=int, default=5, help="5: take every fifth case, beginning with the first")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    paths = sorted((arguments.dataset_dir / "images").glob("*.nii*"))[:: arguments.stride]
    if not paths:
        parser.error(f"{arguments.dataset_dir / 'images'} holds no NIfTI file")
    for name, transform in SHIFTS.items():
        for folder in ("images", "labels"):
            (arguments.output_dir / name / folder).mkdir(parents=True, exist_ok=True)
        for number, path in enumerate(tqdm(paths, desc=name, unit="case")):
            shifted = shift(nibabel.load(path), transform, arguments.seed + number)
            nibabel.save(shifted, arguments.output_dir / name / "images" / path.name)
            label = arguments.dataset_dir / "labels" / path.name
            shutil.copyfile(label, arguments.output_dir / name / "labels" / path.name)


if __name__ == "__main__":
    main()
