"""The place of a guard: it looks at a prediction before anybody else does, and may refuse it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ..methods import Method

if TYPE_CHECKING:
    import torch

__all__ = ["Guard", "Verdict"]


@dataclass(frozen=True)
class Verdict:
    """What a guard says of a prediction.

    Attributes:
        prediction: prediction to use: the one that was judged, or another one, such as the source network's.
        keep: whether what was learnt from the case is kept; if not, the method is as before the case, and the case is
            finished all the same.
        record: keys that are added to the record of the case.
    """

    prediction: Any
    keep: bool = True
    record: Mapping[str, Any] = field(default_factory=dict)


class Guard(Protocol):
    """Judges the prediction of each case."""

    def __call__(self, method: Method, images: torch.Tensor, prediction: Any, record: Mapping[str, Any]) -> Verdict:
        """Judge a prediction.

        Args:
            method: method that was adapted to the case; it must be as before when the guard returns.
            images: images of the case, ``(B, C, ...)``.
            prediction: what was predicted; it is finite.
            record: record of the case so far.
        """
