"""What is made sure of between prediction and postprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine
from monai.utils import CommonKeys

from ..errors import GrataError

__all__ = ["require_finite"]


def require_finite(engine: Engine) -> None:
    """Refuse a prediction of NaN: postprocessing would turn it into an empty segmentation, which reads like a finding.

    Args:
        engine: on ``IterationEvents.FORWARD_COMPLETED``.

    Raises:
        GrataError: the prediction holds values that are not finite.
    """
    if not all(torch.isfinite(tensor).all() for tensor in _tensors(engine.state.output[CommonKeys.PRED])):
        raise GrataError(
            "The prediction holds NaN or infinite values. Export the scan again with values in their usual range, or "
            "check the weights."
        )


def _tensors(prediction: Any) -> list[torch.Tensor]:
    if isinstance(prediction, Mapping):
        prediction = list(prediction.values())
    items = prediction if isinstance(prediction, list | tuple) else [prediction]
    return [item for item in items if isinstance(item, torch.Tensor)]
