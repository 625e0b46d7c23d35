"""Statistics of batch normalization at test time: those of the batch, or a mix with those of the source."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import GrataError
from .affine import BATCH_NORM, INSTANCE_NORM, normalization_layers

__all__ = ["BatchStatistics"]


class BatchStatistics:
    """Makes every layer of ``network`` that keeps running statistics normalize by the batch instead.

    ``mean = mix·batch_mean + (1 − mix)·running_mean``, the same for the variance. With ``mix=1`` (prediction-time
    batch normalization, Nado et al. 2020) the running statistics play no part; gradients flow through the batch's part.
    The running statistics themselves are never changed, train or eval mode makes no difference, and the state dict
    keeps its keys. With several processes each normalizes by its own batch.

    Args:
        network: searched for BatchNorm1d/2d/3d, SyncBatchNorm and InstanceNorm with running statistics. May be a
            TorchScript module (``torch.jit.script``), for which only ``mix=1`` is possible.
        mix: weight of the batch's statistics, 0 to 1.

    Raises:
        GrataError: ``mix`` outside 0..1, or below 1 for a TorchScript network.
    """

    def __init__(self, network: nn.Module, mix: float = 1.0) -> None:
        if not 0.0 <= mix <= 1.0:
            raise GrataError(f"batch_statistics must lie between 0 (source) and 1 (batch), got {mix}.")
        self.mix = float(mix)
        self._network = network
        self._layers = [
            (kind, layer)
            for _, kind, layer in normalization_layers(network)
            if kind in BATCH_NORM + INSTANCE_NORM and getattr(layer, "running_mean", None) is not None
        ]
        self._scripted = [layer for _, layer in self._layers if isinstance(layer, torch.jit.ScriptModule)]
        if self._scripted and self.mix < 1.0:
            raise GrataError(
                "A TorchScript network can use the batch's statistics, not a mix with the source's: "
                "set batch_statistics to 1, or use the Python network (model.pt) instead of model.ts."
            )
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._attached = False

    @property
    def layers(self) -> int:
        """How many layers keep running statistics."""
        return len(self._layers)

    def attach(self) -> None:
        """Use the batch's statistics from the next forward on. Attaching twice is the same as once."""
        if self._attached:
            return
        self._attached = True
        if self._scripted:
            self._hooks = [
                self._network.register_forward_pre_hook(self._enter_scripted),
                self._network.register_forward_hook(self._leave_scripted, always_call=True),
            ]
            return
        for kind, layer in self._layers:
            layer.forward = partial(_batch_norm if kind in BATCH_NORM else _instance_norm, layer, self.mix)

    def detach(self) -> None:
        """Back to the layers' own behaviour, exactly."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self._attached and not self._scripted:
            for _, layer in self._layers:
                del layer.forward
        self._attached = False

    # A scripted layer's forward cannot be replaced, but its training flag can be set: that selects the batch's
    # statistics, and moves the running ones, which are therefore put back.
    def _enter_scripted(self, *_: object) -> None:
        self._flags = [layer.training for layer in self._scripted]
        self._buffers = [[b.clone() for b in layer.buffers()] for layer in self._scripted]
        for layer in self._scripted:
            layer.train()

    def _leave_scripted(self, *_: object) -> None:
        for layer, flag, buffers in zip(self._scripted, self._flags, self._buffers):
            layer.train(flag)
            with torch.no_grad():
                for buffer, before in zip(layer.buffers(), buffers):
                    buffer.copy_(before)


def _batch_norm(layer: nn.Module, mix: float, x: torch.Tensor) -> torch.Tensor:
    if mix == 1.0:
        return F.batch_norm(x, None, None, layer.weight, layer.bias, True, 0.0, layer.eps)
    dims = [d for d in range(x.ndim) if d != 1]
    shape = [1, -1] + [1] * (x.ndim - 2)
    batch = x.float()
    mean = mix * batch.mean(dims) + (1 - mix) * layer.running_mean
    variance = mix * batch.var(dims, unbiased=False) + (1 - mix) * layer.running_var
    y = (batch - mean.view(shape)) * torch.rsqrt(variance.view(shape) + layer.eps)
    if layer.affine:
        y = y * layer.weight.view(shape) + layer.bias.view(shape)
    return y.to(x.dtype)


def _instance_norm(layer: nn.Module, mix: float, x: torch.Tensor) -> torch.Tensor:
    if mix == 1.0:
        return F.instance_norm(x, None, None, layer.weight, layer.bias, True, 0.0, layer.eps)
    n, c = x.shape[:2]
    shape = [n, c] + [1] * (x.ndim - 2)
    flat = x.float().flatten(2)
    mean = mix * flat.mean(2) + (1 - mix) * layer.running_mean
    variance = mix * flat.var(2, unbiased=False) + (1 - mix) * layer.running_var
    y = (x.float() - mean.view(shape)) * torch.rsqrt(variance.view(shape) + layer.eps)
    if layer.affine:
        affine_shape = [1, c] + [1] * (x.ndim - 2)
        y = y * layer.weight.view(affine_shape) + layer.bias.view(affine_shape)
    return y.to(x.dtype)
