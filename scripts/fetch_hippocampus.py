"""Fetch the public hippocampus data (Medical Segmentation Decathlon, Task04, CC-BY-SA 4.0) and sort it by site.

    python scripts/fetch_hippocampus.py --output_dir data/hippocampus_mri

The archive holds two kinds of cases, which differ in how their voxels are stored: float32 in arbitrary units, and uint8
after another processing. The first are copied to `source/{images,labels}`, for training; the second to
`target/{images,labels}`, for adaptation. An existing Task04_Hippocampus folder is used without a download.
"""

import argparse
import shutil
from pathlib import Path

import nibabel
import numpy as np
from monai.apps import DecathlonDataset

TASK = "Task04_Hippocampus"
SITES = {np.dtype(np.float32): "source", np.dtype(np.uint8): "target"}


def labelled_cases(root_dir: Path) -> list[dict]:
    """Return image and label paths of all labelled cases; download the archive first if it is not there.

    Args:
        root_dir: folder that holds or receives the archive's folder.
    """
    root_dir.mkdir(parents=True, exist_ok=True)
    download = not (root_dir / TASK).is_dir()
    cases = []
    for section in ("training", "validation"):
        dataset = DecathlonDataset(
            root_dir, TASK, section, transform=lambda case: case, download=download, cache_num=0, num_workers=0
        )
        cases += dataset.data
        download = False
    return cases


def lay_out(cases: list[dict], output_dir: Path) -> dict[str, int]:
    """Copy every case into the folders of its site.

    Args:
        cases: dictionaries with the paths ``image`` and ``label``.
        output_dir: folder that receives ``source`` and ``target``, each with ``images`` and ``labels``.

    Returns:
        The number of cases per site; cases stored in neither way count as ``left out``.
    """
    counts = {"source": 0, "target": 0, "left out": 0}
    for case in cases:
        site = SITES.get(nibabel.load(case["image"]).get_data_dtype(), "left out")
        counts[site] += 1
        if site == "left out":
            continue
        for key in ("image", "label"):
            folder = output_dir / site / f"{key}s"
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(case[key], folder / Path(case[key]).name)
    return counts


def main() -> None:
    """Parse the command line, fetch the data and sort them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder that receives source/ and target/")
    parser.add_argument(
        "--download_dir", type=Path, help=f"folder that holds or receives {TASK}; default: the output folder"
    )
    arguments = parser.parse_args()
    counts = lay_out(labelled_cases(arguments.download_dir or arguments.output_dir), arguments.output_dir)
    print(", ".join(f"{name}: {count} cases" for name, count in counts.items()))


if __name__ == "__main__":
    main()
