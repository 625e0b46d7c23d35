"""Prediction in half precision on any device; MONAI's own ``amp`` is for CUDA alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import SimpleInferer

from ..checks import checked
from ..methods.predictive import check_precision

__all__ = ["AutocastInferer"]


class AutocastInferer(SimpleInferer):
    """A ``monai.inferers.SimpleInferer`` under ``torch.autocast``.

    Args:
        dtype: ``bfloat16`` or ``float16``; None: the precision of the surrounding ``torch.autocast``.

    Raises:
        GrataError: the dtype is unknown.
    """

    def __init__(self, dtype: str | None = "bfloat16") -> None:
        super().__init__()
        self.dtype = checked(check_precision, dtype, "inferer#dtype")

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Return ``network(inputs)`` in float32, computed in ``dtype``."""
        if self.dtype is None:
            return super().__call__(inputs, network, *args, **kwargs)
        with torch.autocast(inputs.device.type, dtype=self.dtype):
            return super().__call__(inputs, network, *args, **kwargs).float()
