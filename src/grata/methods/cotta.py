"""CoTTA: continual test-time adaptation by an averaged teacher and stochastic restoring (CVPR 2022)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..components.augmentation import augmentations
from ..components.probabilities import confidence
from ..components.teacher import Teacher
from ..networks.parameters import collect_all_parameters, in_place
from ..objectives import activate, consistency_loss
from ..settings import count, number
from ..views import resolve_views
from .base import SKIPPED
from .card import Card
from .gradient import GradientMethod, GradientRecord
from .predictive import PredictionNetwork

__all__ = ["CoTTA"]


class CoTTA(GradientMethod):
    """A step towards an averaged teacher, and some weights back to the source's (CoTTA, Wang et al., CVPR 2022).

    .. code-block:: text

        c  = confidence of f_θ0(x)                               anchor: the source weights
        ŷ  = f_θ'(x)                     where c ≥ threshold     θ': the teacher
             mean_a a⁻¹(f_θ'(a(x)))      elsewhere               over the augmentations a
        θ  ← Adam(θ, ∇ cross-entropy(f_θ(x), ŷ), lr)             all parameters
        θ' ← momentum·θ' + (1 − momentum)·θ
        θ  ← M·θ0 + (1 − M)·θ,  M ~ Bernoulli(restore_probability), each weight for itself
        prediction: f_θ'(x)

    Batch statistics throughout, also for anchor and teacher; online. For dense prediction:

    - the choice between the teacher's prediction and the mean over augmentations is made at every voxel, as in the
      authors' code for segmentation. In their classification one mean confidence decides for a batch; on an image that
      is mostly background it would always be high, and no augmentation ever used. Confidence is the largest probability
      (softmax), or ``max(p, 1 − p)`` of each channel (sigmoid). The paper's 0.92 is for 10 classes, and set by the 5 %
      quantile of the confidence on source images; its segmentation takes 0.69 for 19 classes;
    - augmentations are flips and quarter turns, taken back exactly, each followed by a strong photometric view: the
      colour jitter, noise and blur of the paper's 32 for classification. Those of its segmentation, seven scales and a
      flip, need networks that take any size, and predictions that are resampled twice;
    - ŷ is soft, as the paper's equation has it; the authors' code for segmentation takes the hard label.

    The authors' code averages logits over the augmentations, the paper predictions: here probabilities are. It predicts
    by ŷ from before the step; here the teacher predicts after it. For segmentation they take Adam at ``lr`` 7.5e-6.

    The anchor is the source weights that are kept anyway for ``restore``, and teacher and anchor are put into the one
    network for their forwards: between steps one more copy of the parameters is held beside the optimizer's moments,
    and during a forward the student's as well.

    Raises:
        GrataError: a setting is out of range, or the network has nothing to adapt.
    """

    name = "cotta"
    card = Card(
        title="CoTTA",
        reference="Wang et al., Continual test-time domain adaptation, CVPR 2022, arXiv:2203.13591",
        year=2022,
        rule="cross-entropy to a teacher that is a moving average and averages augmentations where the source is "
        "unsure; a few weights at random back to the source's",
        changes="all parameters, batch statistics",
        forwards=36,
        backwards=1,
    )
    predicts_by = "teacher"

    threshold: float = number(
        default=0.92,
        at_least=0,
        at_most=1,
        help="confidence of the anchor below which a voxel's target is averaged over augmentations, which are computed "
        "only where there is such a voxel",
    )
    augmentations: int = count(default=32, help="number of augmentations")
    momentum: float = number(default=0.999, at_least=0, at_most=1, help="momentum of the teacher")
    restore_probability: float = number(
        default=0.01, at_least=0, at_most=1, help="probability of each weight to be the source's again after a step"
    )

    def _collect(self) -> dict[str, Any]:
        return dict(collect_all_parameters(self.given))

    def _setup(self) -> None:
        super()._setup()
        self._teacher = self._keep("teacher", Teacher(self.parameters))
        self._prediction_network = PredictionNetwork(self)

    @property
    def network(self) -> nn.Module:
        return self._prediction_network

    def _loss(self, x: torch.Tensor) -> torch.Tensor:
        # before the student's forward, whose gradient needs the student's weights to stay where they are
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
        """Return the teacher's prediction ``(B, C, ...)``, averaged over augmentations where the anchor is unsure."""
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
            # drawn where the weights lie, from a seed that the one generator gives
            seed = int(torch.randint(2**62, (1,), generator=self.generator).item())
            on_device = torch.Generator(parameter.device).manual_seed(seed)
            drawn = torch.rand(parameter.shape, generator=on_device, device=parameter.device)
            parameter.copy_(torch.where(drawn < self.restore_probability, self._source[name], parameter))

    def _probabilities(self, x: torch.Tensor) -> torch.Tensor:
        return activate(self._logits(x), self.activation)

    def _predict(self, x: torch.Tensor) -> torch.Tensor:
        with self._teacher.in_place():
            return self._logits(x)
