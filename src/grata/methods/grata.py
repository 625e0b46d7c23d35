"""GraTa: gradient alignment-based test-time adaptation (AAAI 2025)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..alignment import cosine_similarity, gradient_norm, learning_rate_factor
from ..errors import GrataError
from ..objectives import (
    BRANCH_LOSSES,
    activate,
    check_branch,
    consistency_loss,
    entropy_loss,
    view_agreement,
)
from ..styles import StrongView
from ..views import resolve_views
from .base import StepRecord
from .gradient import SKIPPED, GradientMethod, check_number, check_precision, non_finite

__all__ = ["OBJECTIVES", "GraTa", "GraTaRecord"]

OBJECTIVES = ("entropy", "consistency", *BRANCH_LOSSES)
"""Objectives that can give the auxiliary or the pseudo gradient."""


@dataclasses.dataclass(frozen=True)
class GraTaRecord(StepRecord):
    """One GraTa step; NaN stands for what was not reached when a step was skipped.

    Attributes:
        auxiliary_loss: of the auxiliary objective (entropy of the prediction) at the parameters before the step.
        pseudo_loss: of the pseudo objective (consistency) at the look-ahead parameters.
        cosine: of the angle between the two gradients, -1 to 1.
        learning_rate: of the step, first parameter group; 0 when skipped.
        auxiliary_gradient_norm: Euclidean norm over all adapted parameters.
        pseudo_gradient_norm: the same of the pseudo gradient.
        agreement: of the weak views' predictions with each other, 0 to 1, see :func:`grata.objectives.view_agreement`:
            how good the prediction is likely to be, told without labels. NaN where there are no two views.
        steps: the records of all steps, when the method takes more than one a batch.
    """

    auxiliary_loss: float = math.nan
    pseudo_loss: float = math.nan
    cosine: float = math.nan
    learning_rate: float = 0.0
    auxiliary_gradient_norm: float = math.nan
    pseudo_gradient_norm: float = math.nan
    agreement: float = math.nan
    steps: tuple[GraTaRecord, ...] = ()


class GraTa(GradientMethod):
    """Gradient alignment-based test-time adaptation of normalization layers (GraTa, AAAI 2025).

    .. code-block:: text

        g_aux = ∇ entropy(f_θ(x))                                    auxiliary gradient
        θ'    = θ − ρ·g_aux                                           look ahead: aligns the two gradients
        ŷ     = mean_v v⁻¹(σ(f_θ'(v(x))))                            pseudo-label over the weak views
        g_pse = ∇ cross-entropy(f_θ'(strong(x)), ŷ)                  pseudo gradient
        η     = lr·(1 + cos(g_aux, g_pse))²/4                         dynamic learning rate
        θ     ← optimizer(θ, g_pse, η)

    Args:
        network: the source network; it needs normalization layers with affine parameters.
        activation: ``sigmoid`` (multi-label) or ``softmax`` (multi-class).
        optimizer: name of a class of ``torch.optim``, or a callable that is given a list of ``(name, parameter)`` and
            returns an optimizer (with as many parameter groups as it likes, each is scaled by the law).
        lr: base learning rate η₀, for an optimizer that is named.
        seed: of the method's own random generator.
        optimizer_options: further arguments of a named optimizer, e.g. ``{"betas": (0.9, 0.999)}``.
        auxiliary: objective of the auxiliary gradient, a key of :data:`OBJECTIVES`.
        pseudo: objective of the pseudo gradient, likewise; GraTa's own pair is entropy and consistency, the others are
            those of its ablation and need a network with auxiliary branches (:class:`grata.networks.ResUNet`).
        entropy: ``plogp`` (the reference's) or ``binary``, see :func:`grata.objectives.entropy_loss`.
        rho: ρ, length of the look-ahead in units of the auxiliary gradient.
        learning_rate_law: ``quadratic`` (GraTa's), ``linear``, ``softplus`` or ``constant``.
        views: names of the weak views, see :data:`grata.views.VIEWS`; None: by the image's shape.
        strong_view: a callable ``(images, generator)``, a dict of settings of :class:`grata.styles.StrongView`, or None
            for its defaults.
        batch_statistics: weight of the batch's statistics in batch normalization, 1 (default) to 0 (the source's).
        steps: optimizer steps on each batch.
        episodic: back to the source network for every case, instead of online.
        autocast: ``bfloat16`` or ``float16`` for the forwards; None: as the surrounding ``torch.autocast`` says.
        views_autocast: the same for the weak views alone, which carry no gradient and are averaged.
        output: key or index of the logits, for a network that returns a dict, list or tuple.

    Raises:
        GrataError: a setting is out of range, or the network has nothing to adapt.

    Example::

        method = grata.methods.GraTa(network, activation="sigmoid", optimizer="Adam", lr=1e-4, seed=0)
        record = method.adapt(images)
        prediction = method.network(images)
        method.restore()
    """

    name = "grata"
    summary = "pseudo gradient, aligned with the entropy gradient, at a learning rate set by their cosine"
    changes = "affine parameters of normalization layers, batch normalization statistics"

    def __init__(
        self,
        network: nn.Module,
        activation: str = "sigmoid",
        optimizer: str | Callable[[list[tuple[str, nn.Parameter]]], torch.optim.Optimizer] = "Adam",
        lr: float = 1e-4,
        seed: int = 0,
        optimizer_options: Mapping[str, Any] | None = None,
        auxiliary: str = "entropy",
        pseudo: str = "consistency",
        entropy: str = "plogp",
        rho: float = 1.0,
        learning_rate_law: str = "quadratic",
        views: Sequence[str] | None = None,
        strong_view: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | Mapping[str, Any] | None = None,
        batch_statistics: float = 1.0,
        steps: int = 1,
        episodic: bool = False,
        autocast: str | None = None,
        views_autocast: str | None = None,
        output: str | int | None = None,
    ) -> None:
        super().__init__(
            network,
            activation=activation,
            optimizer=optimizer,
            lr=lr,
            seed=seed,
            optimizer_options=optimizer_options,
            entropy=entropy,
            batch_statistics=batch_statistics,
            episodic=episodic,
            autocast=autocast,
            output=output,
        )
        for role, objective in (("auxiliary", auxiliary), ("pseudo", pseudo)):
            if not isinstance(objective, str) or objective not in OBJECTIVES:
                raise GrataError(f"{role}: there is no objective {objective!r}; there are {', '.join(OBJECTIVES)}.")
            if objective in BRANCH_LOSSES:
                check_branch(network, objective)
        self.auxiliary = auxiliary
        self.pseudo = pseudo
        self.rho = check_number("rho", rho, low=0.0)
        self.learning_rate_law = learning_rate_law
        learning_rate_factor(learning_rate_law, 0.0)
        resolve_views(views, (1, 1, 1))
        self.views = views
        self.strong_view = _strong_view(strong_view)
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise GrataError(f"steps must be a whole number of at least 1, got {steps!r}.")
        self.steps = steps
        self.views_autocast = check_precision("views_autocast", views_autocast)

    def _adapt(self, images: torch.Tensor, strong_view: torch.Tensor | None = None) -> GraTaRecord:
        if strong_view is not None:
            strong_view = self._plain(strong_view)
        records = [self._step(images, strong_view) for _ in range(self.steps)]
        if self.steps == 1:
            return records[0]
        flags = tuple(dict.fromkeys(flag for record in records for flag in record.flags))
        return dataclasses.replace(records[-1], flags=flags, steps=tuple(records))

    def _step(self, x: torch.Tensor, strong: torch.Tensor | None) -> GraTaRecord:
        theta = self._copy()

        auxiliary_loss, g_aux, before = self._objective(self.auxiliary, x, strong)
        record = GraTaRecord(
            auxiliary_loss=auxiliary_loss, auxiliary_gradient_norm=gradient_norm(g_aux), agreement=before
        )
        if flags := non_finite("auxiliary", record.auxiliary_loss, record.auxiliary_gradient_norm):
            return dataclasses.replace(record, flags=flags)

        try:
            with torch.no_grad():
                for parameter, gradient in zip(self.parameters.values(), g_aux):
                    if gradient is not None:
                        parameter.sub_(gradient, alpha=self.rho)
            pseudo_loss, g_pse, ahead = self._objective(self.pseudo, x, strong)
        finally:
            self._write(theta)

        record = dataclasses.replace(
            record,
            pseudo_loss=pseudo_loss,
            pseudo_gradient_norm=gradient_norm(g_pse),
            agreement=before if math.isnan(ahead) else ahead,
        )
        if flags := non_finite("pseudo", record.pseudo_loss, record.pseudo_gradient_norm):
            return dataclasses.replace(record, flags=flags)

        cosine = cosine_similarity(g_aux, g_pse)
        learning_rate = self._optimizer_step(g_pse, learning_rate_factor(self.learning_rate_law, cosine))
        if learning_rate is None:
            self._write(theta)
            return dataclasses.replace(record, cosine=cosine, flags=("non_finite_parameters", SKIPPED))
        return dataclasses.replace(record, cosine=cosine, learning_rate=learning_rate)

    def _objective(
        self, name: str, x: torch.Tensor, strong: torch.Tensor | None
    ) -> tuple[float, list[torch.Tensor | None], float]:
        """Loss and gradient of an objective at the present parameters, and the agreement of the views if it has any."""
        agreement = math.nan
        if name == "entropy":
            image, loss_at = x, lambda x: entropy_loss(self._logits(x), self.activation, self.entropy)
        elif name == "consistency":
            pseudo_label, agreement = self._pseudo_label(x)
            if strong is None:
                # In full precision, whatever the surrounding autocast: the view is an image, and may be in any unit.
                with torch.autocast(x.device.type, enabled=False):
                    strong = self.strong_view(x.clone(), self.generator)
            image, loss_at = strong, lambda view: consistency_loss(self._logits(view), pseudo_label, self.activation)
        else:
            image, loss_at = x, lambda x: BRANCH_LOSSES[name](self._branch, x, self.generator)
        return *self._loss_and_gradient(image, loss_at), agreement

    def _branch(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Output of an auxiliary branch, in float32."""
        with self._precision(x):
            return self._network.branch(name, x).float()

    def _pseudo_label(self, x: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Mean probability over the weak views, each prediction mapped back, and how well these agree; no gradient."""
        views = resolve_views(self.views, x.shape[2:])
        with torch.no_grad():
            predictions = [
                view.inverse(activate(self._logits(view(x), self.views_autocast), self.activation)) for view in views
            ]
            agreement = view_agreement(predictions, background=self.activation == "softmax")
            return sum(predictions) / len(views), agreement


def _strong_view(
    view: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | Mapping[str, Any] | None,
) -> Callable[[torch.Tensor, torch.Generator], torch.Tensor]:
    if callable(view):
        return view
    if not isinstance(view, Mapping | None):
        raise GrataError(f"strong_view must be a mapping of settings such as {{'noise': [0, 0.05]}}, got {view!r}.")
    settings = {key: tuple(v) if isinstance(v, list) else v for key, v in (view or {}).items()}
    known = [field.name for field in dataclasses.fields(StrongView)]
    unknown = [key for key in settings if key not in known]
    if unknown:
        raise GrataError(f"strong_view has no setting {unknown[0]!r}; the settings are {', '.join(known)}.")
    return StrongView(**settings)
