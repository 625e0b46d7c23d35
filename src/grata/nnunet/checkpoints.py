"""nnU-Net's checkpoints, read without running what a pickle may hold."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from ..adapters.export import NUMPY_NUMBERS
from ..errors import GrataError

__all__ = ["Checkpoint", "read_checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """What a prediction needs of a checkpoint of nnU-Net's.

    Attributes:
        weights: state dict of the network.
        trainer: name of the trainer class, which builds the network.
        configuration: name of the configuration in the plans, e.g. ``3d_fullres``.
        mirror_axes: spatial axes that the network was trained to be mirrored along; None: it was not.
    """

    weights: dict[str, torch.Tensor]
    trainer: str
    configuration: str
    mirror_axes: tuple[int, ...] | None


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint without executing pickled code.

    Args:
        path: e.g. ``fold_0/checkpoint_final.pth``.

    Raises:
        GrataError: it cannot be read, is none of nnU-Net's, or needs more than tensors, plain values and numbers of
            NumPy.
    """
    try:
        with torch.serialization.safe_globals(NUMPY_NUMBERS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise GrataError(f"{path}: cannot be read ({error.strerror}).") from error
    # A damaged archive or pickle raises any of many kinds of exception.
    except Exception as error:
        if needed := re.search(r"GLOBAL (\S+)", str(error)):
            raise GrataError(
                f"{path}: it needs {needed[1]} to be loaded, which nnU-Net's own checkpoints do not, and which could "
                "run code. It was not loaded. Ask whoever made it for one that holds weights and plain values alone."
            ) from error
        raise GrataError(f"{path}: is damaged, or no checkpoint. Copy it again.") from error
    try:
        axes = content.get("inference_allowed_mirroring_axes")
        return Checkpoint(
            weights=dict(content["network_weights"]),
            trainer=str(content["trainer_name"]),
            configuration=str(content["init_args"]["configuration"]),
            mirror_axes=None if axes is None else tuple(int(axis) for axis in axes),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise GrataError(f"{path}: is no checkpoint of nnU-Net v2. Name one by checkpoint_name.") from error
