"""Statistics of batch normalization at test time: those of the batch, a mix with those of the source, or by a rule."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import GrataError
from .affine import BATCH_NORM, INSTANCE_NORM, keeps_own_forward, layer_kind, normalization_layers
from .rules import RULES, Rule, check_size
from .scripted import ScriptedNetwork

__all__ = ["BatchStatistics", "channel_affine", "check_running_statistics"]


class BatchStatistics:
    """Makes every layer of ``network`` that keeps running statistics normalize by the batch instead.

    ``mean = mix·batch_mean + (1 − mix)·running_mean``, the same for the variance. With ``mix=1`` (prediction-time
    batch normalization, Nado et al. 2020) the running statistics play no part; gradients flow through the batch's part.
    The running statistics themselves are never changed, train or eval mode makes no difference, and the state dict
    keeps its keys. With several processes each normalizes by its own batch.

    Args:
        network: searched for BatchNorm1d/2d/3d, SyncBatchNorm and InstanceNorm with running statistics. A
            :class:`ScriptedNetwork` and layers that derive from these classes with a forward of their own (one that
            holds the activation as well) know only 0 and 1.
        mix: weight of the batch's statistics, 0 to 1; or for batch normalization alone a :data:`Rule`, or the name of
            one (``median``).

    Raises:
        GrataError: ``mix`` outside 0..1, or a mix or a rule for such a network or layer, a rule for InstanceNorm, a
            traced network, or a scripted part of a Python network.
    """

    def __init__(self, network: nn.Module, mix: float | Rule | str = 1.0) -> None:
        if isinstance(mix, str) and mix in RULES:
            mix = RULES[mix]
        if not callable(mix) and (isinstance(mix, bool) or not isinstance(mix, int | float) or not 0.0 <= mix <= 1.0):
            raise GrataError(
                f"must be a number between 0 (source) and 1 (batch), or one of {', '.join(RULES)}, got {mix!r}.",
                key="batch_statistics",
            )
        self.mix = mix if callable(mix) else float(mix)
        self._network = network
        self._layers = [
            (name, kind, layer)
            for name, kind, layer in normalization_layers(network)
            if kind in BATCH_NORM + INSTANCE_NORM and getattr(layer, "running_mean", None) is not None
        ]
        self._attached = False
        self._check(self.mix)

    def _check(self, mix: float | Rule) -> None:
        """Raise :class:`GrataError` where a layer does not take ``mix``."""
        if not self._layers or mix == 0.0:
            return
        if isinstance(self._network, ScriptedNetwork):
            self._network.check_switchable()
            if mix != 1.0:
                raise GrataError(
                    "A TorchScript network can use the batch's statistics or the source's, neither a mix of them nor "
                    "others: use the Python network (model.pt) instead of model.ts, or a method that takes the "
                    "batch's, such as ptbn, tent or grata with batch_statistics 1."
                )
            return
        for name, kind, layer in self._layers:
            if isinstance(layer, torch.jit.ScriptModule):
                raise GrataError(
                    f"{name} belongs to a TorchScript network inside a Python one, where its statistics cannot be "
                    "chosen: give the TorchScript network itself, or use method source."
                )
            if callable(mix) and kind in INSTANCE_NORM:
                raise GrataError(
                    f"{name} is an {kind} with running statistics: rules of batch normalization do not fit it. Use "
                    "method source, ptbn or grata."
                )
            if mix != 1.0 and keeps_own_forward(layer, kind):
                raise GrataError(
                    f"{name} is a {type(layer).__name__}, a {kind} with a forward of its own: it can use the batch's "
                    "statistics, not a mix with the source's. Use a method that takes the batch's, such as ptbn, tent "
                    "or grata with batch_statistics 1."
                )

    @property
    def layers(self) -> list[nn.Module]:
        """The layers that keep running statistics, in the order of the network."""
        return [layer for _, _, layer in self._layers]

    def attach(self) -> None:
        """Use the batch's statistics from the next forward on. Attaching twice is the same as once.

        Raises:
            GrataError: the layers belong to another method at present.
        """
        if self._attached:
            return
        scripted = isinstance(self._network, ScriptedNetwork)
        if not scripted and any("forward" in vars(layer) for layer in self.layers):
            raise GrataError("The network is being adapted by another method: call that method's restore() first.")
        self._put()
        self._attached = True

    def _put(self) -> None:
        """Make the layers normalize by the present ``mix``."""
        if isinstance(self._network, ScriptedNetwork):
            self._network.use_batch_statistics = self.mix == 1.0
            return
        for _, kind, layer in self._layers:
            forward = _ruled if callable(self.mix) else _forward(kind, layer)
            layer.forward = partial(forward, layer, self.mix)

    @contextlib.contextmanager
    def using(self, mix: float | Rule) -> Iterator[None]:
        """Other statistics for the time of a ``with`` block, while attached.

        Args:
            mix: as in the constructor.

        Raises:
            GrataError: a layer does not take it.
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
        """Back to the layers' own behaviour, exactly."""
        if isinstance(self._network, ScriptedNetwork):
            self._network.use_batch_statistics = False
        elif self._attached:
            for layer in self.layers:
                del layer.forward
        self._attached = False


def check_running_statistics(name: str, network: nn.Module, statistics: BatchStatistics) -> None:
    """Raise :class:`GrataError` where ``network`` keeps no running statistics that method ``name`` could work on."""
    if not statistics.layers:
        kinds = sorted({kind for _, kind, _ in normalization_layers(network)}) or ["none"]
        raise GrataError(
            f"method {name} works on the running statistics of batch normalization, and {type(network).__name__} keeps "
            f"none (its normalization layers: {', '.join(kinds)}). Use method source, memo, tent or grata."
        )


def channel_affine(layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Scale and shift ``(C,)`` of each channel that a batch normalization ``layer`` would apply to ``x``.

    For a caller that folds them into what follows. Nothing is changed, and no gradient flows.

    Returns:
        None where the layer does anything else: another class, hooks, statistics that are being trained.
    """
    kind = layer_kind(layer)
    if kind not in BATCH_NORM or keeps_own_forward(layer, kind) or layer._forward_hooks or layer._forward_pre_hooks:
        return None
    forward = vars(layer).get("forward")
    if forward is None:
        if layer.training or layer.running_mean is None:
            return None
        mix = 0.0
    elif isinstance(forward, partial) and forward.func is _batch_norm:
        mix = forward.args[1]
    else:
        return None
    mean, variance = layer.running_mean, layer.running_var
    if mix == 1.0:
        check_size(x)
    if mix > 0.0:
        # Without running statistics to update, it gives those of the batch.
        batch_mean, batch_variance = torch.batch_norm_update_stats(x.detach(), None, None, 0.0)
        mean = batch_mean if mix == 1.0 else mix * batch_mean + (1 - mix) * mean
        variance = batch_variance if mix == 1.0 else mix * batch_variance + (1 - mix) * variance
    scale = torch.rsqrt(variance + layer.eps)
    if layer.affine:
        scale = scale * layer.weight.detach()
        return scale, layer.bias.detach() - mean * scale
    return scale, -mean * scale


def _forward(kind: str, layer: nn.Module) -> Callable[[nn.Module, float, torch.Tensor], torch.Tensor]:
    if keeps_own_forward(layer, kind):
        return _own_forward
    return _batch_norm if kind in BATCH_NORM else _instance_norm


def _own_forward(layer: nn.Module, mix: float, x: torch.Tensor) -> torch.Tensor:
    """The forward of the layer's own class; without running statistics at hand it takes the batch's."""
    if mix == 0.0:
        return type(layer).forward(layer, x)
    names = [name for name in ("running_mean", "running_var") if name in layer._buffers]
    kept = {name: layer._buffers[name] for name in names}
    tracked, training = layer.track_running_stats, layer.training
    try:
        layer._buffers.update(dict.fromkeys(names))
        layer.track_running_stats, layer.training = False, True
        return type(layer).forward(layer, x)
    except (TypeError, AttributeError, RuntimeError) as error:
        raise GrataError(
            f"{type(layer).__name__} has a forward of its own that needs running statistics: it cannot use the "
            f"batch's. Use method source. ({type(error).__name__}: {error})"
        ) from error
    finally:
        layer._buffers.update(kept)
        layer.track_running_stats, layer.training = tracked, training


def _batch_norm(layer: nn.Module, mix: float, x: torch.Tensor) -> torch.Tensor:
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
    if layer.affine:
        y = y * layer.weight.view(shape) + layer.bias.view(shape)
    return y.to(x.dtype)


def _ruled(layer: nn.Module, rule: Rule, x: torch.Tensor) -> torch.Tensor:
    exact = _at_least_float32(x)
    mean, variance = rule(layer, exact)
    shape = [-1, x.shape[1]] + [1] * (x.ndim - 2)
    y = (exact - mean.reshape(shape)) * torch.rsqrt(variance.reshape(shape) + layer.eps)
    if layer.affine:
        y = y * layer.weight.view(shape) + layer.bias.view(shape)
    return y.to(x.dtype)


def _instance_norm(layer: nn.Module, mix: float, x: torch.Tensor) -> torch.Tensor:
    if mix == 1.0:
        return F.instance_norm(x, None, None, layer.weight, layer.bias, True, 0.0, layer.eps)
    n, c = x.shape[:2]
    shape = [n, c] + [1] * (x.ndim - 2)
    instances = _at_least_float32(x)
    flat = instances.flatten(2)
    mean = mix * flat.mean(2) + (1 - mix) * layer.running_mean
    variance = mix * flat.var(2, unbiased=False) + (1 - mix) * layer.running_var
    y = (instances - mean.view(shape)) * torch.rsqrt(variance.view(shape) + layer.eps)
    if layer.affine:
        affine_shape = [1, c] + [1] * (x.ndim - 2)
        y = y * layer.weight.view(affine_shape) + layer.bias.view(affine_shape)
    return y.to(x.dtype)


def _at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
