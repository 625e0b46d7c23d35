"""Statistics of batch normalization at test time: those of the batch, a mix with the source's, or those of a rule."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import GrataError
from .affine import (
    BATCH_NORM,
    INSTANCE_NORM,
    TrackedNorm,
    keeps_own_forward,
    layer_kind,
    normalization_layers,
    refuse_scripting,
)
from .rules import RULES, Rule, check_size
from .scripted import ScriptedNetwork

__all__ = ["BatchStatistics", "channel_affine", "check_running_statistics"]

_OWNER = "_forward_replaced_by"
_BEFORE_SCRIPTING = "__prepare_scriptable__"
"""Attribute of a module that ``torch.jit.script`` calls first."""


class BatchStatistics:
    """Switch of a network's normalization layers from their running statistics to those of the batch.

    .. code-block:: text

        mean     = mix·batch_mean + (1 − mix)·running_mean
        variance = mix·batch_variance + (1 − mix)·running_variance

    ``mix=1`` is prediction-time batch normalization (Nado et al. 2020). Gradients flow through the batch's part. The
    running statistics are never changed, train and eval mode make no difference, and the state dict keeps its keys.
    With several processes, each normalizes by its own batch. Nothing changes before :meth:`attach`.

    Args:
        network: network with BatchNorm1d/2d/3d, SyncBatchNorm or InstanceNorm layers that keep running statistics;
            other layers are left as they are. A :class:`ScriptedNetwork`, and layers that derive from these classes
            with a forward of their own (for example with the activation inside), take a ``mix`` of 0 or 1 only.
        mix: weight of the batch's statistics, 0 to 1. For batch normalization also a :data:`Rule` or the name of one
            (``median``).

    Attributes:
        mix: weight or rule at present.

    Raises:
        GrataError: ``mix`` is out of range, the network or a layer does not take it, the network was traced, or a part
            of a Python network is a TorchScript network.
    """

    def __init__(self, network: nn.Module, mix: float | Rule | str = 1.0) -> None:
        if isinstance(mix, str) and mix in RULES:
            mix = RULES[mix]
        if not callable(mix) and (isinstance(mix, bool) or not isinstance(mix, int | float) or not 0.0 <= mix <= 1.0):
            raise GrataError(
                f"must be a number between 0 (source) and 1 (batch), or one of {', '.join(RULES)}, got {mix!r}.",
                key="batch_statistics",
            )
        self.mix: float | Rule = mix if callable(mix) else float(mix)
        self._network = network
        self._layers = [
            (name, kind, cast(TrackedNorm, layer))
            for name, kind, layer in normalization_layers(network)
            if kind in BATCH_NORM + INSTANCE_NORM and getattr(layer, "running_mean", None) is not None
        ]
        self._attached = False
        self._check(self.mix)

    def _check(self, mix: float | Rule) -> None:
        """Check that all layers take ``mix``."""
        if not self._layers or mix == 0.0:
            return
        if isinstance(self._network, ScriptedNetwork):
            self._network.check_switchable()
            if mix != 1.0:
                raise GrataError(
                    "A TorchScript network can use the batch's statistics or the source's, but neither a mix of them "
                    "nor others. Use the Python network (model.pt) instead of model.ts, or a method that takes the "
                    "batch's, such as ptbn, tent or grata with batch_statistics 1."
                )
            return
        for name, kind, layer in self._layers:
            if isinstance(layer, torch.jit.ScriptModule):
                raise GrataError(
                    f"{name} belongs to a TorchScript network inside a Python one, so its statistics cannot be chosen. "
                    "Give the TorchScript network itself, or use method source."
                )
            if callable(mix) and kind in INSTANCE_NORM:
                raise GrataError(
                    f"{name} is an {kind} with running statistics, and rules are for batch normalization only. Use "
                    "method source, ptbn or grata."
                )
            if mix != 1.0 and keeps_own_forward(layer, kind):
                raise GrataError(
                    f"{name} is a {type(layer).__name__}, a {kind} with a forward of its own: it can use the batch's "
                    "statistics, but not a mix with the source's. Use a method that takes the batch's, such as ptbn, "
                    "tent or grata with batch_statistics 1."
                )

    @property
    def layers(self) -> list[TrackedNorm]:
        """Layers that keep running statistics, in the order of the network."""
        return [layer for _, _, layer in self._layers]

    def attach(self) -> None:
        """Normalize by :attr:`mix` from the next forward on. A second call does nothing.

        Raises:
            GrataError: another method is using the layers.
        """
        if self._attached:
            return
        scripted = isinstance(self._network, ScriptedNetwork)
        for layer in () if scripted else self.layers:
            if "forward" in vars(layer):
                if not _is_left_over(layer):
                    raise GrataError(
                        "The network is being adapted by another method. Call that method's restore() first."
                    )
                del layer.forward
            vars(layer)[_OWNER] = _Owner(self)
            vars(layer)[_BEFORE_SCRIPTING] = refuse_scripting
        self._put()
        self._attached = True

    def _put(self) -> None:
        """Make the layers normalize by ``self.mix``."""
        if isinstance(self._network, ScriptedNetwork):
            self._network.use_batch_statistics = self.mix == 1.0
            return
        for _, kind, layer in self._layers:
            if callable(self.mix):
                layer.forward = partial(_ruled, layer, self.mix)
            else:
                layer.forward = partial(_forward(kind, layer), layer, self.mix)

    @contextlib.contextmanager
    def using(self, mix: float | Rule) -> Iterator[None]:
        """Normalize by another mix or rule during a ``with`` block, between :meth:`attach` and :meth:`detach`.

        Args:
            mix: weight of the batch's statistics, 0 to 1, or a rule.

        Raises:
            GrataError: the network or a layer does not take it.
        """
        self._check(mix)
        present, self.mix = self.mix, mix
        try:
            self._put()
            yield
        finally:
            self.mix = present
            self._put()

    def detach(self) -> None:
        """Give the layers their own behaviour back, exactly. A second call does nothing."""
        if isinstance(self._network, ScriptedNetwork):
            self._network.use_batch_statistics = False
        elif self._attached:
            for layer in self.layers:
                del layer.forward
                for key in (_OWNER, _BEFORE_SCRIPTING):
                    vars(layer).pop(key, None)
        self._attached = False


class _Owner:
    """Who has replaced the forward of a layer. A copy of the layer, also in a file, has the forward and no owner."""

    def __init__(self, statistics: BatchStatistics) -> None:
        self._statistics = weakref.ref(statistics)

    @property
    def is_there(self) -> bool:
        """Whether the owner could still give the layer its forward back."""
        return self._statistics() is not None

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


def _is_left_over(layer: nn.Module) -> bool:
    """Return whether the forward of a layer is one of ours that came with a copy, or whose owner is gone."""
    owner = vars(layer).get(_OWNER, _OWNER)
    return owner is None or (isinstance(owner, _Owner) and not owner.is_there)


def check_running_statistics(name: str, network: nn.Module, statistics: BatchStatistics) -> None:
    """Check that a network keeps running statistics, for a method that works on them.

    Args:
        name: name of the method, for the message.
        network: network given to the method, for the message.
        statistics: statistics of this network.

    Raises:
        GrataError: no layer keeps running statistics.
    """
    if not statistics.layers:
        kinds = sorted({kind for _, kind, _ in normalization_layers(network)}) or ["none"]
        raise GrataError(
            f"method {name} works on the running statistics of batch normalization, and {type(network).__name__} keeps "
            f"none (its normalization layers: {', '.join(kinds)}). tent and grata fit; `grata doctor` names all."
        )


def channel_affine(layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the scale and shift of each channel that a batch normalization layer would apply to its input.

    The layer's output is ``x·scale + shift``, so that a caller can fold both into the next layer. The layer is not
    changed, and no gradient flows.

    Args:
        layer: any layer.
        x: input of the layer, ``(B, C, ...)``.

    Returns:
        Scale and shift, each ``(C,)``; None where the layer does anything else: it is of another class, has hooks, or
        is updating its statistics.
    """
    kind = layer_kind(layer)
    if kind not in BATCH_NORM or keeps_own_forward(layer, kind) or layer._forward_hooks or layer._forward_pre_hooks:
        return None
    norm = cast(TrackedNorm, layer)
    mix = _mix_of(norm)
    if mix is None:
        return None
    mean, variance = norm.running_mean, norm.running_var
    if mix == 1.0:
        check_size(x)
    if mix > 0.0:
        # without running statistics to update, torch returns those of the batch
        batch_mean, batch_variance = torch.batch_norm_update_stats(x.detach(), None, None, 0.0)
        mean = batch_mean if mix == 1.0 else mix * batch_mean + (1 - mix) * mean
        variance = batch_variance if mix == 1.0 else mix * batch_variance + (1 - mix) * variance
    scale = torch.rsqrt(variance + norm.eps)
    if norm.affine:
        assert norm.weight is not None and norm.bias is not None
        scale = scale * norm.weight.detach()
        return scale, norm.bias.detach() - mean * scale
    return scale, -mean * scale


def _mix_of(layer: TrackedNorm) -> float | None:
    """Return the weight of the batch's statistics, 0 to 1; None where the layer does anything else."""
    forward = vars(layer).get("forward")
    if forward is None:
        return None if layer.training or layer.running_mean is None else 0.0
    if isinstance(forward, partial) and forward.func is _batch_norm:
        return cast(float, forward.args[1])
    return None


def _forward(kind: str, layer: TrackedNorm) -> Callable[[TrackedNorm, float, torch.Tensor], torch.Tensor]:
    if keeps_own_forward(layer, kind):
        return _own_forward
    return _batch_norm if kind in BATCH_NORM else _instance_norm


def _own_forward(layer: TrackedNorm, mix: float, x: torch.Tensor) -> torch.Tensor:
    """Run the forward of the layer's own class, for ``mix=1`` without running statistics: it then uses the batch's."""
    if mix == 0.0:
        return type(layer).forward(layer, x)
    names: list[str] = [name for name in ("running_mean", "running_var") if name in layer._buffers]
    kept = {name: layer._buffers[name] for name in names}
    tracked, training = layer.track_running_stats, layer.training
    try:
        layer._buffers.update(dict.fromkeys(names))
        layer.track_running_stats, layer.training = False, True
        return type(layer).forward(layer, x)
    except (TypeError, AttributeError, RuntimeError) as error:
        raise GrataError(
            f"{type(layer).__name__} has a forward of its own that needs running statistics, so it cannot use the "
            f"batch's. Use method source. ({type(error).__name__}: {error})"
        ) from error
    finally:
        layer._buffers.update(kept)
        layer.track_running_stats, layer.training = tracked, training


def _batch_norm(layer: TrackedNorm, mix: float, x: torch.Tensor) -> torch.Tensor:
    if mix == 1.0:
        check_size(x)
        return F.batch_norm(x, None, None, layer.weight, layer.bias, True, 0.0, layer.eps)
    if mix == 0.0:
        return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, False, 0.0, layer.eps)
    dims = [d for d in range(x.ndim) if d != 1]
    shape = [1, -1] + [1] * (x.ndim - 2)
    batch = _at_least_float32(x)
    mean = mix * batch.mean(dims) + (1 - mix) * layer.running_mean
    variance = mix * batch.var(dims, unbiased=False) + (1 - mix) * layer.running_var
    y = (batch - mean.view(shape)) * torch.rsqrt(variance.view(shape) + layer.eps)
    return _scaled(layer, y).to(x.dtype)


def _ruled(layer: TrackedNorm, rule: Rule, x: torch.Tensor) -> torch.Tensor:
    exact = _at_least_float32(x)
    mean, variance = rule(layer, exact)
    shape = [-1, x.shape[1]] + [1] * (x.ndim - 2)
    y = (exact - mean.reshape(shape)) * torch.rsqrt(variance.reshape(shape) + layer.eps)
    return _scaled(layer, y).to(x.dtype)


def _instance_norm(layer: TrackedNorm, mix: float, x: torch.Tensor) -> torch.Tensor:
    if mix == 1.0:
        return F.instance_norm(x, None, None, layer.weight, layer.bias, True, 0.0, layer.eps)
    n, c = x.shape[:2]
    shape = [n, c] + [1] * (x.ndim - 2)
    instances = _at_least_float32(x)
    flat = instances.flatten(2)
    mean = mix * flat.mean(2) + (1 - mix) * layer.running_mean
    variance = mix * flat.var(2, unbiased=False) + (1 - mix) * layer.running_var
    y = (instances - mean.view(shape)) * torch.rsqrt(variance.view(shape) + layer.eps)
    return _scaled(layer, y).to(x.dtype)


def _scaled(layer: TrackedNorm, y: torch.Tensor) -> torch.Tensor:
    """Apply the layer's own scale and shift, if it has them, to the normalized ``y``."""
    if not layer.affine:
        return y
    assert layer.weight is not None and layer.bias is not None
    shape = [1, -1] + [1] * (y.ndim - 2)
    return y * layer.weight.view(shape) + layer.bias.view(shape)


def _at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
