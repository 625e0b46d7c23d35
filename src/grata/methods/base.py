"""The contract that every method keeps, and what methods share."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from ..errors import GrataError
from ..normalization import AttachedAffine, BatchStatistics, Rule, switchable
from ..resets import PerCase, ResetPolicy, make_reset
from .card import Card

__all__ = ["SKIPPED", "Method", "StepRecord"]

SKIPPED = "step_skipped"
"""Flag of a step that was not taken."""


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """What one call of ``adapt`` did.

    Attributes:
        flags: what was out of the ordinary, e.g. ``non_finite_loss``; empty when all went well.
        reset: whether the method started from the source network again before this batch.
    """

    flags: tuple[str, ...] = ()
    reset: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, ready for JSON."""
        return dataclasses.asdict(self)


class Method(ABC):
    """A test-time adaptation method for one network.

    Constructing a method changes nothing. The first :meth:`adapt` takes the network's present weights as the source,
    puts it into evaluation mode, switches its batch normalization to ``batch_statistics`` and lets gradients be
    computed for the adapted parameters alone; :meth:`restore` undoes all of that.

    Args:
        network: the source network, its weights loaded.
        changed: what the method will change, parameters or buffers, by their name in the network.
        batch_statistics: weight of the batch's statistics in batch normalization: 1 the batch's own, 0 the source's; or
            a rule or its name (``median``), see :class:`grata.normalization.BatchStatistics`.
        seed: of the method's own random generator.
        reset: when to start from the source network again: a policy of :mod:`grata.resets`, its name, or a mapping of
            its name and settings. None: as the method's paper has it, ``per-case`` (episodic) or ``never`` (online).

    Attributes:
        name: how configs call the method.
        card: what it is, for tables.
        learns: whether ``adapt`` looks at the images; if not, any call only switches the network's statistics.
        predicts_by: the part of its state that a plain network predicts by as the method does; None: no weights alone
            do.
        refused: settings of its bases that it does not have.
        attached: affine parameters that :func:`grata.methods.create` attached to the network for it; None: none were.
        given: the network as it was given.
        parameters: what the method changes, by name.
        reset: the policy.
        batches: how many batches it has adapted to since the source.

    Raises:
        GrataError: ``batch_statistics`` is out of range, the parameters are too coarse to take small steps, or the
            policy could never act.
    """

    name: ClassVar[str]
    card: ClassVar[Card]
    learns: ClassVar[bool] = True
    predicts_by: ClassVar[str | None] = "parameters"
    refused: ClassVar[tuple[str, ...]] = ()
    attached: AttachedAffine | None = None

    def __init__(
        self,
        network: nn.Module,
        changed: Mapping[str, torch.Tensor],
        batch_statistics: float | Rule | str = 1.0,
        seed: int = 0,
        reset: ResetPolicy | str | Mapping[str, Any] | None = None,
    ) -> None:
        coarse = {p.dtype for p in changed.values()} & {torch.float16, torch.bfloat16}
        if coarse:
            raise GrataError(
                f"What {self.name} adapts in the network is {coarse.pop()}, in which steps as small as those of "
                "adaptation are lost. Give float32 weights, and compute in half precision by autocast."
            )
        self.given = network
        self._network = network = switchable(network)
        self._statistics = BatchStatistics(network, batch_statistics)
        self.parameters = dict(changed)
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise GrataError(f"must be a whole number of at least 0, got {seed!r}.", key="seed")
        if reset is None:
            reset = "per-case" if self.card.episodic else "never"
        self.reset = make_reset(reset)
        self.reset.check(self)
        self._seed = seed
        self.generator = torch.Generator().manual_seed(self._seed)
        self.batches = 0
        self._was_reset = False
        self._active = False
        self._as_source = False

    @property
    def network(self) -> nn.Module:
        """The network to predict with; a TorchScript network comes wrapped in a :class:`ScriptedNetwork`."""
        return self._network

    @property
    def episodic(self) -> bool:
        """Whether every case starts from the source network."""
        return isinstance(self.reset, PerCase)

    @property
    def uses_batch_statistics(self) -> bool:
        """Whether it predicts by statistics of the batch where the network by itself has running ones."""
        return bool(self._statistics.layers) and self._statistics.mix != 0.0

    def begin_case(self, site: str | None = None) -> None:
        """A case begins: start from the source network again where the reset policy says so.

        :meth:`adapt` does this by itself; call it before measuring the network's uncertainty on a new case.

        Args:
            site: where the case comes from.
        """
        if self.reset.due(self, site):
            started = self.batches > 0
            self.restore()
            self._was_reset = started
        self.reset.begin(site)

    def adapt(
        self, images: torch.Tensor, same_case: bool = False, site: str | None = None, **options: Any
    ) -> StepRecord:
        """Adapt the network to one batch; call before predicting that batch with :attr:`network`.

        Args:
            images: ``(B, C, H, W)`` or ``(B, C, D, H, W)``, any float dtype, on the network's device; not changed.
            same_case: these images belong to the case that has begun: the reset policy is not asked.
            site: where the images come from, for policies that ask for it.
            options: of the method at hand.

        Returns:
            What was done; its flags tell whether the step was skipped.
        """
        if not same_case:
            self.begin_case(site)
        self._activate()
        self._network.eval()
        with torch.inference_mode(False), torch.enable_grad():
            x = self._plain(images)
            record = self._adapt(x, **options)
            if self._was_reset:
                record, self._was_reset = dataclasses.replace(record, reset=True), False
            self._adapted = self._copy()
            self.batches += 1
            self.reset.observe(self, x)
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
        """Bring back the source network, exactly: parameters, statistics, modes, and the method as if just
        constructed.
        """
        self.generator.manual_seed(self._seed)
        self.batches = 0
        self._was_reset = False
        self.reset.forget()
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
        """Write the adapted parameters again, where weights were loaded over them since; nothing before the first
        batch.
        """
        if self._active:
            self._write(self._adapted)

    @contextlib.contextmanager
    def source_network(self) -> Iterator[nn.Module]:
        """The network as it was before any adaptation, for the time of a ``with`` block; no gradients inside.

        A module around :attr:`network` predicts as the source inside, too.
        """
        with torch.no_grad():
            if not self._active or self._as_source:
                yield self._network
                return
            adapted = self._copy()
            try:
                self._as_source = True
                self._write(self._source)
                self._statistics.detach()
                yield self._network
            finally:
                self._as_source = False
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
            "source": self._digest_of_source(),
            "settings": self._signature(),
            "reset": {"policy": repr(self.reset), "state": self.reset.state_dict()},
            "generator": self.generator.get_state(),
            "batches": self.batches,
            "active": self._active,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``.

        Raises:
            GrataError: it is of another method, another network, or of other settings; nothing is changed then.
        """
        if state.get("method") != self.name:
            raise GrataError(f"This state was written by method {state.get('method')!r}, not by {self.name!r}.")
        shapes = {name: tuple(p.shape) for name, p in self.parameters.items()}
        if {name: tuple(p.shape) for name, p in state["parameters"].items()} != shapes:
            raise GrataError(
                "This state belongs to another network: its adapted parameters have other names or shapes."
            )
        if state["source"] != self._digest_of_source():
            raise GrataError("This state was adapted from other source weights.")
        if state["reset"]["policy"] != repr(self.reset):
            raise GrataError(
                f"This state was written with another reset policy ({state['reset']['policy']}, here {self.reset!r}): "
                "give the same one, or start anew."
            )
        present = self._signature()
        for key, written in state.get("settings", {}).items():
            if present.get(key) != written:
                raise GrataError(
                    f"This state was written with another {key} ({written}, here {present.get(key)}): give the same "
                    "one, or start anew."
                )
        with torch.inference_mode(False):
            self.restore()
            if state["active"]:
                self._activate()
            self._write(state["parameters"])
            self._adapted = self._copy()
            self.reset.load_state_dict(state["reset"]["state"])
            self.generator.set_state(state["generator"].cpu())
            self.batches = int(state["batches"])
            self._load(state)

    def _load(self, state: dict[str, Any]) -> None:
        """Take over what a method adds to :meth:`state_dict`; all that could be refused was checked before."""

    @classmethod
    def settings(cls) -> dict[str, Any]:
        """All settings with their defaults, its own first, then those of its bases."""
        found: dict[str, Any] = {}
        for base in cls.__mro__:
            if base is Method or "__init__" not in vars(base):
                continue
            parameters = inspect.signature(base.__init__).parameters.values()
            for parameter in parameters:
                if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in (*found, *cls.refused):
                    found[parameter.name] = parameter.default
            if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
                break
        return found

    def _signature(self) -> dict[str, str]:
        """The settings that a state was made by and holds for, as text: those that are plain values, by name."""
        values = {name: vars(self)[name] for name in self.settings() if name in vars(self)}
        mix = self._statistics.mix
        return {
            **{name: repr(value) for name, value in values.items() if _is_plain(value)},
            "batch_statistics": getattr(mix, "__qualname__", type(mix).__name__) if callable(mix) else repr(mix),
        }

    def _digest_of_source(self) -> str:
        if not self._active:
            return _digest(self.parameters)
        self._source_digest = self._source_digest or _digest(self._source)
        return self._source_digest

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
        self._source_digest = ""
        self._adapted = self._copy()
        adapted = {id(p) for p in self.parameters.values()}
        self._gradient_flags = [(p, p.requires_grad) for p in self._network.parameters()]
        for parameter, _ in self._gradient_flags:
            parameter.requires_grad_(id(parameter) in adapted)
        self._modes = [(module, module.training) for module in self._network.modules()]
        self._network.eval()

    def _plain(self, images: torch.Tensor) -> torch.Tensor:
        """A plain tensor of the network's dtype: metadata tensors slow a step down, inference tensors cannot enter
        it.
        """
        x = images.as_tensor() if hasattr(images, "as_tensor") else images
        if not torch.is_floating_point(x):
            raise GrataError(f"images must be of a floating point type, got {x.dtype}: scale them as in training.")
        if x.is_inference():
            x = x.clone()
        dtype = next((p.dtype for p in self._network.parameters()), x.dtype)
        return x.detach().to(dtype)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _digest(values: Mapping[str, torch.Tensor]) -> str:
    """Of names and values, to the last bit: a state need not carry the source's weights to know them again."""
    digest = hashlib.sha256()
    for name, value in values.items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
