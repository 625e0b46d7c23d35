"""Base of methods that learn by gradient steps."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from ..errors import GrataError
from ..networks import HEADS, AuxiliaryHeads
from ..networks.parameters import moved, write
from ..normalization import collect_affine_parameters, deepest_feature
from ..objectives import (
    BRANCH_LOSSES,
    ROTATION_VIEWS,
    check_branch,
    consistency_loss,
    entropy_loss,
    rotation_loss,
)
from ..optimization import (
    LAWS,
    RATES,
    MakeOptimizer,
    Rate,
    Stepper,
    StepSignals,
    add_gradients,
    cosine_similarity,
    gradient_norm,
    gradient_of,
    make_optimizer,
    make_rate,
)
from ..predictions import NOTHING_KEPT, NothingKept, activate, view_agreement
from ..settings import Settings, choice, count, number, override, setting
from ..views import VIEWS, StrongView, View, resolve_views
from .base import SKIPPED, StepRecord, check_views
from .informed import InformedMethod
from .prediction import Computed
from .predictive import check_precision
from .prepared import require

__all__ = ["OBJECTIVES", "GradientMethod", "GradientRecord", "non_finite"]

_IN_STATE = ("activation", "steps", "entropy", "auxiliary", "rho", "views", "views_autocast", "autocast", "output")
"""Order of the shared settings in a saved state; the digest of the state's file depends on it."""

OBJECTIVES = ("entropy", "consistency", *BRANCH_LOSSES)
"""Objectives by name, for the auxiliary gradient of any method and both gradients of GraTa."""

PREDICT = ("network", "views", "before")
"""What can predict, by the names that configurations use."""

MakeStrongView = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def check_objective(value: Any) -> str:
    """Return ``value``, the name of an objective.

    Raises:
        GrataError: there is no such objective.
    """
    if not isinstance(value, str) or value not in OBJECTIVES:
        raise GrataError(f"there is no objective {value!r}; there are {', '.join(OBJECTIVES)}.")
    return value


def _check_auxiliary(value: Any) -> str | None:
    return None if value is None else check_objective(value)


def check_options(value: Any) -> Mapping[str, Any]:
    """Return ``value``, a mapping of options; an empty one for None.

    Raises:
        GrataError: ``value`` is something else.
    """
    if not isinstance(value, Mapping | None):
        raise GrataError(f"must be a mapping such as {{'betas': [0.9, 0.999]}}, got {value!r}.")
    return value or {}


def _strong_view(value: Any) -> MakeStrongView:
    if callable(value):
        return cast(MakeStrongView, value)
    if not isinstance(value, Mapping | None):
        raise GrataError(f"must be a mapping of settings such as {{'noise': [0, 0.05]}}, got {value!r}.")
    return StrongView(**(value or {}))


@dataclasses.dataclass(frozen=True)
class GradientRecord(StepRecord):
    """Record of an optimizer step; NaN stands for a value that does not exist or that a skipped step did not reach.

    Attributes:
        loss: value of the objective at the parameters where its gradient was taken.
        gradient_norm: Euclidean norm of that gradient over all adapted parameters.
        learning_rate: learning rate of the step in the first parameter group; 0 when the step was skipped.
        auxiliary_loss: value of the auxiliary objective, at the parameters before the step.
        auxiliary_gradient_norm: Euclidean norm of the auxiliary gradient.
        cosine: cosine of the angle between the two gradients, -1 to 1.
        agreement: agreement of the weak views' predictions with each other, 0 to 1; a measure of quality without
            labels, see :func:`grata.predictions.view_agreement`.
        kept: share of the voxels that passed the method's filter, 0 to 1.
        steps: records of all steps, when the method takes more than one for each batch.
    """

    loss: float = math.nan
    gradient_norm: float = math.nan
    learning_rate: float = 0.0
    auxiliary_loss: float = math.nan
    auxiliary_gradient_norm: float = math.nan
    cosine: float = math.nan
    agreement: float = math.nan
    kept: float = math.nan
    steps: tuple[GradientRecord, ...] = ()


class GradientMethod(InformedMethod):
    """Base of methods that take optimizer steps, by default only on weight and bias of the normalization layers.

    A method defines its objective, :meth:`_loss`; the step down the gradient is the same for all methods. The two parts
    of GraTa are settings of every method. First, the method takes a step of ``rho`` down the gradient of the
    ``auxiliary`` objective, and computes the gradient of its own objective there. Second, the cosine between the two
    gradients sets the learning rate.

    Raises:
        GrataError: a setting is not known or out of range, or the network has nothing to adapt.
    """

    optimizer_name: str | MakeOptimizer = setting(
        default="Adam",
        range="name of a class of torch.optim, a class, or a function",
        help="optimizer; a function gets a list of (name, parameter) and returns an optimizer with any number of "
        "parameter groups",
        in_state=False,
        alias="optimizer",
    )
    lr: float = number(
        default=1e-3,
        at_least=0,
        help="base learning rate; a function that makes the optimizer sets its own",
        in_state=False,
    )
    optimizer_options: Mapping[str, Any] | None = setting(
        default=None,
        check=check_options,
        range="mapping or null",
        help="further arguments of the optimizer, such as {betas: [0.9, 0.999]}; not for a function that makes it",
        in_state=False,
    )
    steps: int = count(default=1, help="number of optimizer steps on each batch")
    auxiliary: str | None = setting(
        default=None,
        check=_check_auxiliary,
        range=f"{', '.join(OBJECTIVES)}, or null",
        help="objective of the auxiliary gradient; null: no auxiliary gradient",
    )
    rho: float = number(
        default=0.0,
        at_least=0,
        help="length of the look-ahead step in units of the auxiliary gradient; it aligns the gradients; 0: no step",
    )
    learning_rate_law: Rate | str | Mapping[str, Any] = setting(
        default="constant",
        range=f"{', '.join((*LAWS, *RATES))}, or a mapping of name and settings",
        help="law of the factor on the learning rate: constant, a law of the gradients' cosine, or discrepancy",
        in_state=False,
    )
    views: Sequence[str] | None = setting(
        default=None,
        check=check_views,
        range=f"list of {', '.join(VIEWS)}, or null",
        help="names of the weak views; null: all that fit the shape of the image",
    )
    strong_view: MakeStrongView | Mapping[str, Any] | None = setting(
        default=None,
        check=_strong_view,
        range="mapping of settings of grata.views.StrongView, a function, or null",
        help="strong view; null: the reference's ranges and probabilities",
        in_state=False,
    )
    views_autocast: str | torch.dtype | None = setting(
        default=None,
        check=check_precision,
        range="bfloat16, float16 or null",
        help="precision of the weak views only; they carry no gradient and are averaged",
    )
    predict: str = choice(
        default="network",
        of=PREDICT,
        help="what predicts: network is the adapted network; views is the mean of its predictions over weak views, or "
        "the one that the step computed anyway; before is the prediction that the step computed before it changed "
        "anything, as in the code of TENT's authors, and that of the network where it computed none",
        in_state=False,
    )
    predict_views: Sequence[str] | None = override(
        default=None, help="weak views that predict, for predict: views; null: those of the setting views"
    )

    def __init__(self, *args: Any, **settings: Any) -> None:
        self._awaited: torch.Tensor | None = None
        self._heads: AuxiliaryHeads | None = None
        self._given_view: torch.Tensor | None = None
        self._notes: dict[str, float] = {}
        super().__init__(*args, **settings)

    def _collect(self) -> dict[str, Any]:
        return dict(collect_affine_parameters(self.given))

    def _setup(self) -> None:
        super()._setup()
        if self.auxiliary is not None:
            self._need_objective(self.auxiliary)
        self.rate = make_rate(self.learning_rate_law)
        if self.auxiliary is None and (self.rho > 0 or self.rate.needs_auxiliary):
            raise GrataError(
                f"needs two gradients: name the auxiliary objective, one of {', '.join(OBJECTIVES)}, or set "
                f"{'rho to 0' if self.rho > 0 else 'learning_rate_law to constant'}.",
                key="rho" if self.rho > 0 else "learning_rate_law",
            )
        self._stepper = self._keep("optimizer", self._make_stepper())
        self._keep("rate", self.rate)

    def _make_stepper(self) -> Stepper:
        options = self.optimizer_options or {}
        return Stepper(self.parameters, partial(make_optimizer, self.optimizer_name, self.lr, options))

    @property
    def _strong(self) -> MakeStrongView:
        """The strong view, made from its settings at construction."""
        return cast(MakeStrongView, self.strong_view)

    @property
    def prediction_views(self) -> Sequence[str] | None:
        return self.views if self.predict_views is None else self.predict_views

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of the method's steps."""
        return self._stepper.optimizer

    @abstractmethod
    def _loss(self, x: torch.Tensor) -> torch.Tensor:
        """Return the objective of the step for images ``(B, C, ...)`` at the present parameters: a scalar with a
        gradient.

        Further values for the record go into ``self._notes``.

        Raises:
            NothingKept: no voxel passed a filter; then no step is taken.
        """

    if TYPE_CHECKING:

        def adapt(self, images: torch.Tensor) -> GradientRecord: ...

    def _adapt(self, images: torch.Tensor) -> GradientRecord:
        records = [self._step(images) for _ in range(self.steps)]
        if self.steps == 1:
            return records[0]
        flags = tuple(dict.fromkeys(flag for record in records for flag in record.flags))
        return dataclasses.replace(records[-1], flags=flags, steps=tuple(records))

    def _step(self, x: torch.Tensor) -> GradientRecord:
        theta = self._copy()
        self._notes = {}
        self._awaited = x if self.predict == "before" else None
        record, auxiliary = GradientRecord(), None
        if (name := self.auxiliary) is not None:
            loss, auxiliary = self._loss_and_gradient(x, lambda x: self._objective(name, x))
            record = self._noted(GradientRecord(auxiliary_loss=loss, auxiliary_gradient_norm=gradient_norm(auxiliary)))
            if flags := non_finite("auxiliary_", loss, record.auxiliary_gradient_norm):
                return dataclasses.replace(record, flags=flags)

        if self.rho > 0:
            self._awaited = None
        try:
            with self._moved(auxiliary, -self.rho):
                loss, gradient = self._loss_and_gradient(x, self._loss)
        except NothingKept:
            return dataclasses.replace(record, kept=0.0, flags=(NOTHING_KEPT, SKIPPED))
        record = self._noted(dataclasses.replace(record, loss=loss, gradient_norm=gradient_norm(gradient)))
        if flags := non_finite("", loss, record.gradient_norm):
            return dataclasses.replace(record, flags=flags)

        if auxiliary is not None:
            record = dataclasses.replace(record, cosine=cosine_similarity(auxiliary, gradient))
        signals = StepSignals(x, record.cosine, self.activation, lambda: self._probabilities_and_feature(x))
        factor = self.rate.factor(signals)
        learning_rate = self._optimizer_step(gradient, factor)
        if learning_rate is None:
            write(self.parameters, theta)
            return dataclasses.replace(record, flags=("non_finite_parameters", SKIPPED))
        return dataclasses.replace(record, learning_rate=learning_rate)

    def _noted(self, record: GradientRecord) -> GradientRecord:
        notes: dict[str, Any] = dict(self._notes)
        return dataclasses.replace(record, **notes)

    def _moved(
        self, direction: Sequence[torch.Tensor | None] | None, length: float
    ) -> contextlib.AbstractContextManager[None]:
        """Move the parameters to ``θ + length·direction`` for a ``with`` block, then back to exactly ``θ``."""
        if direction is None or length == 0.0:
            return contextlib.nullcontext()
        return moved(self.parameters, direction, length)

    def _objective(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Return the loss of the objective called ``name`` at the present parameters."""
        if name == "entropy":
            return entropy_loss(self._logits(x), self.activation, self._entropy)
        if name == "consistency":
            pseudo_label = self._pseudo_label(x)
            if self.predict == "views":
                self.computed = Computed(x, views=resolve_views(self.views, x.shape[2:]), mean=pseudo_label)
            view = self._given_view
            if view is None:
                # full precision even under autocast, because the view is an image and may be in any unit
                with torch.autocast(x.device.type, enabled=False):
                    view = self._strong(x.clone(), self.generator)
            return consistency_loss(self._logits(view), pseudo_label, self.activation)
        if name == "rotation":
            return rotation_loss(self._branch, x, self.generator, self._rotation_views())
        return BRANCH_LOSSES[name](self._branch, x, self.generator)

    def _need_objective(self, name: str) -> None:
        """Find what the objective called ``name`` needs in addition to the network.

        Raises:
            GrataError: something that it needs is missing.
        """
        if name in BRANCH_LOSSES:
            self._find_branch(name)

    def _find_branch(self, name: str) -> None:
        """Find the network's own branch called ``name``, or else the prepared head of that name.

        Raises:
            GrataError: there is neither.
        """
        if self._has_branch(name):
            return
        if name not in HEADS:
            check_branch(self.given, name)
        self._heads = AuxiliaryHeads.load(self.given, require(self.prepared(), name, self.name))

    def _has_branch(self, name: str) -> bool:
        return name in (getattr(self.given, "branches", None) or ())

    def _rotation_views(self) -> Sequence[str]:
        """Return the classes of the rotation branch, in the order of its outputs."""
        if self._has_branch("rotation"):
            return ROTATION_VIEWS
        assert self._heads is not None
        return self._heads.views

    def _branch(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Return the output of an auxiliary branch, the network's own or a prepared head, in float32."""
        with self._precision(x):
            branch: Any = (self._network if self._has_branch(name) else self._heads).branch  # type: ignore[union-attr]
            output: torch.Tensor = branch(name, x).float()
            return output

    def _pseudo_label(self, x: torch.Tensor) -> torch.Tensor:
        """Return the mean probability over the weak views, each prediction mapped back; note their agreement."""
        views = resolve_views(self.views, x.shape[2:])
        total: Any = 0

        def predicted(view: View) -> torch.Tensor:
            nonlocal total
            p = view.inverse(activate(self._logits(view(x), self.views_autocast), self.activation))
            total = total + p
            return p

        with torch.no_grad():
            # one view at a time, so that memory holds only what the agreement needs
            agreement = view_agreement(map(predicted, views), background=self.activation == "softmax")
            self._notes["agreement"] = agreement
            mean: torch.Tensor = total / len(views)
            return mean

    def _logits(
        self, x: torch.Tensor, autocast: str | torch.dtype | None = None, network: nn.Module | None = None
    ) -> torch.Tensor:
        logits = super()._logits(x, autocast, network)
        # pseudo-labels, which may be another network's, are computed without a gradient
        if x is self._awaited and torch.is_grad_enabled():
            self._awaited = None
            self.computed = Computed(x, before=logits.detach())
        return logits

    def _probabilities_and_feature(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the prediction ``(B, C, ...)``, and the deepest feature averaged over space ``(B, F)``."""
        with torch.no_grad(), deepest_feature(self._network, x.shape) as feature:
            probabilities = activate(self._logits(x), self.activation)
        return probabilities, feature().flatten(2).mean(2).float()

    def _loss_and_gradient(
        self, x: torch.Tensor, loss_at: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[float, list[torch.Tensor | None]]:
        """Return the value of ``loss_at(x)`` and its gradient over the adapted parameters."""
        loss = loss_at(x)
        return loss.item(), gradient_of(loss, list(self.parameters.values()), self._half_precision(x))

    def _mean_by_parts(
        self, parts: Iterable[tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]], count: int
    ) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
        """Return the losses of the parts and the gradient of their mean, with the memory of one part.

        Args:
            parts: pairs of images and the function that returns their loss.
            count: number of parts.
        """
        parameters = list(self.parameters.values())
        losses: list[torch.Tensor] = []
        total: list[torch.Tensor | None] = [None] * len(parameters)
        for x, loss_at in parts:
            loss = loss_at(x)
            total = add_gradients(total, gradient_of(loss / count, parameters, self._half_precision(x)))
            losses.append(loss.detach())
        return losses, total

    def _optimizer_step(self, gradient: list[torch.Tensor | None], factor: float) -> float | None:
        """Take one step at ``factor`` times the base learning rates; see :meth:`Stepper.step`."""
        return self._stepper.step(gradient, factor)

    def _signature(self) -> dict[str, str]:
        found = super()._signature()
        own = [key for key in found if key in self._declared_below(GradientMethod) and key != "batch_statistics"]
        ordered = {key: found.pop(key) for key in (*own, *_IN_STATE) if key in found}
        found = ordered | found | {"optimizer": self._stepper.signature()}
        # an object from outside the package is identified by its class only
        for key, value in (("learning_rate_law", self.rate), ("strong_view", self.strong_view)):
            declared = isinstance(value, Settings) and value.settings()
            found[key] = repr(value) if declared or dataclasses.is_dataclass(value) else type(value).__name__
        return found


def non_finite(part: str, loss: float, norm: float) -> tuple[str, ...]:
    """Return the flags of a step whose loss or gradient norm is not finite; no flags when both are finite."""
    if not math.isfinite(loss):
        return (f"non_finite_{part}loss", SKIPPED)
    if not math.isfinite(norm):
        return (f"non_finite_{part}gradient", SKIPPED)
    return ()
