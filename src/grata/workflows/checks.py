"""What is made sure of between prediction and postprocessing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from ignite.engine import Engine
from monai.utils import CommonKeys

from ..errors import GrataError

__all__ = ["check_finite", "require_finite"]


def require_finite(engine: Engine) -> None:
    """:func:`check_finite` of an engine's prediction, also of several in a mapping or list.

    Args:
        engine: on ``IterationEvents.FORWARD_COMPLETED``.

    Raises:
        GrataError: the prediction holds values that are not finite.
    """
    check_finite(_tensors(engine.state.output[CommonKeys.PRED]))


def check_finite(prediction: Iterable[torch.Tensor]) -> None:
    """Refuse a prediction of NaN: postprocessing would turn it into an empty segmentation, which reads like a finding.

    Args:
        prediction: its tensors, of any shape.

    Raises:
        GrataError: one holds values that are not finite.
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
