"""The place of a guard: it looks at a prediction before anybody else does, and may refuse it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ..methods import Method

if TYPE_CHECKING:
    import torch

    from ..quality import Judgement

__all__ = ["Again", "Guard", "Verdict"]

Again = Callable[["torch.Tensor", bool], Any]
"""Predicts images as the entrance does, by the adapted network or, if true, by the source network."""


@dataclass(frozen=True)
class Verdict:
    """What a guard says of a prediction.

    Attributes:
        prediction: prediction to use: the one that was judged, or another one, such as the source network's.
        keep: whether what was learnt from the case is kept; if not, the method is as before the case, and the case is
            finished all the same.
        record: keys that are added to the record of the case.
        judgements: judgement of each image; empty: the guard judges none.
        source: what the source network predicts, if the guard asked it; None: it did not.
        restore: whether the method is put back to the source network after the case.
        flags: flags that are added to those of the case.
    """

    prediction: Any
    keep: bool = True
    record: Mapping[str, Any] = field(default_factory=dict)
    judgements: Sequence[Judgement] = ()
    source: Any = None
    restore: bool = False
    flags: Sequence[str] = ()


class Guard(Protocol):
    """A check of one's own: it judges the prediction of each case in place of :class:`grata.session.QualityGuard`."""

    def __call__(self, method: Method, images: torch.Tensor, prediction: Any, record: Mapping[str, Any]) -> Verdict:
        """Judge a prediction.

        Args:
            method: method that was adapted to the case; it must be as before when the guard returns.
            images: images of the case, ``(B, C, ...)``.
            prediction: what was predicted; it is finite.
            record: record of the case so far.
        """
