"""GraTa: gradient alignment-based test-time adaptation (AAAI 2025)."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..alignment import cosine_similarity, gradient_norm, learning_rate_factor
from ..errors import GrataError
from ..normalization import collect_affine_parameters
from ..objectives import activate, consistency_loss, entropy_loss
from ..objectives.activation import check_activation
from ..objectives.entropy import entropy_map
from ..styles import StrongView
from ..views import resolve_views
from .base import Method, StepRecord

__all__ = ["GraTa", "GraTaRecord"]

_AUTOCAST = {"bfloat16": torch.bfloat16, "bf16": torch.bfloat16, "float16": torch.float16, "fp16": torch.float16}
_SKIPPED = "step_skipped"


@dataclasses.dataclass(frozen=True)
class GraTaRecord(StepRecord):
    """One GraTa step; NaN stands for what was not reached when a step was skipped.

    Attributes:
        auxiliary_loss: entropy of the prediction at the parameters before the step.
        pseudo_loss: consistency loss at the look-ahead parameters.
        cosine: of the angle between the two gradients, -1 to 1.
        learning_rate: of the step, first parameter group; 0 when skipped.
        auxiliary_gradient_norm: Euclidean norm over all adapted parameters.
        pseudo_gradient_norm: the same of the pseudo gradient.
        steps: the records of all steps, when the method takes more than one a batch.
    """

    auxiliary_loss: float = math.nan
    pseudo_loss: float = math.nan
    cosine: float = math.nan
    learning_rate: float = 0.0
    auxiliary_gradient_norm: float = math.nan
    pseudo_gradient_norm: float = math.nan
    steps: tuple[GraTaRecord, ...] = ()


class GraTa(Method):
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
        entropy: str = "plogp",
        rho: float = 1.0,
        learning_rate_law: str = "quadratic",
        views: Sequence[str] | None = None,
        strong_view: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | Mapping[str, Any] | None = None,
        batch_statistics: float = 1.0,
        steps: int = 1,
        episodic: bool = False,
        autocast: str | None = None,
        output: str | int | None = None,
    ) -> None:
        super().__init__(network, collect_affine_parameters(network), batch_statistics, seed, episodic)
        check_activation(activation)
        self.activation = activation
        self.entropy = entropy
        entropy_loss(torch.zeros(1, 2, 1), activation, entropy)  # a wrong name fails here, not after the first scan
        self.rho = _number("rho", rho, low=0.0)
        self.learning_rate_law = learning_rate_law
        learning_rate_factor(learning_rate_law, 0.0)
        resolve_views(views, (1, 1, 1))
        self.views = views
        self.strong_view = _strong_view(strong_view)
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise GrataError(f"steps must be a whole number of at least 1, got {steps!r}.")
        self.steps = steps
        if autocast is not None and str(autocast) not in _AUTOCAST:
            raise GrataError(f"autocast must be one of {', '.join(_AUTOCAST)}, or null, got {autocast!r}.")
        self.autocast = None if autocast is None else _AUTOCAST[autocast]
        self.output = output
        self._optimizer_settings = (optimizer, lr, optimizer_options or {})
        self._reset_optimizer()

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

        auxiliary_loss, g_aux = self._loss_and_gradient(
            x, lambda logits: entropy_loss(logits, self.activation, self.entropy)
        )
        record = GraTaRecord(auxiliary_loss=auxiliary_loss, auxiliary_gradient_norm=gradient_norm(g_aux))
        if flags := _non_finite("auxiliary", record.auxiliary_loss, record.auxiliary_gradient_norm):
            return dataclasses.replace(record, flags=flags)

        try:
            with torch.no_grad():
                for parameter, gradient in zip(self.parameters.values(), g_aux):
                    if gradient is not None:
                        parameter.sub_(gradient, alpha=self.rho)
            pseudo_label = self._pseudo_label(x)
            if strong is None:
                # In full precision, whatever the surrounding autocast: the view is an image, and may be in any unit.
                with torch.autocast(x.device.type, enabled=False):
                    strong = self.strong_view(x.clone(), self.generator)
            pseudo_loss, g_pse = self._loss_and_gradient(
                strong, lambda logits: consistency_loss(logits, pseudo_label, self.activation)
            )
        finally:
            self._write(theta)

        record = dataclasses.replace(record, pseudo_loss=pseudo_loss, pseudo_gradient_norm=gradient_norm(g_pse))
        if flags := _non_finite("pseudo", record.pseudo_loss, record.pseudo_gradient_norm):
            return dataclasses.replace(record, flags=flags)

        cosine = cosine_similarity(g_aux, g_pse)
        learning_rate = self._optimizer_step(g_pse, learning_rate_factor(self.learning_rate_law, cosine))
        if learning_rate is None:
            self._write(theta)
            return dataclasses.replace(record, cosine=cosine, flags=("non_finite_parameters", _SKIPPED))
        return dataclasses.replace(record, cosine=cosine, learning_rate=learning_rate)

    def uncertainty(self, images: torch.Tensor) -> torch.Tensor:
        """Mean entropy of the prediction, by the same definition as the auxiliary loss; shape ``(B,)``."""
        self._activate()
        self._network.eval()
        with torch.no_grad():
            return entropy_map(self._logits(self._plain(images)), self.activation, self.entropy).flatten(1).mean(1)

    def _pseudo_label(self, x: torch.Tensor) -> torch.Tensor:
        """Mean probability over the weak views, each prediction mapped back; no gradient."""
        views = resolve_views(self.views, x.shape[2:])
        with torch.no_grad():
            return sum(view.inverse(activate(self._logits(view(x)), self.activation)) for view in views) / len(views)

    def _loss_and_gradient(
        self, x: torch.Tensor, loss_of: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[float, list[torch.Tensor | None]]:
        loss = loss_of(self._logits(x))
        parameters = list(self.parameters.values())
        if not self._half_precision(x):
            return loss.item(), _gradient(loss, parameters)
        # The gradient of a mean over voxels is below what float16 resolves: scale the loss, less where that overflows.
        for exponent in (16, 12, 8, 4, 0):
            scaled = _gradient(loss * 2.0**exponent, parameters, retain_graph=True)
            gradient = [None if g is None else g / 2.0**exponent for g in scaled]
            if math.isfinite(gradient_norm(gradient)):
                break
        return loss.item(), gradient

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        """Logits in float32 ``(B, C, ...)``."""
        precision = (
            torch.autocast(x.device.type, dtype=self.autocast)
            if self.autocast is not None
            else torch.autocast(x.device.type, enabled=torch.is_autocast_enabled(x.device.type))
        )
        with precision:
            logits = _item(self._network(x), self.output)
        if self.activation == "softmax" and logits.shape[1] < 2:
            raise GrataError("activation=softmax needs two or more output channels; a single one is for sigmoid.")
        return logits if logits.dtype == torch.float64 else logits.float()

    def _half_precision(self, x: torch.Tensor) -> bool:
        if self.autocast is not None:
            return self.autocast is torch.float16
        device = x.device.type
        return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) is torch.float16

    def _optimizer_step(self, gradient: list[torch.Tensor | None], factor: float) -> float | None:
        """One step at ``factor`` times the base learning rates; None (and the optimizer as before) when it overflows."""
        before = copy.deepcopy(self.optimizer.state_dict())
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
        _load_optimizer(self.optimizer, before)
        return None

    def _reset_optimizer(self) -> None:
        self.optimizer = _optimizer(*self._optimizer_settings, list(self.parameters.items()))
        self._base_lr = [float(group["lr"]) for group in self.optimizer.param_groups]

    def restore(self) -> None:
        super().restore()
        self._reset_optimizer()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "optimizer_settings": self._optimizer_signature(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``.

        Raises:
            GrataError: it is of another method, network, optimizer, or of other settings of the optimizer.
        """
        if state.get("method") == self.name and state["optimizer_settings"] != self._optimizer_signature():
            raise GrataError(
                f"This state was written with another optimizer or other settings of it ({state['optimizer_settings']}, "
                f"here {self._optimizer_signature()}): give the same ones, or start anew."
            )
        super().load_state_dict(state)
        with torch.inference_mode(False):
            _load_optimizer(self.optimizer, state["optimizer"])

    def _optimizer_signature(self) -> str:
        groups = [
            {key: lr if key == "lr" else value for key, value in group.items() if key not in ("params", "param_names")}
            for group, lr in zip(self.optimizer.param_groups, self._base_lr)
        ]
        return f"{type(self.optimizer).__name__} {groups}"


def _item(output: Any, which: str | int | None) -> torch.Tensor:
    """The logits in what a network returns."""
    # A network with deep supervision returns a list in training alone.
    if isinstance(output, torch.Tensor) and not isinstance(which, str):
        return output
    if which is not None:
        try:
            output = output[which]
        except (LookupError, TypeError, ValueError) as error:
            raise GrataError(f"output: {which!r} is not in what the network returns, {_described(output)}.") from error
    if not isinstance(output, torch.Tensor):
        raise GrataError(f"The network returns {_described(output)}: name the logits by output.")
    return output


def _described(output: Any) -> str:
    has = f" with keys {list(output)}" if isinstance(output, Mapping) else ""
    has = f" of {len(output)} items" if isinstance(output, list | tuple) else has
    return f"a {type(output).__name__}{has}"


def _gradient(
    loss: torch.Tensor, parameters: list[nn.Parameter], retain_graph: bool = False
) -> list[torch.Tensor | None]:
    """None for a parameter that the loss does not depend on: an optimizer then leaves it alone, weight decay and all."""
    gradients: Sequence[torch.Tensor | None] = [None]
    if loss.requires_grad:
        gradients = torch.autograd.grad(loss, parameters, retain_graph=retain_graph, allow_unused=True)
    if all(g is None for g in gradients):
        raise GrataError(
            "The network's prediction does not depend on any adapted parameter: its normalization layers are not used, run "
            "without gradients, or were replaced since the method was made."
        )
    return list(gradients)


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """``optimizer.load_state_dict`` that neither shares tensors with ``state`` nor changes their types, as torch's does."""
    state = copy.deepcopy(state)
    optimizer.load_state_dict(state)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, saved in state["state"].items():
        loaded = optimizer.state[parameters[index]]
        for key, value in saved.items():
            if isinstance(value, torch.Tensor):
                loaded[key] = value.to(loaded[key].device, copy=True)


def _non_finite(part: str, loss: float, norm: float) -> tuple[str, ...]:
    if not math.isfinite(loss):
        return (f"non_finite_{part}_loss", _SKIPPED)
    if not math.isfinite(norm):
        return (f"non_finite_{part}_gradient", _SKIPPED)
    return ()


def _number(name: str, value: Any, low: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < low:
        raise GrataError(f"{name} must be a finite number of at least {low:g}, got {value!r}.")
    return float(value)


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


def _optimizer(
    optimizer: str | Callable[[list[tuple[str, nn.Parameter]]], torch.optim.Optimizer],
    lr: float,
    options: Mapping[str, Any],
    parameters: list[tuple[str, nn.Parameter]],
) -> torch.optim.Optimizer:
    if not isinstance(options, Mapping):
        raise GrataError(f"optimizer_options must be a mapping such as {{'betas': [0.9, 0.999]}}, got {options!r}.")
    if callable(optimizer):
        made = optimizer(parameters)
    else:
        lr = _number("lr", lr, low=0.0)
        optimizer_class = getattr(torch.optim, str(optimizer), None)
        if not (isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.Optimizer)):
            raise GrataError(f"optimizer: torch.optim has no {optimizer!r}; for example Adam, AdamW or SGD.")
        try:
            made = optimizer_class(parameters, lr=lr, **options)
        # Optimizers check their arguments each in its own way.
        except (TypeError, ValueError, LookupError, RuntimeError) as error:
            raise GrataError(f"optimizer_options: {optimizer} refuses {dict(options)}: {error}.") from error
    if not isinstance(made, torch.optim.Optimizer):
        raise GrataError(f"optimizer must be a name or make a torch.optim.Optimizer, got a {type(made).__name__}.")
    if isinstance(made, torch.optim.LBFGS | torch.optim.SparseAdam):
        raise GrataError(
            f"optimizer: {type(made).__name__} does not fit: LBFGS evaluates the loss several times a step, SparseAdam "
            "takes sparse gradients. Use for example Adam, AdamW or SGD."
        )
    return made
