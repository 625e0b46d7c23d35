"""The contract that every method keeps, and what methods share."""

from __future__ import annotations

import contextlib
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import nn

from ..errors import GrataError
from ..normalization import BatchStatistics, ScriptedNetwork

__all__ = ["Method", "StepRecord"]


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """What one call of ``adapt`` did.

    Attributes:
        flags: what was out of the ordinary, e.g. ``non_finite_loss``; empty when all went well.
    """

    flags: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, ready for JSON."""
        return dataclasses.asdict(self)


class Method(ABC):
    """A test-time adaptation method for one network.

    Constructing a method changes nothing. The first :meth:`adapt` puts the network into evaluation mode, switches its
    batch normalization to ``batch_statistics`` and lets gradients be computed for the adapted parameters alone;
    :meth:`restore` undoes all of that.

    Args:
        network: the source network, its weights loaded.
        parameters: those the method will change, by their name in the network's state dict.
        batch_statistics: weight of the batch's statistics in batch normalization: 1 the batch's own, 0 the source's.
        seed: of the method's own random generator.
        episodic: start from the source network again for every case, instead of going on from the last one (online).

    Attributes:
        name: how configs call the method.
        summary: one line on what it does.
        changes: what it changes in the network.
        learns: whether ``adapt`` looks at the images; if not, any call only switches the network's statistics.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    changes: ClassVar[str]
    learns: ClassVar[bool] = True

    def __init__(
        self,
        network: nn.Module,
        parameters: dict[str, nn.Parameter],
        batch_statistics: float,
        seed: int = 0,
        episodic: bool = False,
    ) -> None:
        if isinstance(network, torch.jit.ScriptModule):
            network = ScriptedNetwork(network)
        self._network = network
        self._statistics = BatchStatistics(network, batch_statistics)
        self.parameters = parameters
        self.episodic = bool(episodic)
        self._seed = int(seed)
        self.generator = torch.Generator().manual_seed(self._seed)
        self.batches = 0
        self._active = False
        self.remember_source()

    @property
    def network(self) -> nn.Module:
        """The network to predict with; a TorchScript network comes wrapped in a :class:`ScriptedNetwork`."""
        return self._network

    def remember_source(self) -> None:
        """Take the network's present weights as the source; for weights that were loaded after construction.

        Raises:
            GrataError: the network was adapted already.
        """
        if self._active:
            raise GrataError("The network is adapted already: call restore() before its weights count as the source.")
        self._source = {name: p.detach().clone() for name, p in self.parameters.items()}

    def adapt(self, images: torch.Tensor, same_case: bool = False, **options: Any) -> StepRecord:
        """Adapt the network to one batch; call before predicting that batch with :attr:`network`.

        Args:
            images: ``(B, C, H, W)`` or ``(B, C, D, H, W)``, any float dtype, on the network's device; not changed.
            same_case: these images belong to the case of the last call: an episodic method does not start again.
            options: of the method at hand.

        Returns:
            What was done; its flags tell whether the step was skipped.
        """
        if self.episodic and not same_case:
            self.restore()
        self._activate()
        self._network.eval()
        with torch.inference_mode(False), torch.enable_grad():
            record = self._adapt(self._plain(images), **options)
        self.batches += 1
        return record

    @abstractmethod
    def _adapt(self, images: torch.Tensor, **options: Any) -> StepRecord:
        """One online update; the network is active, in evaluation mode, and ``images`` a plain tensor."""

    def uncertainty(self, images: torch.Tensor) -> torch.Tensor:
        """How unsure the present network is of each image ``(B, C, ...)``: shape ``(B,)``, higher is less sure.

        Raises:
            NotImplementedError: the method learns, but has no measure of uncertainty: it cannot choose windows by it.
        """
        raise NotImplementedError(f"{type(self).__name__} has no measure of uncertainty")

    def restore(self) -> None:
        """Bring back the source network, exactly: parameters, statistics, modes, and the method as if just constructed."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self._source[name])
                parameter.grad = None
        self.generator.manual_seed(self._seed)
        self.batches = 0
        self._statistics.detach()
        if self._active:
            for parameter, flag in self._gradient_flags:
                parameter.requires_grad_(flag)
            for module, training in self._modes:
                module.training = training
            self._active = False

    @contextlib.contextmanager
    def source_network(self) -> Iterator[nn.Module]:
        """The network as it was before any adaptation, for the time of a ``with`` block; no gradients inside."""
        adapted = {name: p.detach().clone() for name, p in self.parameters.items()}
        with torch.no_grad():
            try:
                self._write(self._source)
                self._statistics.detach()
                yield self._network
            finally:
                self._write(adapted)
                if self._active:
                    self._statistics.attach()

    def parameter_change(self) -> dict[str, float]:
        """Distance of the adapted parameters from the source: Euclidean (``l2``) and relative to the source's norm."""
        change = sum(
            (p.detach().double() - self._source[n].double()).square().sum() for n, p in self.parameters.items()
        )
        norm = sum(s.double().square().sum() for s in self._source.values())
        l2 = float(change) ** 0.5
        return {"l2": l2, "relative": l2 / (float(norm) ** 0.5 + 1e-12)}

    def state_dict(self) -> dict[str, Any]:
        """All that another process needs to go on, bit for bit; safe for ``torch.load(weights_only=True)``."""
        return {
            "method": self.name,
            "parameters": {name: p.detach().clone() for name, p in self.parameters.items()},
            "source": {name: s.clone() for name, s in self._source.items()},
            "generator": self.generator.get_state(),
            "batches": self.batches,
            "active": self._active,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``.

        Raises:
            GrataError: it is of another method or another network.
        """
        if state.get("method") != self.name:
            raise GrataError(f"This state was written by method {state.get('method')!r}, not by {self.name!r}.")
        shapes = {name: tuple(p.shape) for name, p in self.parameters.items()}
        if {name: tuple(p.shape) for name, p in state["parameters"].items()} != shapes:
            raise GrataError("This state belongs to another network: its adapted parameters have other names or shapes.")
        for name, source in state["source"].items():
            if not torch.equal(source.to(self._source[name]), self._source[name]):
                raise GrataError(f"This state was adapted from other source weights: {name} differs.")
        self.restore()
        self._write(state["parameters"])
        self.generator.set_state(state["generator"].cpu())
        self.batches = int(state["batches"])
        if state["active"]:
            self._activate()

    def _write(self, values: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(values[name])

    def _activate(self) -> None:
        if self._active:
            return
        self._active = True
        adapted = {id(p) for p in self.parameters.values()}
        self._gradient_flags = [(p, p.requires_grad) for p in self._network.parameters()]
        for parameter, _ in self._gradient_flags:
            parameter.requires_grad_(id(parameter) in adapted)
        self._modes = [(module, module.training) for module in self._network.modules()]
        self._network.eval()
        self._statistics.attach()

    def _plain(self, images: torch.Tensor) -> torch.Tensor:
        """A plain tensor of the network's dtype: metadata tensors slow a step down, inference tensors cannot enter it."""
        x = images.as_tensor() if hasattr(images, "as_tensor") else images
        if not torch.is_floating_point(x):
            raise GrataError(f"images must be of a floating point type, got {x.dtype}: scale them as in training.")
        if x.is_inference():
            x = x.clone()
        dtype = next((p.dtype for p in self._network.parameters()), x.dtype)
        return x.detach().to(dtype)
