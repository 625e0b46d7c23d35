"""Adapt the network of a ``SupervisedEvaluator`` to each batch, just before it predicts the batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import IterationEvents, SupervisedEvaluator
from monai.utils import CommonKeys
from monai.utils.enums import PostFix
from torch import nn

from ..bank import AdapterBank
from ..errors import GrataError
from ..methods import GraTa, Method
from ..private import is_last_handler, put_first
from ..quality import UNEXPECTED, Judgement
from ..session import Again, Case, Guard, Journal, QualityGuard, ResetPolicy, Session, WindowSelection
from ..session.faults import unfit
from ..session.inputs import as_input

__all__ = ["WITHHELD", "AdaptationHandler", "GraTaHandler"]

WITHHELD = "grata_withheld"
"""Key of a batch that says of which images nothing is to be written; only where there are any."""


class AdaptationHandler:
    """A handler that plugs a method into ``monai.engines.SupervisedEvaluator``.

    On ``ITERATION_STARTED`` the handler prepares the batch as the engine does (``prepare_batch``, device, AMP), and the
    method adapts the network to it. The engine then predicts the batch with the adapted network, and the prediction is
    judged before its postprocessing. On ``ITERATION_COMPLETED`` the batch is finished: the handlers before this one
    have written its outputs. A batch that fails leaves no trace in the network. See :class:`grata.Session`.

    With a ``SlidingWindowInferer`` and a volume larger than its window, the method adapts on some windows, never on
    all, so the memory is that of one batch of windows. The source weights are those at the first batch, because
    handlers may load them on ``STARTED``. When the engine runs again, or goes on with a method's saved state, this
    handler undoes what such handlers loaded over the adapted parameters: attach it after them.

    The evaluator's network may also be a module around the method's network, such as one that ends in the activation,
    or a compiled one.

    Args:
        method: method that adapts the network.
        windows: selection of windows of large volumes: a :class:`grata.WindowSelection` or its settings.
        journal: file of JSON lines, one per case: case, site, losses, cosine, learning rate, gradient norms, change of
            the parameters from the source, seconds, peak memory, method and version. None: no journal.
        source_key: key under which the prediction of the source network is put into ``engine.state.batch``, where
            postprocessing finds it. None: the source network does not predict.
        case_key: key of the case ids in the batch.
        site_key: key of the site names in the batch.
        bank: one adaptation per site or scanner, which goes on from its last state, also in another run: an
            :class:`grata.AdapterBank`, its folder, or a mapping of ``path`` and ``tags``.
        start_from: saved adaptation to start from.
        save_to: file of the saved adaptation of a stream without a bank, written after each case.
        reset: policy that says when to start from the source network again, see :mod:`grata.session.resets`; None: as
            in the method's paper.
        site: site of batches that name none.
        guard: judge of each prediction: true for the usual one, see :class:`grata.session.QualityGuard`; its settings;
            a check of one's own, see :class:`grata.session.Guard`; false or None: none.

    Attributes:
        session: session that adapts.
        names: names of the next batch's images, for a run whose batches have none; empty: those in the batch.
        finished: whether the last batch is finished, also where the last step of that failed.
        judgements: judgement of each image of the present batch; empty: nothing judges them.

    Raises:
        GrataError: a setting is refused.
    """

    def __init__(
        self,
        method: Method,
        windows: WindowSelection | Mapping[str, Any] | None = None,
        journal: Journal | str | Path | None = None,
        source_key: str | None = None,
        case_key: str = "case",
        site_key: str = "site",
        bank: AdapterBank | str | Path | Mapping[str, Any] | None = None,
        start_from: str | Path | None = None,
        save_to: str | Path | None = None,
        reset: ResetPolicy | str | Mapping[str, Any] | None = None,
        site: str | None = None,
        guard: Guard | QualityGuard | Mapping[str, Any] | bool | None = True,
    ) -> None:
        self.session = Session(method, windows, bank, start_from, save_to, journal, reset, site, guard)
        self.source_key = source_key
        self.case_key = case_key
        self.site_key = site_key
        self.names: tuple[str, ...] = ()
        self.finished = False
        self.judgements: list[Judgement] = []
        self._case: Case | None = None
        self._predict: Again | None = None

    @property
    def method(self) -> Method:
        """Method that adapts the network."""
        return self.session.method

    @property
    def journal(self) -> Journal | None:
        """Journal of the session."""
        return self.session.journal

    @property
    def flags(self) -> dict[str, tuple[str, ...]]:
        """Flags of the record, by case; cases without flags are left out."""
        return self.session.flags

    def remarks(self) -> list[str]:
        """Return one line for each case with flags, in the order of the cases."""
        return self.session.remarks()

    def attach(self, engine: SupervisedEvaluator) -> None:
        """Register the handler on the engine's events.

        Args:
            engine: evaluator whose network is adapted.
        """
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_STARTED, self.adapt)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self.judge)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.commit)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.fail)
        engine.add_event_handler(Events.TERMINATE, self.abandon)

    def start(self, engine: SupervisedEvaluator) -> None:
        """Let the engine predict with the method's network.

        Raises:
            GrataError: the engine's network is not the one that the method was given.
        """
        put_first(engine, Events.EXCEPTION_RAISED, self.fail)
        engine.prepare_batch = _Prepare(engine.prepare_batch, self.method.given)
        self.abandon(engine)
        self.method.reassert()
        if engine.network is self.method.given:
            engine.network = self.method.network
        elif all(module is not self.method.network for module in engine.network.modules()):
            if any(module is self.method.given for module in engine.network.modules()):
                scripted = isinstance(self.method.given, torch.jit.ScriptModule)
                what = "a TorchScript network" if scripted else f"the network that {self.method.name} predicts with"
                raise GrataError(
                    f"{what} cannot be put inside a {type(engine.network).__name__}. Give the network itself "
                    "to both the method and the evaluator.",
                    key="network",
                )
            raise GrataError(
                f"the evaluator predicts with another {type(engine.network).__name__} than the network that "
                f"method {self.method.name} adapts. Give both the same.",
                key="network",
            )

    def adapt(self, engine: SupervisedEvaluator) -> None:
        """Adapt the network to ``engine.state.batch``.

        Raises:
            GrataError: the network needs more than the image, or the session refuses the batch.
        """
        state: Any = engine.state
        batch: Any = engine.prepare_batch(state.batch, state.device, engine.non_blocking, **engine.to_kwargs)
        images, _, args, kwargs = batch if len(batch) == 4 else (*batch, (), {})
        self._check_alone(engine, *args, **kwargs)
        names = list(self.names) or self._items(engine, self.case_key)
        names = names if names is not None else [f"iteration-{state.iteration}-{index}" for index in range(len(images))]
        site, unlike = self._items(engine, self.site_key), self._items(engine, UNEXPECTED)
        case = self.session.case(images, names, site, self._meta(engine), unlike)
        self._case, self.judgements = case.__enter__(), []
        self._predict = partial(self._predicted, engine, args, kwargs)
        # the guard asks for the source prediction by itself
        if self.source_key is not None and not isinstance(self.session.guard, QualityGuard):
            state.batch[self.source_key] = self._predict(images, True)
        with _precision(engine):
            case.adapt(engine.inferer)

    def _check_alone(self, engine: SupervisedEvaluator, *args: Any, **kwargs: Any) -> None:
        if self.method.learns and (args or kwargs or getattr(engine.inferer, "with_coord", False)):
            raise GrataError(
                "the network gets more than the image, and adaptation cannot make views of the rest. "
                "Use method source or ptbn, or a network that takes the image alone.",
                key="prepare_batch, inferer",
            )

    def _predicted(
        self,
        engine: SupervisedEvaluator,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        images: torch.Tensor,
        source: bool,
    ) -> Any:
        """Return what the engine predicts with the source network or the adapted one."""
        chosen = self.method.source_network() if source else contextlib.nullcontext(self.method.network)
        with chosen as own, torch.no_grad(), engine.mode(engine.network), _precision(engine):
            network = own if engine.network is self.method.network else engine.network
            return engine.inferer(images, network, *args, **kwargs)

    def judge(self, engine: SupervisedEvaluator) -> None:
        """Check the prediction before its postprocessing, and put the one to use in its place.

        Raises:
            GrataError: the prediction is not finite.
        """
        output: Any = engine.state.output
        batch: Any = engine.state.batch
        predict = self._predict
        assert self._case is not None and predict is not None  # the batch was adapted to
        output[CommonKeys.PRED] = self._case.judge(output[CommonKeys.PRED], predict)
        self.judgements = self._case.judgements
        if isinstance(batch, dict) and any(judgement.withheld for judgement in self.judgements):
            batch[WITHHELD] = torch.tensor([judgement.withheld for judgement in self.judgements])
        if self.source_key is not None and isinstance(self.session.guard, QualityGuard):
            source = self._case.source
            # a guard that cannot judge has not asked for it
            batch[self.source_key] = predict(self._case.images, True) if source is None else source

    def commit(self, engine: SupervisedEvaluator) -> None:
        """Finish the batch: write the journal's lines and keep the adaptation."""
        assert self._case is not None  # the batch was adapted to
        case, self._case = self._case, None
        try:
            case.__exit__(None, None, None)
        finally:
            self.finished = case.finished

    def fail(self, engine: SupervisedEvaluator, error: Exception) -> None:
        """Put everything back to before the batch, first of all; other handlers then do with the error what they do."""
        self.abandon(engine)
        # ignite raises an error itself only where nothing handles it
        if is_last_handler(engine, Events.EXCEPTION_RAISED, self.fail):
            if words := unfit(error):
                raise words from error
            raise error

    def abandon(self, engine: SupervisedEvaluator) -> None:
        """Put everything back to before a batch that was begun and not finished, as by ``engine.terminate()``."""
        if self._case is not None:
            case, self._case = self._case, None
            case.roll_back()

    def _meta(self, engine: SupervisedEvaluator) -> Mapping[str, Any]:
        """Return the metadata that loading put beside images that are not a ``MetaTensor``."""
        batch: Any = engine.state.batch
        return batch.get(PostFix.meta(CommonKeys.IMAGE), {}) if isinstance(batch, Mapping) else {}

    def _items(self, engine: SupervisedEvaluator, key: str) -> Any:
        """Return what a key holds for the images of the batch; None: nothing."""
        batch: Any = engine.state.batch
        if isinstance(batch, Mapping):
            return batch.get(key)
        items = batch if isinstance(batch, list) else []
        return [item[key] for item in items if isinstance(item, Mapping) and key in item] or None


class GraTaHandler(AdaptationHandler):
    """An :class:`AdaptationHandler` with GraTa as its method.

    Args:
        network: network of the evaluator.
        windows, journal, source_key, case_key, site_key, bank, start_from, save_to, reset, site, guard: see
            :class:`AdaptationHandler`.
        settings: settings of :class:`grata.methods.GraTa`, e.g. ``activation="softmax", lr=1e-4``.

    Example::

        evaluator = SupervisedEvaluator(device, loader, network, val_handlers=[GraTaHandler(network, lr=1e-4)])
        evaluator.run()
    """

    def __init__(
        self,
        network: nn.Module,
        windows: WindowSelection | Mapping[str, Any] | None = None,
        journal: Journal | str | Path | None = None,
        source_key: str | None = None,
        case_key: str = "case",
        site_key: str = "site",
        bank: AdapterBank | str | Path | Mapping[str, Any] | None = None,
        start_from: str | Path | None = None,
        save_to: str | Path | None = None,
        reset: ResetPolicy | str | Mapping[str, Any] | None = None,
        site: str | None = None,
        guard: Guard | QualityGuard | Mapping[str, Any] | bool | None = True,
        **settings: Any,
    ) -> None:
        method = GraTa(network=network, **settings)
        super().__init__(
            method, windows, journal, source_key, case_key, site_key, bank, start_from, save_to, reset, site, guard
        )


class _Prepare:
    """Preparation of a batch as the engine has it, with the images in the type that the network computes in.

    Args:
        prepare: preparation of the engine.
        network: network that gets the images.
    """

    def __init__(self, prepare: Callable[..., Any], network: nn.Module) -> None:
        # that of another run is replaced
        self._prepare: Callable[..., Any] = prepare._prepare if isinstance(prepare, _Prepare) else prepare
        self._network = network

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        images, *others = self._prepare(*args, **kwargs)
        return as_input(images, self._network), *others


def _precision(engine: SupervisedEvaluator) -> contextlib.AbstractContextManager:
    """Return the engine's own autocast, which handlers run outside of."""
    return torch.autocast("cuda", **engine.amp_kwargs) if engine.amp else contextlib.nullcontext()
