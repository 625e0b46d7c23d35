"""Checkpoints of nnU-Net, read without running code from their pickles."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from ..bank.export import NUMPY_NUMBERS
from ..errors import GrataError

__all__ = ["Checkpoint", "read_checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """The parts of an nnU-Net checkpoint that a prediction needs.

    Attributes:
        weights: state dict of the network.
        trainer: name of the trainer class, which builds the network.
        configuration: name of the configuration in the plans, e.g. ``3d_fullres``.
        mirror_axes: spatial axes of the mirroring that the network was trained with; None: no mirroring.
    """

    weights: dict[str, torch.Tensor]
    trainer: str
    configuration: str
    mirror_axes: tuple[int, ...] | None


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint without running pickled code.

    Args:
        path: path of the checkpoint, e.g. ``fold_0/checkpoint_final.pth``.

    Raises:
        GrataError: the file cannot be read, is not a checkpoint of nnU-Net, or holds more than tensors, plain values
            and NumPy numbers.
    """
    try:
        with torch.serialization.safe_globals(NUMPY_NUMBERS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise GrataError(f"{path} cannot be read ({error.strerror}). Check its name and permissions.") from error
    # A damaged archive or pickle can raise almost any exception.
    except Exception as error:
        if needed := re.search(r"GLOBAL (\S+)", str(error)):
            raise GrataError(
                f"{path}: it needs {needed[1]}, which could run code and which nnU-Net's own checkpoints do not need. "
                "It was not loaded. Ask its author for a checkpoint of weights and plain values alone."
            ) from error
        raise GrataError(f"{path} is damaged or not a checkpoint. Copy it again.") from error
    try:
        axes = content.get("inference_allowed_mirroring_axes")
        return Checkpoint(
            weights=dict(content["network_weights"]),
            trainer=str(content["trainer_name"]),
            configuration=str(content["init_args"]["configuration"]),
            mirror_axes=None if axes is None else tuple(int(axis) for axis in axes),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise GrataError(f"{path} is not a checkpoint of nnU-Net v2. Name another one by checkpoint_name.") from error
