"""CoTTA: continual test-time adaptation with an averaged teacher and stochastic restoration (CVPR 2022)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..networks.parameters import collect_all_parameters, in_place
from ..objectives import consistency_loss
from ..optimization import Teacher
from ..predictions import activate
from ..predictions.probabilities import confidence
from ..settings import choice, count, number
from ..views import augmentations, resolve_views
from .base import SKIPPED
from .card import Card
from .gradient import GradientMethod, GradientRecord
from .predictive import PredictionNetwork

__all__ = ["CoTTA"]


class CoTTA(GradientMethod):
    """A step towards an averaged teacher, then a random restoration of weights (CoTTA, Wang et al., CVPR 2022).

    .. code-block:: text

        c  = confidence of f_θ0(x)                               anchor: the source weights
        ŷ  = f_θ'(x)                     where c ≥ threshold     θ': the teacher
             mean_a a⁻¹(f_θ'(a(x)))      elsewhere               over the augmentations a
        θ  ← Adam(θ, ∇ cross-entropy(f_θ(x), ŷ), lr)             all parameters
        θ' ← momentum·θ' + (1 − momentum)·θ
        θ  ← M·θ0 + (1 − M)·θ,  M ~ Bernoulli(restore_probability), each weight for itself
        prediction: f_θ'(x)

    The method is online. Student, anchor and teacher all use batch statistics. For dense prediction:

    - Each voxel chooses between the teacher's prediction and the mean over augmentations, as in the authors' code for
      segmentation. Their code for classification decides for the whole batch by its mean confidence. On an image that
      is mostly background this mean would always be high, and augmentations would never be used. Confidence is the
      largest probability (softmax), or ``max(p, 1 − p)`` of each channel (sigmoid). The paper's threshold of 0.92 is
      for 10 classes, and was set from the 5 % quantile of the confidence on source images; its segmentation uses 0.69
      for 19 classes.
    - An augmentation is a flip or quarter turn, which is inverted exactly, followed by a strong photometric view. The
      photometric view corresponds to the colour jitter, noise and blur of the paper's 32 for classification.
      The paper's augmentations for segmentation, seven scales and a flip, would need networks that accept any size, and
      would resample each prediction twice.
    - ŷ is soft, as in the paper's equation; the authors' code for segmentation uses the hard label.

    The authors' code averages logits over the augmentations, and the paper averages predictions; here probabilities
    are averaged. The authors' code predicts with ŷ from before the step; here the teacher predicts after the step. For
    segmentation the authors use Adam at ``lr`` 7.5e-6.

    The anchor needs no memory of its own: it is the copy of the source weights that ``restore`` needs anyway. Teacher
    and anchor use the student's network with their weights in place. Between steps, memory holds one more copy of the
    parameters beside the optimizer's moments; during a forward of teacher or anchor it also holds a copy of the
    student's parameters.

    Raises:
        GrataError: a setting is out of range, or the network has nothing to adapt.
    """

    name = "cotta"
    card = Card(
        title="CoTTA",
        reference="Wang et al., Continual test-time domain adaptation, CVPR 2022, arXiv:2203.13591",
        year=2022,
        rule="one step down the cross-entropy to a moving-average teacher, which averages augmentations where the "
        "source is not confident; a few random weights return to the source's",
        changes="all parameters, batch statistics",
        forwards=36,
        backwards=1,
    )
    predicts_by = "teacher"

    threshold: float = number(
        default=0.92,
        at_least=0,
        at_most=1,
        help="confidence of the anchor below which a voxel's target is averaged over augmentations; they are computed "
        "only if there is such a voxel",
    )
    augmentations: int = count(default=32, help="number of augmentations")
    momentum: float = number(default=0.999, at_least=0, at_most=1, help="momentum of the teacher")
    restore_probability: float = number(
        default=0.01, at_least=0, at_most=1, help="probability that a weight returns to the source's after a step"
    )

    predict: str = choice(
        default="network",
        of=("network", "views"),
        help="what predicts: network is the teacher; views is the mean of its predictions over weak views",
        in_state=False,
    )

    def _collect(self) -> dict[str, Any]:
        return dict(collect_all_parameters(self.given))

    def _setup(self) -> None:
        super()._setup()
        self._teacher = self._keep("teacher", Teacher(self.parameters))

    def _predicting(self) -> nn.Module:
        return PredictionNetwork(self)

    def _loss(self, x: torch.Tensor) -> torch.Tensor:
        # the target comes first: after the student's forward, its weights must stay in place for the gradient
        target = self._target(x)
        return consistency_loss(self._logits(x), target, self.activation)

    def _step(self, x: torch.Tensor) -> GradientRecord:
        self._teacher.begin()
        record = super()._step(x)
        if SKIPPED not in record.flags:
            self._teacher.follow(self.momentum)
            self._restore_some()
        return record

    @torch.no_grad()
    def _target(self, x: torch.Tensor) -> torch.Tensor:
        """Return the teacher's prediction ``(B, C, ...)``, averaged over augmentations where the anchor is not
        confident.
        """
        with in_place(self.parameters, self._source):
            sure = confidence(self._probabilities(x), self.activation) >= self.threshold
        self._notes["kept"] = sure.float().mean().item()
        with self._teacher.in_place():
            single = self._probabilities(x)
            if sure.all():
                return single
            views = resolve_views(self.views, x.shape[2:])
            drawn = augmentations(x, self.augmentations, views, self._strong, self.generator)
            mean = sum(view.inverse(self._probabilities(image)) for view, image in drawn) / self.augmentations
        return torch.where(sure, single, mean)

    @torch.no_grad()
    def _restore_some(self) -> None:
        for name, parameter in self.parameters.items():
            # drawn on the weights' device, with a seed from the method's generator
            seed = int(torch.randint(2**62, (1,), generator=self.generator).item())
            on_device = torch.Generator(parameter.device).manual_seed(seed)
            drawn = torch.rand(parameter.shape, generator=on_device, device=parameter.device)
            parameter.copy_(torch.where(drawn < self.restore_probability, self._source[name], parameter))

    def _probabilities(self, x: torch.Tensor) -> torch.Tensor:
        return activate(self._logits(x), self.activation)

    def _predict(self, x: torch.Tensor) -> torch.Tensor:
        with self._teacher.in_place():
            return self._logits(x)
