"""The base class of all methods: its contract and the code that methods share."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from ..errors import GrataError
from ..networks.parameters import copied, digest, distance, in_place, network_dtype, shapes, write
from ..networks.wrappers import plain_naming, without_prefix, without_prefixes
from ..normalization import AttachedAffine, BatchStatistics, Rule, check_running_statistics, switchable
from ..predictions import ACTIVATIONS
from ..settings import KeywordSettings, argument, choice, setting
from ..views import VIEWS, resolve_views
from .card import Card
from .owner import check_free, disown, own
from .prediction import ChosenPrediction, Computed
from .state import Remembered, Remembers

__all__ = ["SKIPPED", "Method", "StepRecord", "check_output", "check_views"]

SKIPPED = "step_skipped"
"""Flag of a step that was not taken."""

_RESET = "reset"
_PACKAGE = __name__.partition(".")[0]


def check_views(value: Any) -> Any:
    """Return ``value``, names of weak views or None.

    Raises:
        GrataError: there is no such view.
    """
    try:
        resolve_views(value, (1, 1, 1))
    except GrataError as error:
        # the setting may have another name than there
        raise GrataError(error.message) from error
    return value


def check_output(value: Any) -> str | int | None:
    """Return ``value``, a key, an index or None.

    Raises:
        GrataError: it is something else.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
        raise GrataError(f"must be a key, an index or null, got {value!r}.")
    return value


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """Record of one call of ``adapt``.

    Attributes:
        flags: names of unusual events, e.g. ``non_finite_loss``; empty when there were none.
        reset: whether the method was put back to the source network before this batch; a session sets it.
    """

    flags: tuple[str, ...] = ()
    reset: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings and lists, ready for JSON."""
        return dataclasses.asdict(self)


class Method(Remembers, KeywordSettings, ABC):
    """A test-time adaptation method for one network.

    Constructing a method does not change the network. The first :meth:`adapt` takes the network's present weights as
    the source, puts the network into evaluation mode, switches its batch normalization to the method's statistics and
    enables gradients for the adapted parameters only. :meth:`restore` undoes all of that.

    A subclass declares its settings (:mod:`grata.settings`) and the values that it remembers (:class:`Remembered`). It
    overrides the hooks that it needs, which are called in this order: :meth:`_collect` (what it changes), :meth:`_rule`
    (which statistics it normalizes by), :meth:`_setup` (the rest of the construction), :meth:`_adapt` (one update).

    Attributes:
        name: name of the method in configurations.
        card: description of the method, for tables.
        learns: whether ``adapt`` looks at the images; if not, a call only switches the network's statistics.
        predicts_as_source: whether it predicts what the source network predicts.
        predicts_by: key of the weights in the method's state with which a plain network predicts as the method does;
            None: there are no such weights.
        attached: affine parameters that :func:`grata.methods.create` attached to the network; None: none were.
        given: the network as it was given.
        parameters: parameters or buffers that the method changes, by their names in the plain network, without the
            prefixes of ``DataParallel`` or ``torch.compile``.
        batches: number of batches adapted to since the source.
        told: what :func:`grata.methods.create` was told of the network's output, by name, also where the method itself
            does not ask for it.
        computed: predictions of the last batch that its step computed anyway; None: there are none.
        view_agreements: agreement of the views of each batch that was predicted by views since the last step.
        asked_reset: reset policy that was given to the method itself, as until version 0.1; a session without one of
            its own takes it.

    Raises:
        GrataError: a setting is not known or out of range, or the parameters are too coarse to take small steps.
    """

    name: ClassVar[str]
    card: ClassVar[Card]
    learns: ClassVar[bool] = True
    predicts_as_source: bool = False
    predicts_by: ClassVar[str | None] = "parameters"

    given: nn.Module = argument(alias="network", kw_only=False, help="source network, its weights loaded")
    activation: str | None = choice(
        default=None,
        of=ACTIVATIONS,
        optional=True,
        help="activation of the network's output: sigmoid (multi-label) or softmax (multi-class)",
        in_state=False,
    )
    output: str | int | None = setting(
        default=None,
        check=check_output,
        range="key, index or null",
        help="key or index of the logits, for a network that returns a dict, list or tuple",
        in_state=False,
    )
    predict: str = choice(
        default="network",
        of=("network", "views"),
        help="what predicts: network is the adapted network; views is the mean of its predictions over weak views",
        in_state=False,
    )
    predict_views: Sequence[str] | None = setting(
        default=None,
        check=check_views,
        range=f"list of {', '.join(VIEWS)}, or null",
        help="weak views that predict, for predict: views; null: all that fit the shape of the image",
        in_state=False,
    )

    batches = Remembered(0)

    def __init__(self, *args: Any, **settings: Any) -> None:
        self.asked_reset = _asked_reset(settings)
        super().__init__(*args, **settings)
        if not isinstance(self.given, nn.Module):
            raise GrataError(f"must be a torch.nn.Module, got {self.given!r}.", key="network")
        self.attached: AttachedAffine | None = None
        self.told: Mapping[str, Any] = {}
        self._network = switchable(self.given)
        self._check_network()
        plain = plain_naming(self.given)
        self.parameters: dict[str, Any] = {plain(name): value for name, value in self._collect().items()}
        coarse = {p.dtype for p in self.parameters.values()} & {torch.float16, torch.bfloat16}
        if coarse:
            raise GrataError(
                f"What {self.name} adapts in the network is {coarse.pop()}, in which steps as small as those of "
                "adaptation are lost. Give float32 weights, and compute in half precision by autocast."
            )
        self._statistics = BatchStatistics(self._network, self._rule())
        if "running statistics" in self.card.needs:
            check_running_statistics(self.name, self.given, self._statistics)
        self.generator = torch.Generator().manual_seed(self._seed)
        self._active = False
        self._as_source = False
        self._source_digest = ""
        self.computed: Computed | None = None
        self.view_agreements: list[float] = []
        self._setup()
        self._prediction = self._predicting()
        if self.predict != "network":
            self._choose_prediction()

    def _choose_prediction(self) -> None:
        if type(self).network is not Method.network:
            raise GrataError(
                f"{self.name} says by itself what predicts: its class overrides network. Leave the setting out, or let "
                "the class override _predicting.",
                key="predict",
            )
        self._prediction = ChosenPrediction(self, self._prediction)
        self.predicts_as_source = False

    def _check_network(self) -> None:
        """Raise :class:`GrataError` where the method does not fit the network; called first in the construction."""

    def _collect(self) -> dict[str, Any]:
        """Return what the method changes, parameters or buffers, by their names in the network."""
        return {}

    def _rule(self) -> float | Rule | str:
        """Return the weight of the batch's statistics in batch normalization, 1 to 0 (the source's), or a rule."""
        return 1.0

    def _setup(self) -> None:
        """Finish the construction; settings, network, parameters and statistics are already set."""

    def _predicting(self) -> nn.Module:
        """Return what predicts where nothing else was chosen: the network, or a :class:`PredictionNetwork`."""
        return self._network

    @classmethod
    def _words(cls) -> str:
        return f"method {cls.name} has"

    @property
    def _seed(self) -> int:
        return int(vars(self).get("seed", 0))

    @property
    def network(self) -> nn.Module:
        """The network to predict with; a TorchScript network comes wrapped in a :class:`ScriptedNetwork`."""
        return self._prediction

    @property
    def prediction_views(self) -> Sequence[str] | None:
        """Names of the weak views that predict, for ``predict: views``; None: all that fit the shape of the image."""
        return self.predict_views

    @property
    def prediction_agreement(self) -> float:
        """Agreement of the views that predicted, 0 to 1; NaN where views did not predict, or window by window: most
        windows of a volume show little, and agree whatever happens to the others.
        """
        return self.view_agreements[0] if len(self.view_agreements) == 1 else math.nan

    @property
    def meaning(self) -> dict[str, Any]:
        """What is known of the network's output: its ``activation``, and ``output``, the key or index of the logits;
        None: it is not known, or the output is the logits.
        """
        own = {key: getattr(self, key, None) for key in ("activation", "output")}
        return {key: self.told.get(key) if value is None else value for key, value in own.items()}

    @property
    def active(self) -> bool:
        """Whether the network is being adapted: from the first :meth:`adapt` on, until :meth:`restore`."""
        return self._active

    @property
    def averages(self) -> bool:
        """Whether it predicts by a mean of predictions, some of them the source network's."""
        return type(self).predicts_as_source and self.predict == "views"

    @property
    def uses_batch_statistics(self) -> bool:
        """Whether the method predicts with the batch's statistics where the network itself uses running ones."""
        return bool(self._statistics.layers) and self._statistics.mix != 0.0

    @classmethod
    def check_names(cls, given: Iterable[str], key: str = "") -> None:
        super().check_names([name for name in given if name != _RESET], key)

    def adapt(self, images: torch.Tensor) -> StepRecord:
        """Adapt the network to one batch; call this before predicting that batch with :attr:`network`.

        Whether a case starts from the source network is for the caller to say, by :meth:`restore`; a session does so.

        Args:
            images: ``(B, C, H, W)`` or ``(B, C, D, H, W)``, any float dtype, on the network's device; not changed, also
                by a network that changes its input.

        Returns:
            The record of the call; its flags show whether the step was skipped.
        """
        self._activate()
        self._network.eval()
        self._drop_computed()
        with torch.inference_mode(False), torch.enable_grad(), self.inputs_kept():
            x = self._plain(images)
            record = self._adapt(x)
            self._adapted = self._copy()
            self.batches += 1
        return record

    @contextlib.contextmanager
    def inputs_kept(self) -> Iterator[None]:
        """Give the network a copy of each input during a ``with`` block, because it may change its input in place."""
        handle = self._network.register_forward_pre_hook(_with_copies)
        try:
            yield
        finally:
            handle.remove()

    @abstractmethod
    def _adapt(self, images: torch.Tensor) -> StepRecord:
        """Make one update; the network is active and in evaluation mode, and ``images`` is a plain tensor."""

    def uncertainty(self, images: torch.Tensor) -> torch.Tensor:
        """Return the present network's uncertainty for each image of ``(B, C, ...)``: shape ``(B,)``, higher is less
        certain.

        Raises:
            NotImplementedError: the method has no measure of uncertainty, so that windows cannot be chosen by it.
        """
        raise NotImplementedError(f"{type(self).__name__} has no measure of uncertainty")

    def restore(self) -> None:
        """Restore the source network exactly (parameters, statistics, modes), and reset the method to its state after
        construction.
        """
        self.generator.manual_seed(self._seed)
        self._drop_computed()
        if self._active:
            self._deactivate()
        self._forget()

    def _drop_computed(self) -> None:
        self.computed = None
        self.view_agreements.clear()

    def let_go(self) -> None:
        """Give the network back with the parameters that it has now, where other weights were loaded since; otherwise
        as :meth:`restore` does.
        """
        if self._active and not all(_equal(p, self._adapted[name]) for name, p in self.parameters.items()):
            self._source = self._copy()
        self.restore()

    def _deactivate(self) -> None:
        self._active = False
        disown(self.given, self)
        write(self.parameters, self._source)
        self._statistics.detach()
        for parameter, flag in self._gradient_flags:
            parameter.requires_grad_(flag)
            parameter.grad = None
        for module, training in self._modes:
            module.training = training

    def reassert(self) -> None:
        """Write the adapted parameters into the network again, in case other weights were loaded over them.

        Before the first batch this does nothing.
        """
        if self._active:
            write(self.parameters, self._adapted)

    @contextlib.contextmanager
    def source_network(self) -> Iterator[nn.Module]:
        """Yield the network as it was before any adaptation, for a ``with`` block without gradients.

        Inside the block, a module that wraps :attr:`network` predicts as the source, too.
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
        """Return the distance of the adapted parameters from the source: Euclidean (``l2``), and ``relative`` to the
        source's norm.
        """
        return distance(self.parameters, self._source if self._active else self._copy())

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which another process continues bit for bit.

        It is safe for ``torch.load(weights_only=True)``.
        """
        return {
            "method": self.name,
            "parameters": self._copy(),
            "source": self._digest_of_source(),
            "settings": self._signature(),
            "generator": self.generator.get_state(),
            # the order is that of files on disk, whose digests depend on it
            "batches": self.batches,
            "active": self._active,
            **self._memory_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``.

        Raises:
            GrataError: the state belongs to another method, to parameters of other names, shapes or source values, or
                to other settings; nothing is changed then.
        """
        state = self._plainly_named(state)
        self._check_state(state)
        with torch.inference_mode(False):
            self.restore()
            if state["active"]:
                self._activate()
            write(self.parameters, state["parameters"])
            self._adapted = self._copy()
            self.generator.set_state(state["generator"].cpu())
            self._load_memory(state)

    def _plainly_named(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a state with the plain network's names, also one of version 0.1 that was written through a wrapper."""
        named = state.get("parameters", {}) if isinstance(state, Mapping) else {}
        if not named or set(named) == set(self.parameters) or set(map(without_prefix, named)) != set(self.parameters):
            return state
        source = self._source if self._active else self.parameters
        # the digest of a state holds the names
        known = digest({name: source[without_prefix(name)] for name in named}) == state["source"]
        plain: dict[str, Any] = without_prefixes(state)
        return plain | ({"source": self._digest_of_source()} if known else {})

    def _check_state(self, state: Mapping[str, Any]) -> None:
        if not isinstance(state, Mapping) or "method" not in state:
            raise GrataError("This is not the state of a method. Give what its state_dict() returned.")
        if state["method"] != self.name:
            raise GrataError(
                f"This state was written by method {state['method']!r}, not by {self.name!r}. Use that method, or "
                "start without the state."
            )
        if shapes(state["parameters"]) != shapes(self.parameters):
            raise GrataError(
                "This state belongs to another network: its adapted parameters have other names or shapes. Load the "
                "network that it was adapted from, or start without the state."
            )
        if state["source"] != self._digest_of_source():
            raise GrataError(
                "This state was adapted from other source weights. Load the same weights, or start without the state."
            )
        present = self._signature()
        for key, written in state.get("settings", {}).items():
            if present.get(key) != written:
                raise GrataError(
                    f"This state was written with another {key} ({written}, here {present.get(key)}): give the same "
                    "one, or start anew."
                )

    def _signature(self) -> dict[str, str]:
        """Return, as text by name, the settings that must be equal when a state is loaded: those with plain values."""
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
        check_free(self.given, self)
        self._statistics.attach()
        own(self.given, self)
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
        """Return a plain tensor of the network's dtype.

        Metadata tensors slow a step down, and autograd does not accept inference tensors.
        """
        x = images.as_tensor() if hasattr(images, "as_tensor") else images
        if not isinstance(x, torch.Tensor):
            raise GrataError(f"must be a tensor (B, C, ...), got {type(x).__name__}.", key="images")
        if not x.numel():
            raise GrataError(f"must not be empty, got shape {tuple(x.shape)}.", key="images")
        if not torch.is_floating_point(x):
            raise GrataError(
                f"must be of a floating point type, got {x.dtype}. Scale them as in training.", key="images"
            )
        if x.is_inference():
            x = x.clone()
        return x.detach().to(network_dtype(self._network) or x.dtype)


def _with_copies(network: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.clone() if isinstance(x, torch.Tensor) else x for x in inputs)


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.detach().cpu(), other.detach().cpu())


def _asked_reset(settings: dict[str, Any]) -> Any:
    """Take the reset policy out of a method's settings, where it stood until version 0.1."""
    asked = settings.pop(_RESET, None)
    if asked is not None:
        warnings.warn(
            "reset is no setting of a method any more: give it to grata.adapt, the handler or the session, or on a "
            "command line as --reset (the overlay: --adaptation#reset). This old form goes with the next release.",
            DeprecationWarning,
            stacklevel=_level_of_caller(),
        )
    return asked


def _level_of_caller() -> int:
    """Return the ``stacklevel`` at which who calls this asks a warning to name the code that called the package.

    It differs: the constructors of some methods have others around them, and so has ``create``.
    """
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE:
        frame, level = frame.f_back, level + 1
    return level


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)
