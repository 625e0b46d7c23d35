"""Description of a trained-model folder before any prediction."""

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
    """Describe a trained-model folder of nnU-Net v2, and report why it would be refused instead of raising an error.

    Args:
        model_folder, folds, checkpoint_name: see :func:`grata.nnunet.predict`.

    Returns:
        ``refused``: reasons, empty if the model can be adapted. As far as the files could be read: ``folds``,
        ``trainer``, ``configuration``, ``spatial_dims``, ``spacing`` (mm, in nnU-Net's order of axes), ``patch_size``,
        ``channels`` (names), ``labels`` (names), ``classes`` (number of output channels), ``activation``, ``views``
        (default weak views), ``network`` (class), ``normalization`` (number of layers by kind), ``parameters`` (number
        of values that can be adapted) and ``attached`` (number of those that are attached first, because the network's
        layers have none).
    """
    found: dict[str, Any] = {"refused": []}
    try:
        model = load_model(model_folder, folds, checkpoint_name)
        configuration, checkpoint = model.configuration, model.checkpoint
    except GrataError as error:
        found["refused"].append(str(error))
        return found
    spatial_dims = len(configuration.patch_size)
    found |= {
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
        found["refused"].append(str(error))
    try:
        networks = [model.network(fold) for fold in model.checkpoints]
        found["network"] = type(networks[0]).__name__
        found["normalization"] = dict(Counter(kind for _, kind, _ in normalization_layers(networks[0])))
        attached = ensure_affine(networks[0])
        found["attached"] = attached.count if attached else 0
        found["parameters"] = sum(p.numel() for p in collect_affine_parameters(networks[0]).values())
    except GrataError as error:
        found["refused"].append(str(error))
    return found
