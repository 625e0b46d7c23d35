"""TeST: test-time self-training with a teacher and a student (WACV 2023)."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..components.gradients import cloned, load_optimizer
from ..components.parameters import collect_all_parameters
from ..components.probabilities import confidence
from ..components.teacher import Teacher
from ..objectives import consistency_loss, entropy_loss
from ..views import resolve_views
from .base import SKIPPED
from .card import Card
from .gradient import GradientMethod, GradientRecord
from .predictive import check_count, check_number

__all__ = ["TeST"]


class TeST(GradientMethod):
    """A teacher learns to be consistent, then a student from its confident labels (TeST, Sinha et al., WACV 2023).

    .. code-block:: text

        stage 1, the teacher θ':
            p̄  = mean_v v⁻¹(σ(f_θ'(v(x))))                           over the weak views v, no gradient
            θ' ← Adam(θ', ∇ mean_v cross-entropy(v⁻¹(f_θ'(v(x))), p̄))
        stage 2, the student θ:
            p̄  as above, by the teacher of stage 1
            y  = hard label of p̄, where p̄ is sure enough, see `confidence`
            θ  ← Adam(θ, ∇ [mean cross-entropy(f_θ(x), y) + entropy_weight · mean H(f_θ(x))])
        prediction: f_θ(x)

    All parameters, batch statistics, online: teacher and student both go on from what the last image left them, each
    with an optimizer of its own. The network holds the student; the teacher's weights are put into it for stage 1.

    The abstract and the introduction of the paper tell the parts: consistency regularization for invariant
    representations, self-distillation from a teacher to a student for robust ones, and entropy minimization. The form
    of the losses and the numbers (learning rate, steps, confidence and weight) are this package's; the learning rate
    was chosen on simulated shifts of a source site (docs/results/settings.md).

    For dense prediction each voxel is a sample. A weak view is a flip or quarter turn, taken back exactly, so that the
    views' predictions are compared at the same voxel. Confidence is the largest probability (softmax), or
    ``max(p, 1 − p)`` of each channel (sigmoid), which is then kept or not by itself; a bound above ½ means the same
    majority for any number of classes. The cross-entropy is the mean over what is kept; where nothing is, the student
    takes no step.

    The gradient of stage 1 is added up view by view: memory is that of one forward.

    Args:
        network: the source network.
        teacher_steps: of the teacher on each batch, before the student's.
        confidence: of the teacher, from which on a voxel's label is learnt, 0 to 1.
        entropy_weight: of the student's entropy.
        lr: learning rate of both.
        settings: see :class:`GradientMethod`; ``steps`` are the student's.

    Raises:
        GrataError: a setting is out of range, or the network has nothing to adapt.
    """

    name = "test"
    card = Card(
        title="TeST",
        reference="Sinha et al., TeST: test-time self-training under distribution shift, WACV 2023, arXiv:2209.11459",
        year=2023,
        rule="a teacher learns to predict the same on all weak views, a student its confident labels",
        changes="all parameters, batch statistics",
        forwards=20,
        backwards=7,
    )

    def __init__(
        self,
        network: nn.Module,
        *,
        teacher_steps: int = 1,
        confidence: float = 0.9,
        entropy_weight: float = 1.0,
        lr: float = 1e-5,
        **settings: Any,
    ) -> None:
        super().__init__(network, collect_all_parameters(network), lr=lr, **settings)
        self.teacher_steps = check_count("teacher_steps", teacher_steps)
        self.confidence = check_number("confidence", confidence, low=0.0, high=1.0)
        self.entropy_weight = check_number("entropy_weight", entropy_weight, low=0.0)
        self._teacher = Teacher(self.parameters)

    def _adapt(self, images: torch.Tensor) -> GradientRecord:
        with self._teacher.in_place(learns=True):
            flags = [flag for _ in range(self.teacher_steps) for flag in self._teach(images)]
            label = self._pseudo_label(images)
            agreement = self._notes["agreement"]
        sure = confidence(label, self.activation) >= self.confidence
        if not sure.any():
            flags = (*dict.fromkeys(flags), "nothing_confident", SKIPPED)
            return GradientRecord(kept=0.0, agreement=agreement, flags=flags)
        self._label, self._sure, self._agreement = label, sure, agreement
        record = super()._adapt(images)
        self._label = self._sure = None
        return dataclasses.replace(record, flags=tuple(dict.fromkeys((*flags, *record.flags))))

    def _teach(self, x: torch.Tensor) -> list[str]:
        """One step of the teacher, whose weights are in place; flags of what went wrong."""
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
        student, self.optimizer = self.optimizer, self._teacher_optimizer
        try:
            if self._optimizer_step(total, 1.0) is not None:
                return []
        finally:
            self.optimizer = student
        self._write(before)
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
        return distilled + self.entropy_weight * entropy_loss(logits, self.activation, self.entropy)

    def _reset_optimizer(self) -> None:
        # the same settings, but moments of its own
        super()._reset_optimizer()
        self._teacher_optimizer = self.optimizer
        super()._reset_optimizer()

    def restore(self) -> None:
        super().restore()
        self._teacher.forget()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "teacher": self._teacher.state_dict(),
            "teacher_optimizer": cloned(self._teacher_optimizer.state_dict()),
        }

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self._teacher.load_state_dict(state["teacher"])
        load_optimizer(self._teacher_optimizer, state["teacher_optimizer"])
