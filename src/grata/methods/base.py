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

    Constructing a method changes nothing. The first :meth:`adapt` takes the network's present weights as the source,
    puts it into evaluation mode, switches its batch normalization to ``batch_statistics`` and lets gradients be computed
    for the adapted parameters alone; :meth:`restore` undoes all of that.

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
        given: the network as it was given.
        parameters: those the method changes, by name.
        batches: how many batches it has adapted to since the source.

    Raises:
        GrataError: ``batch_statistics`` is out of range, or the parameters are too coarse to take small steps.
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
        coarse = {p.dtype for p in parameters.values()} & {torch.float16, torch.bfloat16}
        if coarse:
            raise GrataError(
                f"The network's normalization layers are {coarse.pop()}, in which steps as small as those of adaptation "
                "are lost. Give float32 weights, and compute in half precision by autocast."
            )
        self.given = network
        if isinstance(network, torch.jit.ScriptModule):
            network = ScriptedNetwork(network)
        self._network = network
        self._statistics = BatchStatistics(network, batch_statistics)
        self.parameters = parameters
        if not isinstance(episodic, bool):
            raise GrataError(f"episodic must be true or false, got {episodic!r}.")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise GrataError(f"seed must be a whole number of at least 0, got {seed!r}.")
        self.episodic = episodic
        self._seed = seed
        self.generator = torch.Generator().manual_seed(self._seed)
        self.batches = 0
        self._active = False

    @property
    def network(self) -> nn.Module:
        """The network to predict with; a TorchScript network comes wrapped in a :class:`ScriptedNetwork`."""
        return self._network

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
        self._adapted = self._copy()
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
        self.generator.manual_seed(self._seed)
        self.batches = 0
        if not self._active:
            return
        self._active = False
        self._write(self._source)
        self._statistics.detach()
        for parameter, flag in self._gradient_flags:
            parameter.requires_grad_(flag)
            parameter.grad = None
        for module, training in self._modes:
            module.training = training

    def reassert(self) -> None:
        """Write the adapted parameters again, where weights were loaded over them since; nothing before the first batch."""
        if self._active:
            self._write(self._adapted)

    @contextlib.contextmanager
    def source_network(self) -> Iterator[nn.Module]:
        """The network as it was before any adaptation, for the time of a ``with`` block; no gradients inside."""
        with torch.no_grad():
            if not self._active:
                yield self._network
                return
            adapted = self._copy()
            try:
                self._write(self._source)
                self._statistics.detach()
                yield self._network
            finally:
                self._write(adapted)
                self._statistics.attach()

    def parameter_change(self) -> dict[str, float]:
        """Distance of the adapted parameters from the source: Euclidean (``l2``) and relative to the source's norm."""
        source = self._source if self._active else self._copy()
        change = sum((p.detach().double() - source[n].double()).square().sum() for n, p in self.parameters.items())
        norm = sum(s.double().square().sum() for s in source.values())
        l2 = float(change) ** 0.5
        return {"l2": l2, "relative": l2 / (float(norm) ** 0.5 + 1e-12)}

    def state_dict(self) -> dict[str, Any]:
        """All that another process needs to go on, bit for bit; safe for ``torch.load(weights_only=True)``."""
        return {
            "method": self.name,
            "parameters": self._copy(),
            "source": {name: s.clone() for name, s in self._source.items()} if self._active else self._copy(),
            "generator": self.generator.get_state(),
            "batches": self.batches,
            "active": self._active,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``.

        Raises:
            GrataError: it is of another method or another network; nothing is changed then.
        """
        if state.get("method") != self.name:
            raise GrataError(f"This state was written by method {state.get('method')!r}, not by {self.name!r}.")
        shapes = {name: tuple(p.shape) for name, p in self.parameters.items()}
        if {name: tuple(p.shape) for name, p in state["parameters"].items()} != shapes:
            raise GrataError("This state belongs to another network: its adapted parameters have other names or shapes.")
        present = self._source if self._active else self._copy()
        for name, source in state["source"].items():
            if not torch.equal(source.to(present[name]), present[name]):
                raise GrataError(f"This state was adapted from other source weights: {name} differs.")
        with torch.inference_mode(False):
            self.restore()
            if state["active"]:
                self._activate()
            self._write(state["parameters"])
            self._adapted = self._copy()
        self.generator.set_state(state["generator"].cpu())
        self.batches = int(state["batches"])

    def _copy(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    def _write(self, values: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(values[name])

    def _activate(self) -> None:
        if self._active:
            return
        self._statistics.attach()
        self._active = True
        self._source = self._copy()
        self._adapted = self._copy()
        adapted = {id(p) for p in self.parameters.values()}
        self._gradient_flags = [(p, p.requires_grad) for p in self._network.parameters()]
        for parameter, _ in self._gradient_flags:
            parameter.requires_grad_(id(parameter) in adapted)
        self._modes = [(module, module.training) for module in self._network.modules()]
        self._network.eval()

    def _plain(self, images: torch.Tensor) -> torch.Tensor:
        """A plain tensor of the network's dtype: metadata tensors slow a step down, inference tensors cannot enter it."""
        x = images.as_tensor() if hasattr(images, "as_tensor") else images
        if not torch.is_floating_point(x):
            raise GrataError(f"images must be of a floating point type, got {x.dtype}: scale them as in training.")
        if x.is_inference():
            x = x.clone()
        dtype = next((p.dtype for p in self._network.parameters()), x.dtype)
        return x.detach().to(dtype)
