"""The contract that every method keeps, and what methods share."""

from __future__ import annotations

import contextlib
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from ..errors import GrataError
from ..networks.parameters import copied, digest, distance, in_place, shapes, write
from ..normalization import AttachedAffine, BatchStatistics, Rule, check_running_statistics, switchable
from ..resets import PerCase, make_reset
from ..settings import KeywordSettings, argument
from .card import Card
from .state import Remembered, Remembers

__all__ = ["SKIPPED", "Method", "StepRecord"]

SKIPPED = "step_skipped"
"""Flag of a step that was not taken."""


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """What one call of ``adapt`` did.

    Attributes:
        flags: names of what was out of the ordinary, e.g. ``non_finite_loss``; empty when all went well.
        reset: whether the method started from the source network again before this batch.
    """

    flags: tuple[str, ...] = ()
    reset: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings and lists, ready for JSON."""
        return dataclasses.asdict(self)


class Method(Remembers, KeywordSettings, ABC):
    """A test-time adaptation method for one network.

    Constructing a method changes nothing. The first :meth:`adapt` takes the network's present weights as the source,
    puts it into evaluation mode, switches its batch normalization to the method's statistics and lets gradients be
    computed for the adapted parameters alone; :meth:`restore` undoes all of that.

    A subclass declares its settings (:mod:`grata.settings`) and what it remembers (:class:`Remembered`), and writes the
    hooks that it needs, in this order: :meth:`_collect` (what it changes), :meth:`_rule` (which statistics it
    normalizes by), :meth:`_setup` (the rest of the construction), :meth:`_adapt` (one update).

    Attributes:
        name: name of the method in configurations.
        card: what the method is, for tables.
        learns: whether ``adapt`` looks at the images; if not, any call only switches the network's statistics.
        predicts_by: part of its state that a plain network predicts by as the method does; None: no weights alone do.
        attached: affine parameters that :func:`grata.methods.create` attached to the network for it; None: none were.
        given: the network as it was given.
        parameters: what the method changes, by name.
        policy: policy that says when to start from the source network again.
        batches: number of batches that it has adapted to since the source.

    Raises:
        GrataError: a setting is not known or out of range, the parameters are too coarse to take small steps, or the
            reset policy could never act.
    """

    name: ClassVar[str]
    card: ClassVar[Card]
    learns: ClassVar[bool] = True
    predicts_by: ClassVar[str | None] = "parameters"

    given: nn.Module = argument(alias="network", kw_only=False, help="source network, its weights loaded")

    batches = Remembered(0)

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.attached: AttachedAffine | None = None
        self._network = switchable(self.given)
        self._check_network()
        self.parameters: dict[str, Any] = self._collect()
        coarse = {p.dtype for p in self.parameters.values()} & {torch.float16, torch.bfloat16}
        if coarse:
            raise GrataError(
                f"What {self.name} adapts in the network is {coarse.pop()}, in which steps as small as those of "
                "adaptation are lost. Give float32 weights, and compute in half precision by autocast."
            )
        self._statistics = BatchStatistics(self._network, self._rule())
        if "running statistics" in self.card.needs:
            check_running_statistics(self.name, self.given, self._statistics)
        self.policy = make_reset(vars(self).get("reset") or ("per-case" if self.card.episodic else "never"))
        vars(self)["reset"] = self.policy
        self.policy.check(self)
        self.generator = torch.Generator().manual_seed(self._seed)
        self._was_reset = False
        self._active = False
        self._as_source = False
        self._source_digest = ""
        self._setup()

    def _check_network(self) -> None:
        """Raise :class:`GrataError` where the method does not fit the network, before anything is made of it."""

    def _collect(self) -> dict[str, Any]:
        """Return what the method changes, parameters or buffers, by their names in the network."""
        return {}

    def _rule(self) -> float | Rule | str:
        """Return the weight of the batch's statistics in batch normalization, 1 to 0 (the source's), or a rule."""
        return 1.0

    def _setup(self) -> None:
        """Finish the construction; settings, network, parameters and statistics are in place."""

    @classmethod
    def _words(cls) -> str:
        return f"method {cls.name}"

    @classmethod
    def check_settings(cls, settings: Iterable[str], key: str = "settings") -> None:
        """Raise :class:`GrataError` for a setting that the method does not have, naming the one that may be meant.

        Args:
            settings: names of settings.
            key: key that they stand under, for the message.
        """
        cls._refuse_unknown(settings, key)

    @property
    def _seed(self) -> int:
        return int(vars(self).get("seed", 0))

    @property
    def network(self) -> nn.Module:
        """The network to predict with; a TorchScript network comes wrapped in a :class:`ScriptedNetwork`."""
        return self._network

    @property
    def episodic(self) -> bool:
        """Whether every case starts from the source network."""
        return isinstance(self.policy, PerCase)

    @property
    def uses_batch_statistics(self) -> bool:
        """Whether the method predicts by statistics of the batch where the network by itself has running ones."""
        return bool(self._statistics.layers) and self._statistics.mix != 0.0

    def begin_case(self, site: str | None = None) -> None:
        """Begin a case: start from the source network again where the reset policy says so.

        :meth:`adapt` does this by itself; call it before measuring the network's uncertainty on a new case.

        Args:
            site: name of the site that the case comes from.
        """
        if self.policy.due(self, site):
            started = self.batches > 0
            self.restore()
            self._was_reset = started
        self.policy.begin(site)

    def adapt(self, images: torch.Tensor, same_case: bool = False, site: str | None = None) -> StepRecord:
        """Adapt the network to one batch; call this before predicting that batch with :attr:`network`.

        Args:
            images: ``(B, C, H, W)`` or ``(B, C, D, H, W)``, any float dtype, on the network's device; not changed.
            same_case: whether these images belong to the case that has begun, so that the reset policy is not asked.
            site: name of the site that the images come from, for policies that ask for it.

        Returns:
            The record of what was done; its flags say whether the step was skipped.
        """
        if not same_case:
            self.begin_case(site)
        self._activate()
        self._network.eval()
        with torch.inference_mode(False), torch.enable_grad():
            x = self._plain(images)
            record = self._adapt(x)
            if self._was_reset:
                record, self._was_reset = dataclasses.replace(record, reset=True), False
            self._adapted = self._copy()
            self.batches += 1
            self.policy.observe(self, x)
        return record

    @abstractmethod
    def _adapt(self, images: torch.Tensor) -> StepRecord:
        """Take one online update; the network is active, in evaluation mode, and ``images`` is a plain tensor."""

    def uncertainty(self, images: torch.Tensor) -> torch.Tensor:
        """Return how unsure the present network is of each image ``(B, C, ...)``: shape ``(B,)``, higher is less sure.

        Raises:
            NotImplementedError: the method learns, but has no measure of uncertainty: it cannot choose windows by it.
        """
        raise NotImplementedError(f"{type(self).__name__} has no measure of uncertainty")

    def restore(self) -> None:
        """Bring back the source network, exactly: parameters, statistics, modes, and the method as if just
        constructed.
        """
        self.generator.manual_seed(self._seed)
        self._was_reset = False
        self.policy.forget()
        if self._active:
            self._deactivate()
        self._forget()

    def _deactivate(self) -> None:
        self._active = False
        write(self.parameters, self._source)
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
            write(self.parameters, self._adapted)

    @contextlib.contextmanager
    def source_network(self) -> Iterator[nn.Module]:
        """Give the network as it was before any adaptation, for a ``with`` block; no gradients inside.

        A module around :attr:`network` predicts as the source inside, too.
        """
        with torch.no_grad():
            if not self._active or self._as_source:
                yield self._network
                return
            with in_place(self.parameters, self._source):
                try:
                    self._as_source = True
                    self._statistics.detach()
                    yield self._network
                finally:
                    self._as_source = False
                    self._statistics.attach()

    def parameter_change(self) -> dict[str, float]:
        """Return how far the adapted parameters are from the source: Euclidean (``l2``) and relative to its norm."""
        return distance(self.parameters, self._source if self._active else self._copy())

    def state_dict(self) -> dict[str, Any]:
        """Return all that another process needs to go on, bit for bit; safe for ``torch.load(weights_only=True)``."""
        return {
            "method": self.name,
            "parameters": self._copy(),
            "source": self._digest_of_source(),
            "settings": self._signature(),
            "reset": {"policy": repr(self.policy), "state": self.policy.state_dict()},
            "generator": self.generator.get_state(),
            "active": self._active,
            **self._memory_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``.

        Raises:
            GrataError: the state is that of another method, another network or other settings; nothing is changed then.
        """
        self._check_state(state)
        with torch.inference_mode(False):
            self.restore()
            if state["active"]:
                self._activate()
            write(self.parameters, state["parameters"])
            self._adapted = self._copy()
            self.policy.load_state_dict(state["reset"]["state"])
            self.generator.set_state(state["generator"].cpu())
            self._load_memory(state)

    def _check_state(self, state: Mapping[str, Any]) -> None:
        if state.get("method") != self.name:
            raise GrataError(f"This state was written by method {state.get('method')!r}, not by {self.name!r}.")
        if shapes(state["parameters"]) != shapes(self.parameters):
            raise GrataError(
                "This state belongs to another network: its adapted parameters have other names or shapes."
            )
        if state["source"] != self._digest_of_source():
            raise GrataError("This state was adapted from other source weights.")
        if state["reset"]["policy"] != repr(self.policy):
            raise GrataError(
                f"This state was written with another reset policy ({state['reset']['policy']}, here {self.policy!r}): "
                "give the same one, or start anew."
            )
        present = self._signature()
        for key, written in state.get("settings", {}).items():
            if present.get(key) != written:
                raise GrataError(
                    f"This state was written with another {key} ({written}, here {present.get(key)}): give the same "
                    "one, or start anew."
                )

    def _signature(self) -> dict[str, str]:
        """Return the settings that a state was made by and holds for, as text: those that are plain values, by name."""
        values = {item.key: getattr(self, item.name) for item in self.settings().values() if item.in_state}
        mix = self._statistics.mix
        return {
            **{key: repr(value) for key, value in values.items() if _is_plain(value)},
            "batch_statistics": getattr(mix, "__qualname__", type(mix).__name__) if callable(mix) else repr(mix),
        }

    def _digest_of_source(self) -> str:
        if not self._active:
            return digest(self.parameters)
        self._source_digest = self._source_digest or digest(self._source)
        return self._source_digest

    def _copy(self) -> dict[str, torch.Tensor]:
        return copied(self.parameters)

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
        """Return a plain tensor of the network's dtype: metadata tensors slow a step down, and inference tensors cannot
        enter it.
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
