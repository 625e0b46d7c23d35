"""Checks between prediction and postprocessing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from ignite.engine import Engine
from monai.utils import CommonKeys

from ..errors import GrataError

__all__ = ["check_finite", "require_finite"]


def require_finite(engine: Engine) -> None:
    """Check an engine's prediction by :func:`check_finite`: a tensor, or a mapping or list of tensors.

    Args:
        engine: engine at ``IterationEvents.FORWARD_COMPLETED``.

    Raises:
        GrataError: the prediction holds values that are not finite.
    """
    output: Any = engine.state.output
    check_finite(_tensors(output[CommonKeys.PRED]))


def check_finite(prediction: Iterable[torch.Tensor]) -> None:
    """Check that a prediction is finite: postprocessing turns NaN into an empty segmentation, which looks valid.

    Args:
        prediction: tensors of the prediction, of any shape.

    Raises:
        GrataError: a tensor holds values that are not finite.
    """
    if not all(torch.isfinite(tensor).all() for tensor in prediction):
        raise GrataError(
            "The prediction holds NaN or infinite values. Export the scan again with values in their usual range, or "
            "check the weights."
        )


def _tensors(prediction: Any) -> list[torch.Tensor]:
    if isinstance(prediction, Mapping):
        prediction = list(prediction.values())
    items = prediction if isinstance(prediction, list | tuple) else [prediction]
    return [item for item in items if isinstance(item, torch.Tensor)]
