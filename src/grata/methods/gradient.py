"""What methods share that learn by gradient steps."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..alignment import Rate, StepSignals, cosine_similarity, gradient_norm, make_rate
from ..components.filters import NOTHING_KEPT, NothingKept
from ..components.gradients import add_gradients, cloned, gradient_of, load_optimizer
from ..errors import GrataError
from ..networks import HEADS, AuxiliaryHeads
from ..normalization import Rule, collect_affine_parameters, deepest_feature
from ..objectives import (
    BRANCH_LOSSES,
    ROTATION_VIEWS,
    activate,
    check_branch,
    consistency_loss,
    entropy_loss,
    rotation_loss,
    view_agreement,
)
from ..prepared import Prepared, require
from ..resets import ResetPolicy
from ..styles import StrongView
from ..views import View, resolve_views
from .base import SKIPPED, StepRecord
from .predictive import PredictiveMethod, check_count, check_number, check_precision

__all__ = ["OBJECTIVES", "GradientMethod", "GradientRecord", "non_finite"]

OBJECTIVES = ("entropy", "consistency", *BRANCH_LOSSES)
"""Objectives by name: what can give the auxiliary gradient of any method, and both gradients of GraTa."""


@dataclasses.dataclass(frozen=True)
class GradientRecord(StepRecord):
    """One optimizer step; NaN stands for what there is not, or was not reached when the step was skipped.

    Attributes:
        loss: of the objective, at the parameters that its gradient was taken at.
        gradient_norm: Euclidean norm of its gradient over all adapted parameters.
        learning_rate: of the step, first parameter group; 0 when skipped.
        auxiliary_loss: of the auxiliary objective, at the parameters before the step.
        auxiliary_gradient_norm: Euclidean norm of the auxiliary gradient.
        cosine: of the angle between the two gradients, -1 to 1.
        agreement: of the weak views' predictions with each other, 0 to 1, see :func:`grata.objectives.view_agreement`:
            how good the prediction is likely to be, told without labels.
        kept: share of the voxels that a filter of the method let through, 0 to 1.
        steps: the records of all steps, when the method takes more than one a batch.
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


class GradientMethod(PredictiveMethod):
    """Base of methods that take optimizer steps, by default on weight and bias of the normalization layers alone.

    A method gives the objective, :meth:`_loss`; the step down its gradient is the same for all. Any of them can be
    given the two parts that make GraTa, each by a setting of its own: the gradient is then taken where a step of
    ``rho`` down the gradient of an ``auxiliary`` objective leads to, and the cosine between the two gradients sets the
    learning rate.

    Args:
        network: the source network.
        parameters: those that take steps, by name; None: the affine parameters of all normalization layers.
        activation: ``sigmoid`` (multi-label) or ``softmax`` (multi-class).
        optimizer: name of a class of ``torch.optim``, or a callable that is given a list of ``(name, parameter)`` and
            returns an optimizer (with as many parameter groups as it likes).
        lr: base learning rate, for an optimizer that is named.
        optimizer_options: further arguments of a named optimizer, e.g. ``{"betas": (0.9, 0.999)}``.
        steps: optimizer steps on each batch.
        seed: of the method's own random generator.
        entropy: None: Shannon's, of each channel for sigmoid (``binary``), over the classes for softmax; or ``plogp``,
            see :func:`grata.objectives.entropy_loss`.
        auxiliary: name of the objective of the auxiliary gradient, one of :data:`OBJECTIVES`; None: there is none.
        rho: length of the look ahead, in units of the auxiliary gradient, at least 0; 0: the gradients are not aligned.
        learning_rate_law: factor on ``lr``: ``constant``; by the cosine between the gradients ``quadratic``, ``linear``
            or ``softplus``; a law of :data:`grata.alignment.RATES`, or a mapping of its ``name`` and settings.
        views: names of the weak views of the consistency objective, see :data:`grata.views.VIEWS`; None: by the image's
            shape.
        strong_view: of the same: a callable ``(images, generator)``, a dict of settings of
            :class:`grata.styles.StrongView`, or None for its defaults.
        views_autocast: precision of the weak views alone, which carry no gradient and are averaged.
        prepared: file of ``python -m grata prepare``, or what was read from it: its heads are the auxiliary branches of
            a network that has none of its own. Read when an objective needs it.
        batch_statistics: weight of the batch's statistics in batch normalization, 1 to 0 (the source's), or
            ``median``.
        reset: when to start from the source network again, see :mod:`grata.resets`; None: as the paper has it.
        autocast: ``bfloat16`` or ``float16`` for the forwards; None: as the surrounding ``torch.autocast`` says.
        output: key or index of the logits, for a network that returns a dict, list or tuple.

    Raises:
        GrataError: a setting is out of range, or the network has nothing to adapt.
    """

    def __init__(
        self,
        network: nn.Module,
        parameters: Mapping[str, nn.Parameter] | None = None,
        *,
        activation: str = "sigmoid",
        optimizer: str | Callable[[list[tuple[str, nn.Parameter]]], torch.optim.Optimizer] = "Adam",
        lr: float = 1e-3,
        optimizer_options: Mapping[str, Any] | None = None,
        steps: int = 1,
        seed: int = 0,
        entropy: str | None = None,
        auxiliary: str | None = None,
        rho: float = 0.0,
        learning_rate_law: Rate | str | Mapping[str, Any] = "constant",
        views: Sequence[str] | None = None,
        strong_view: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | Mapping[str, Any] | None = None,
        views_autocast: str | None = None,
        prepared: Prepared | str | Path | None = None,
        batch_statistics: float | Rule | str = 1.0,
        reset: ResetPolicy | str | Mapping[str, Any] | None = None,
        autocast: str | None = None,
        output: str | int | None = None,
    ) -> None:
        super().__init__(
            network,
            collect_affine_parameters(network) if parameters is None else parameters,
            activation=activation,
            seed=seed,
            entropy=entropy,
            batch_statistics=batch_statistics,
            reset=reset,
            autocast=autocast,
            output=output,
        )
        self.steps = check_count("steps", steps)
        self._prepared = prepared
        self._to_check: Prepared | None = None
        self._heads: AuxiliaryHeads | None = None
        if auxiliary is not None:
            self._check_objective("auxiliary", auxiliary)
        self.auxiliary = auxiliary
        self.rho = check_number("rho", rho, low=0.0)
        self.rate = make_rate(learning_rate_law)
        if auxiliary is None and (self.rho > 0 or self.rate.needs_auxiliary):
            what = "rho" if self.rho > 0 else "learning_rate_law"
            raise GrataError(
                f"{what} is about two gradients: name the auxiliary objective, one of {', '.join(OBJECTIVES)}."
            )
        resolve_views(views, (1, 1, 1))
        self.views = views
        self.strong_view = _strong_view(strong_view)
        self.views_autocast = check_precision("views_autocast", views_autocast)
        self._given_view: torch.Tensor | None = None
        self._notes: dict[str, float] = {}
        self._optimizer_settings = (optimizer, lr, optimizer_options or {})
        self._reset_optimizer()

    @abstractmethod
    def _loss(self, x: torch.Tensor) -> torch.Tensor:
        """The objective of the step for images ``(B, C, ...)``, at the present parameters: a scalar with a gradient.

        What the record is to tell beside the loss is put into ``self._notes``.

        Raises:
            NothingKept: a filter let nothing through; no step is taken then.
        """

    def _adapt(self, images: torch.Tensor) -> GradientRecord:
        records = [self._step(images) for _ in range(self.steps)]
        if self.steps == 1:
            return records[0]
        flags = tuple(dict.fromkeys(flag for record in records for flag in record.flags))
        return dataclasses.replace(records[-1], flags=flags, steps=tuple(records))

    def _step(self, x: torch.Tensor) -> GradientRecord:
        theta = self._copy()
        self._notes = {}
        record, auxiliary = GradientRecord(), None
        if self.auxiliary is not None:
            loss, auxiliary = self._loss_and_gradient(x, lambda x: self._objective(self.auxiliary, x))
            record = GradientRecord(
                auxiliary_loss=loss, auxiliary_gradient_norm=gradient_norm(auxiliary), **self._notes
            )
            if flags := non_finite("auxiliary_", loss, record.auxiliary_gradient_norm):
                return dataclasses.replace(record, flags=flags)

        try:
            with self._moved(auxiliary, -self.rho):
                loss, gradient = self._loss_and_gradient(x, self._loss)
        except NothingKept:
            return dataclasses.replace(record, kept=0.0, flags=(NOTHING_KEPT, SKIPPED))
        record = dataclasses.replace(record, loss=loss, gradient_norm=gradient_norm(gradient), **self._notes)
        if flags := non_finite("", loss, record.gradient_norm):
            return dataclasses.replace(record, flags=flags)

        if auxiliary is not None:
            record = dataclasses.replace(record, cosine=cosine_similarity(auxiliary, gradient))
        signals = StepSignals(x, record.cosine, self.activation, lambda: self._probabilities_and_feature(x))
        factor = self.rate.factor(signals)
        learning_rate = self._optimizer_step(gradient, factor)
        if learning_rate is None:
            self._write(theta)
            return dataclasses.replace(record, flags=("non_finite_parameters", SKIPPED))
        return dataclasses.replace(record, learning_rate=learning_rate)

    @contextlib.contextmanager
    def _moved(self, direction: list[torch.Tensor | None] | None, length: float) -> Iterator[None]:
        """The network at ``θ + length·direction`` for the time of a ``with`` block, then back at ``θ`` exactly."""
        if direction is None or length == 0.0:
            yield
            return
        theta = self._copy()
        try:
            with torch.no_grad():
                for parameter, part in zip(self.parameters.values(), direction):
                    if part is not None:
                        parameter.add_(part, alpha=length)
            yield
        finally:
            self._write(theta)

    def _objective(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Loss of the objective called ``name`` at the present parameters."""
        if name == "entropy":
            return entropy_loss(self._logits(x), self.activation, self.entropy)
        if name == "consistency":
            pseudo_label = self._pseudo_label(x)
            view = self._given_view
            if view is None:
                # In full precision, whatever the surrounding autocast: the view is an image, and may be in any unit.
                with torch.autocast(x.device.type, enabled=False):
                    view = self.strong_view(x.clone(), self.generator)
            return consistency_loss(self._logits(view), pseudo_label, self.activation)
        if name == "rotation":
            return rotation_loss(self._branch, x, self.generator, self._rotation_views())
        return BRANCH_LOSSES[name](self._branch, x, self.generator)

    def _check_objective(self, role: str, name: str) -> None:
        if not isinstance(name, str) or name not in OBJECTIVES:
            raise GrataError(f"there is no objective {name!r}; there are {', '.join(OBJECTIVES)}.", key=role)
        if name in BRANCH_LOSSES:
            self._find_branch(name)

    def _find_branch(self, name: str) -> None:
        """The network's own branch, else the prepared head of that name.

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
        """Classes of the rotation branch, in the order of its outputs."""
        return ROTATION_VIEWS if self._has_branch("rotation") else self._heads.views

    def prepared(self) -> Prepared | None:
        """What was prepared from the source set; None: nothing was given.

        That it was for the network's weights is made sure of when these are taken as the source's, at the first batch:
        they may be loaded after the method was made.

        Raises:
            GrataError: the file is missing or damaged.
        """
        if isinstance(self._prepared, str | Path):
            self._prepared = Prepared.load(self._prepared)
        self._to_check = self._prepared
        return self._prepared

    def _activate(self) -> None:
        if not self._active and self._to_check is not None:
            self._to_check.check_network(self.given)
            self._to_check = None
        super()._activate()

    def _branch(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Output of an auxiliary branch, the network's own or a prepared head, in float32."""
        with self._precision(x):
            branch = self._network.branch if self._has_branch(name) else self._heads.branch
            return branch(name, x).float()

    def _pseudo_label(self, x: torch.Tensor) -> torch.Tensor:
        """Mean probability over the weak views, each prediction mapped back; how well these agree is noted."""
        views = resolve_views(self.views, x.shape[2:])
        total: Any = 0

        def predicted(view: View) -> torch.Tensor:
            nonlocal total
            p = view.inverse(activate(self._logits(view(x), self.views_autocast), self.activation))
            total = total + p
            return p

        with torch.no_grad():
            # one after the other, so that nothing is kept of a view but what the agreement needs
            agreement = view_agreement(map(predicted, views), background=self.activation == "softmax")
            self._notes["agreement"] = agreement
            return total / len(views)

    def _probabilities_and_feature(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Prediction ``(B, C, ...)`` of the present network, and its deepest feature averaged over space ``(B, F)``."""
        with torch.no_grad(), deepest_feature(self._network, x.shape) as feature:
            probabilities = activate(self._logits(x), self.activation)
        return probabilities, feature().flatten(2).mean(2).float()

    def _loss_and_gradient(
        self, x: torch.Tensor, loss_at: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[float, list[torch.Tensor | None]]:
        """Value and gradient over the adapted parameters of ``loss_at(x)``."""
        loss = loss_at(x)
        return loss.item(), gradient_of(loss, list(self.parameters.values()), self._half_precision(x))

    def _mean_by_parts(
        self, parts: Iterable[tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]], count: int
    ) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
        """Losses, and the gradient of their mean, one part after the other: memory is that of one.

        Args:
            parts: images, and the loss to take of them.
            count: how many they are.
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
        """One step at ``factor`` times the base learning rates; None (and the optimizer as before) when it
        overflows.
        """
        before = cloned(self.optimizer.state_dict())
        for group, base in zip(self.optimizer.param_groups, self._base_lr):
            group["lr"] = base * factor
        for parameter, g in zip(self.parameters.values(), gradient):
            parameter.grad = g
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        moments = (value for state in self.optimizer.state.values() for value in state.values())
        values = (*self.parameters.values(), *(m for m in moments if isinstance(m, torch.Tensor)))
        if all(torch.isfinite(value).all() for value in values):
            return self.optimizer.param_groups[0]["lr"]
        load_optimizer(self.optimizer, before)
        return None

    def _reset_optimizer(self) -> None:
        self.optimizer = _optimizer(*self._optimizer_settings, list(self.parameters.items()))
        self._base_lr = [float(group["lr"]) for group in self.optimizer.param_groups]

    def restore(self) -> None:
        super().restore()
        self.rate.forget()
        self._reset_optimizer()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "optimizer": cloned(self.optimizer.state_dict()),
            "rate": self.rate.state_dict(),
        }

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        load_optimizer(self.optimizer, state["optimizer"])
        self.rate.load_state_dict(state["rate"])

    def _signature(self) -> dict[str, str]:
        found = super()._signature() | {"optimizer": self._optimizer_signature()}
        # what somebody gave as an object of their own is known by its class alone
        for key, value in (("learning_rate_law", self.rate), ("strong_view", self.strong_view)):
            found[key] = repr(value) if dataclasses.is_dataclass(value) else type(value).__name__
        return found

    def _optimizer_signature(self) -> str:
        groups = [
            {key: lr if key == "lr" else value for key, value in group.items() if key not in ("params", "param_names")}
            for group, lr in zip(self.optimizer.param_groups, self._base_lr)
        ]
        return f"{type(self.optimizer).__name__} {groups}"


def non_finite(part: str, loss: float, norm: float) -> tuple[str, ...]:
    """Flags of a step whose loss or gradient norm is not finite; none when both are."""
    if not math.isfinite(loss):
        return (f"non_finite_{part}loss", SKIPPED)
    if not math.isfinite(norm):
        return (f"non_finite_{part}gradient", SKIPPED)
    return ()


def _optimizer(
    optimizer: str | Callable[[list[tuple[str, nn.Parameter]]], torch.optim.Optimizer],
    lr: float,
    options: Mapping[str, Any],
    parameters: list[tuple[str, nn.Parameter]],
) -> torch.optim.Optimizer:
    if not isinstance(options, Mapping):
        raise GrataError(
            f"must be a mapping such as {{'betas': [0.9, 0.999]}}, got {options!r}.", key="optimizer_options"
        )
    if callable(optimizer):
        made = optimizer(parameters)
    else:
        lr = check_number("lr", lr, low=0.0)
        optimizer_class = getattr(torch.optim, str(optimizer), None)
        if not (isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.Optimizer)):
            raise GrataError(f"torch.optim has no {optimizer!r}; for example Adam, AdamW or SGD.", key="optimizer")
        try:
            made = optimizer_class(parameters, lr=lr, **options)
        # Optimizers check their arguments each in its own way.
        except (TypeError, ValueError, LookupError, RuntimeError) as error:
            raise GrataError(f"{optimizer} refuses {dict(options)}: {error}.", key="optimizer_options") from error
    if not isinstance(made, torch.optim.Optimizer):
        raise GrataError(
            f"must be a name or make a torch.optim.Optimizer, got a {type(made).__name__}.", key="optimizer"
        )
    if isinstance(made, torch.optim.LBFGS | torch.optim.SparseAdam):
        raise GrataError(
            f"{type(made).__name__} does not fit: LBFGS evaluates the loss several times a step, SparseAdam "
            "takes sparse gradients. Use for example Adam, AdamW or SGD.",
            key="optimizer",
        )
    return made


def _strong_view(
    view: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | Mapping[str, Any] | None,
) -> Callable[[torch.Tensor, torch.Generator], torch.Tensor]:
    if callable(view):
        return view
    if not isinstance(view, Mapping | None):
        raise GrataError(
            f"must be a mapping of settings such as {{'noise': [0, 0.05]}}, got {view!r}.", key="strong_view"
        )
    settings = {key: tuple(v) if isinstance(v, list) else v for key, v in (view or {}).items()}
    known = [field.name for field in dataclasses.fields(StrongView)]
    unknown = [key for key in settings if key not in known]
    if unknown:
        raise GrataError(f"has no setting {unknown[0]!r}; the settings are {', '.join(known)}.", key="strong_view")
    return StrongView(**settings)
