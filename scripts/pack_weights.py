"""Pack a training checkpoint into the weights that a Model Zoo bundle ships.

    python scripts/pack_weights.py <checkpoint> bundles/<domain>/models

Writes `model.pt`, and `branches.pt` if the network has auxiliary branches. Weights of convolutions and linear layers
are rounded to half precision. Biases and the tensors of normalization layers stay in single precision, because they are
small and every activation depends on them. The Model Zoo limits a file to 25 MB: host a larger one elsewhere and list
it in large_files.yml.
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
"""Largest number of bytes of a file in the Model Zoo."""


def pack(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], float]:
    """Round the large tensors of a state dict.

    Args:
        state: state dict of any network; its tensors of two or more dimensions are rounded.

    Returns:
        The state dict with the same keys, and the largest change of a value relative to the largest value of its
        tensor.

    Raises:
        GrataError: a weight is not finite, or beyond the range of half precision.
    """
    packed, worst = {}, 0.0
    seen: dict[tuple[object, ...], torch.Tensor] = {}
    for key, value in state.items():
        # MONAI's DynUNet lists most of its layers twice; the file holds them once.
        place = (value.data_ptr(), value.dtype, value.shape, value.stride())
        if place in seen:
            packed[key] = seen[place]
            continue
        packed[key] = value.clone(memory_format=torch.contiguous_format)
        if not value.isfinite().all():
            raise GrataError(f"{key} holds NaN or infinite values. Use an earlier checkpoint.")
        if value.ndim < 2 or value.numel() == 0 or not value.is_floating_point():
            seen[place] = packed[key]
            continue
        packed[key] = seen[place] = packed[key].half()
        if not packed[key].isfinite().all():
            raise GrataError(
                f"{key} holds {value.abs().max():.3g}, which is beyond the range of half precision. Ship the "
                "checkpoint as it is."
            )
        change = (packed[key].double() - value.double()).abs().max() / value.double().abs().max().clamp_min(1e-30)
        worst = max(worst, change.item())
    return packed, worst


def large_file(path: Path) -> str:
    """Return the entry of large_files.yml for a file in a bundle's models folder."""
    entry = {
        "path": f"models/{path.name}",
        "url": "<where you host it>",
        "hash_val": hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest(),
        "hash_type": "md5",
    }
    return yaml.safe_dump({"large_files": [entry]}, sort_keys=False)


def save(state: dict[str, torch.Tensor], path: Path) -> None:
    """Write a state dict with ``torch.save``, through a file because it refuses a path without a suffix."""
    with path.open("wb") as file:
        torch.save(state, file)


def main(checkpoint: str, output_dir: str, name: str = "model.pt") -> None:
    """Write the files and print their sizes.

    Args:
        checkpoint: file of a state dict, which may be nested as MONAI's CheckpointSaver does.
        output_dir: models folder of the bundle; its file of that name and branches.pt are replaced.
        name: name of the file, such as model_strong.pt for a second source network.
    """
    try:
        state = read_state(str(checkpoint))
        folder = check_output_dir(str(output_dir))
        branches = {key: value for key, value in state.items() if key.startswith("branches.")}
        parts = {folder / name: {key: value for key, value in state.items() if key not in branches}}
        if branches:
            parts[folder / "branches.pt"] = branches
        elif (folder / "branches.pt").exists() and name == "model.pt":
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
                f"{', '.join(path.name for path in large)}: written, but larger than the {LIMIT / 1e6:.0f} MB that the "
                "Model Zoo allows for a file. Train a smaller encoder, or host the file elsewhere "
                "and list it in the bundle's large_files.yml:\n" + "\n".join(map(large_file, large))
            )
    except (GrataError, OSError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    fire.Fire(main)
