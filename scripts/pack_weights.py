"""Pack a training checkpoint into the weights that a Model Zoo bundle ships.

    python scripts/pack_weights.py <checkpoint> bundles/<domain>/models

Writes `model.pt`, and `branches.pt` if the network has auxiliary branches. Weights of convolutions and linear layers
are rounded to half precision; biases and all that normalization layers hold stay in single precision, they are small
and every activation depends on them. A bundle takes 25 MB a file: a larger one is to be hosted elsewhere and listed in
large_files.yml.
"""

import hashlib
from pathlib import Path

import fire
import torch
import yaml

from grata.errors import GrataError
from grata.files import atomic_write, check_output_dir
from grata.networks.weights import read_state

LIMIT = 25_000_000
"""Bytes a file that the Model Zoo takes."""


def pack(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], float]:
    """Round the large tensors of a state dict.

    Args:
        state: any state dict; tensors of two and more dimensions are weights of convolutions and linear layers.

    Returns:
        All of its keys, and the largest change of a value relative to the largest of its tensor.

    Raises:
        GrataError: a weight is beyond the range of half precision, or not a number.
    """
    packed, worst = {}, 0.0
    for key, value in state.items():
        packed[key] = value.clone(memory_format=torch.contiguous_format)
        if not value.isfinite().all():
            raise GrataError(f"{key} holds values that are infinite or not numbers. Take an earlier checkpoint.")
        if value.ndim < 2 or value.numel() == 0 or not value.is_floating_point():
            continue
        packed[key] = packed[key].half()
        if not packed[key].isfinite().all():
            raise GrataError(f"{key} holds values that half precision does not: {value.abs().max():.3g}.")
        change = (packed[key].double() - value.double()).abs().max() / value.double().abs().max().clamp_min(1e-30)
        worst = max(worst, change.item())
    return packed, worst


def large_file(path: Path) -> str:
    """The entry of large_files.yml for a file in a bundle's models folder."""
    entry = {
        "path": f"models/{path.name}",
        "url": "<where you host it>",
        "hash_val": hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest(),
        "hash_type": "md5",
    }
    return yaml.safe_dump({"large_files": [entry]}, sort_keys=False)


def save(state: dict[str, torch.Tensor], path: Path) -> None:
    """``torch.save``, which takes no path without a suffix."""
    with path.open("wb") as file:
        torch.save(state, file)


def main(checkpoint: str, output_dir: str) -> None:
    """Write the files, and print their sizes.

    Args:
        checkpoint: state dict, also nested as MONAI's CheckpointSaver does.
        output_dir: models folder of the bundle; its model.pt and branches.pt are replaced.
    """
    try:
        state = read_state(str(checkpoint))
        folder = check_output_dir(str(output_dir))
        branches = {key: value for key, value in state.items() if key.startswith("branches.")}
        parts = {folder / "model.pt": {key: value for key, value in state.items() if key not in branches}}
        if branches:
            parts[folder / "branches.pt"] = branches
        elif (folder / "branches.pt").exists():
            raise GrataError(
                f"{folder / 'branches.pt'} belongs to another network: this checkpoint has no branches. Remove it, or "
                "pack a checkpoint with branches."
            )
        packed = {path: pack(part) for path, part in parts.items()}
        for path, (part, worst) in packed.items():
            with atomic_write(path) as temporary:
                save(part, temporary)
            size = path.stat().st_size / 1e6
            print(f"{path}: {len(part)} tensors, {size:.1f} MB, largest relative rounding {worst:.1e}")
        large = [path for path in packed if path.stat().st_size > LIMIT]
        if large:
            raise GrataError(
                f"{', '.join(path.name for path in large)}: written, but larger than the {LIMIT / 1e6:.0f} MB a file "
                "that the Model Zoo takes. Train a smaller encoder (network_def#depth), or move the file to where you "
                "host it and name it in the bundle's large_files.yml:\n" + "\n".join(map(large_file, large))
            )
    except (GrataError, OSError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    fire.Fire(main)
