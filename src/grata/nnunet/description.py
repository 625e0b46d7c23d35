"""What can be told of a trained-model folder before anything is predicted with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import GrataError
from ..normalization import collect_affine_parameters, ensure_affine, normalization_layers
from .model import CHECKPOINT, load_model
from .predictor import mirror_views

__all__ = ["describe"]


def describe(
    model_folder: str | Path, folds: int | str | Sequence[int | str] | None = None, checkpoint_name: str = CHECKPOINT
) -> dict[str, Any]:
    """Tell what a trained-model folder of nnU-Net v2 holds, and why it would be refused; nothing is raised for that.

    Args:
        model_folder, folds, checkpoint_name: as for :func:`grata.nnunet.predict`.

    Returns:
        ``refused``: reasons, empty when it can be adapted. As far as the files could be read: ``folds``, ``trainer``,
        ``configuration``, ``spatial_dims``, ``spacing`` (mm, in nnU-Net's order of axes), ``patch_size``, ``channels``
        (names), ``labels`` (names), ``classes`` (output channels), ``activation``, ``views`` (default weak views);
        ``network`` (class), ``normalization`` (count of layers by kind), ``parameters`` (how many numbers can be
        adapted) and ``attached`` (how many of them are attached first, since the network's layers have none).
    """
    told: dict[str, Any] = {"refused": []}
    try:
        model = load_model(model_folder, folds, checkpoint_name)
        configuration, checkpoint = model.configuration, model.checkpoint
    except GrataError as error:
        told["refused"].append(str(error))
        return told
    spatial_dims = len(configuration.patch_size)
    told |= {
        "folds": list(model.checkpoints),
        "trainer": checkpoint.trainer,
        "configuration": checkpoint.configuration,
        "spatial_dims": spatial_dims,
        "spacing": [float(size) for size in configuration.spacing],
        "patch_size": [int(size) for size in configuration.patch_size],
        "channels": list((model.dataset.get("channel_names") or model.dataset["modality"]).values()),
        "labels": list(model.dataset["labels"]),
        "classes": model.labels.num_segmentation_heads,
        "activation": model.activation,
        "views": mirror_views(checkpoint.mirror_axes, spatial_dims),
    }
    try:
        model.check()
    except GrataError as error:
        told["refused"].append(str(error))
    try:
        networks = [model.network(fold) for fold in model.checkpoints]
        told["network"] = type(networks[0]).__name__
        told["normalization"] = dict(Counter(kind for _, kind, _ in normalization_layers(networks[0])))
        attached = ensure_affine(networks[0])
        told["attached"] = attached.count if attached else 0
        told["parameters"] = sum(p.numel() for p in collect_affine_parameters(networks[0]).values())
    except GrataError as error:
        told["refused"].append(str(error))
    return told
