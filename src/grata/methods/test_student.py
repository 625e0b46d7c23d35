"""TeST: test-time self-training with a teacher and a student (WACV 2023)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from ..networks.parameters import collect_all_parameters, write
from ..objectives import consistency_loss, entropy_loss
from ..optimization import Teacher
from ..predictions.probabilities import confidence
from ..settings import count, number, override
from ..views import resolve_views
from .base import SKIPPED
from .card import Card
from .gradient import GradientMethod, GradientRecord

__all__ = ["TeST"]


class TeST(GradientMethod):
    """A teacher that learns consistency and a student that learns its confident labels (TeST, Sinha et al., WACV 2023).

    .. code-block:: text

        stage 1, the teacher θ':
            p̄  = mean_v v⁻¹(σ(f_θ'(v(x))))                           over the weak views v, no gradient
            θ' ← Adam(θ', ∇ mean_v cross-entropy(v⁻¹(f_θ'(v(x))), p̄))
        stage 2, the student θ:
            p̄  as above, by the teacher of stage 1
            y  = hard label of p̄, where p̄ is sure enough, see `confidence`
            θ  ← Adam(θ, ∇ [mean cross-entropy(f_θ(x), y) + entropy_weight · mean H(f_θ(x))])
        prediction: f_θ(x)

    The method adapts all parameters with batch statistics, online: teacher and student both continue from their weights
    after the last image, each with its own optimizer. The network holds the student; for stage 1 the teacher's weights
    take its place.

    The abstract and the introduction of the paper name the parts: consistency regularization for invariant
    representations, self-distillation from a teacher to a student for robust representations, and entropy minimization.
    The form of the losses and the numbers (learning rate, steps, confidence and weight) are this package's own. The
    learning rate was chosen on simulated shifts of a source site (docs/results/settings.md).

    For dense prediction each voxel is a sample. A weak view is a flip or quarter turn, which is inverted exactly, so
    that the views' predictions are compared at the same voxel. Confidence is the largest probability (softmax), or
    ``max(p, 1 − p)`` of each channel (sigmoid), which is then kept or dropped on its own. A bound above ½ means the
    same majority for any number of classes. The cross-entropy is the mean over the kept voxels; when there are none,
    the student takes no step.

    The gradient of stage 1 is added up view by view, with the memory of one forward.

    Raises:
        GrataError: a setting is out of range, or the network has nothing to adapt.
    """

    name = "test"
    card = Card(
        title="TeST",
        reference="Sinha et al., TeST: test-time self-training under distribution shift, WACV 2023, arXiv:2209.11459",
        year=2023,
        rule="a teacher learns to predict the same on all weak views; a student learns the teacher's confident labels",
        changes="all parameters, batch statistics",
        forwards=20,
        backwards=7,
    )

    teacher_steps: int = count(default=1, help="number of the teacher's steps on each batch, before the student's")
    confidence: float = number(
        default=0.9, at_least=0, at_most=1, help="minimum confidence of the teacher's label for the student to learn it"
    )
    entropy_weight: float = number(default=1.0, at_least=0, help="weight of the student's entropy")
    lr: float = override(default=1e-5, help="base learning rate of teacher and student, for an optimizer that is named")

    def _collect(self) -> dict[str, Any]:
        return dict(collect_all_parameters(self.given))

    def _setup(self) -> None:
        super()._setup()
        self._teacher = self._keep("teacher", Teacher(self.parameters))
        # the same settings, but its own moments
        self._teacher_stepper = self._keep("teacher_optimizer", self._make_stepper())

    def _adapt(self, images: torch.Tensor) -> GradientRecord:
        flags: Sequence[str]
        with self._teacher.in_place(learns=True):
            flags = [flag for _ in range(self.teacher_steps) for flag in self._teach(images)]
            label = self._pseudo_label(images)
            agreement = self._notes["agreement"]
        sure = confidence(label, self.activation) >= self.confidence
        if not sure.any():
            flags = (*dict.fromkeys(flags), "nothing_confident", SKIPPED)
            return GradientRecord(kept=0.0, agreement=agreement, flags=tuple(flags))
        self._label, self._sure, self._agreement = label, sure, agreement
        record = super()._adapt(images)
        del self._label, self._sure
        return dataclasses.replace(record, flags=tuple(dict.fromkeys((*flags, *record.flags))))

    def _teach(self, x: torch.Tensor) -> list[str]:
        """Take one step of the teacher, whose weights are in place; return the flags of a failed step."""
        target = self._pseudo_label(x)
        views = resolve_views(self.views, x.shape[2:])
        parts = (
            (view(x), lambda x, view=view: consistency_loss(view.inverse(self._logits(x)), target, self.activation))
            for view in views
        )
        _, total = self._mean_by_parts(parts, len(views))
        if not all(g is None or torch.isfinite(g).all() for g in total):
            return ["non_finite_teacher"]
        before = self._copy()
        if self._teacher_stepper.step(total, 1.0) is not None:
            return []
        write(self.parameters, before)
        return ["non_finite_teacher"]

    def _loss(self, x: torch.Tensor) -> torch.Tensor:
        logits = self._logits(x)
        if self.activation == "sigmoid":
            wrong = F.binary_cross_entropy_with_logits(logits, (self._label > 0.5).to(logits), reduction="none")
        else:
            wrong = F.cross_entropy(logits, self._label.argmax(1), reduction="none").unsqueeze(1)
        kept = self._sure.to(logits)
        self._notes |= {"kept": kept.mean().item(), "agreement": self._agreement}
        distilled = (wrong * kept).sum() / kept.sum()
        return distilled + self.entropy_weight * entropy_loss(logits, self.activation, self._entropy)
