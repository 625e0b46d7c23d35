"""Convert a checkpoint of GraTa's authors into weights of `grata.networks.ResUNet`.

    python scripts/convert_checkpoint.py <checkpoint> <weights>

Prints what became of every key, and the network_def that the weights belong to. Nothing is written unless the whole
checkpoint fits.
"""

from pathlib import Path

import fire
import torch
import yaml

from grata.errors import GrataError
from grata.files import atomic_write
from grata.networks import convert_checkpoint
from grata.networks.weights import read_state


def save(state: dict[str, torch.Tensor], path: Path) -> None:
    """Write a state dict with ``torch.save``, through a file because it refuses a path without a suffix."""
    with path.open("wb") as file:
        torch.save(state, file)


def main(checkpoint: str, weights: str) -> None:
    """Convert a checkpoint and print what was done.

    Args:
        checkpoint: checkpoint with the authors' key names, as torch.save writes it; code in it is never run.
        weights: file to write, a plain state dict.
    """
    source, target = Path(str(checkpoint)), Path(str(weights))
    try:
        if target.exists():
            raise GrataError(f"{target} exists already. Remove it, or name another file.")
        state = read_state(source)
        try:
            conversion = convert_checkpoint(state)
        except GrataError as error:
            raise GrataError(f"{source}: {error}") from None
        with atomic_write(target) as temporary:
            save(conversion.state, temporary)
    except (GrataError, OSError) as error:
        raise SystemExit(str(error)) from None
    print(f"{source}: {len(conversion.renamed)} of {len(state)} tensors converted")
    for text, keys in (("left out", conversion.unmapped), ("missing, set to 0", conversion.filled)):
        if keys:
            print(f"{text}: {', '.join(keys)}")
    print(f"written: {target}. Use it with\n")
    print(yaml.safe_dump({"network_def": conversion.network_def}, sort_keys=False))


if __name__ == "__main__":
    fire.Fire(main)
