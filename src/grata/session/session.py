"""One method on a stream of cases: what every entrance drives, and what is promised at all of them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from itertools import zip_longest
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from monai.inferers import Inferer, SimpleInferer, SlidingWindowInferer
from monai.networks import eval_mode

from ..errors import GrataError
from ..methods import Method, StepRecord
from ..methods.base import SKIPPED
from ..methods.predictive import logits_in
from ..predictions import are_probabilities
from ..quality import Judgement, LayerStatistics, layer_statistics
from .familiar import ABSURD, evaluated, is_absurd
from .faults import check_finite, explained, tensors_in, unfit
from .guard import Again, Guard, Verdict
from .inputs import as_input
from .journal import Journal
from .judge import NOT_ADAPTED, PROBABILITIES, SAID, QualityGuard, make_guard
from .keeper import Keeper
from .learner import Learner
from .mark import loosen, take
from .measure import Clock, PeakMemory
from .record import fault_line, journal_line, merged_record
from .windows import WindowSelection, window_selection

if TYPE_CHECKING:
    import torch

    from ..bank import AdapterBank
    from .resets import ResetPolicy

__all__ = ["Batches", "Case", "Session", "Store", "judged_together", "numbered", "together"]

UNLIKE_TRAINING = "unlike_training"
"""Flag of an image that differs from those that the network was trained on, by what its bundle declares."""

UNKNOWN_SITE = "unknown_site"
"""Flag of a case whose site and scanner are unknown to the bank."""

Batches = Callable[[Method, WindowSelection], Sequence["torch.Tensor"]]
"""Gives the batches of a case to adapt to, for an entrance whose predictor is not one of MONAI's inferers."""

Store = Callable[["Case", Mapping[str, Any], Mapping[str, Any] | None], None]
"""Writes what a stopped process goes on from: the case that is finished, the state of the session after it, and what
:meth:`Session.resume` needs of the bank."""


class Session:
    """A method on a stream of cases, each of which is finished or leaves no trace.

    .. code-block:: text

        with session.case(images, name="scan-1", site="north") as case:
            case.adapt(inferer)
            prediction = case.judge(inferer(case.images, session.network))
            ...                                                        # write the prediction

    At the end of the block the case is committed: its line is written into the journal and its adaptation into the
    bank. On any exception in the block everything is as before the case: parameters, optimizer, generator, reset
    policy, bank and journal.

    The first case takes the network's weights as the source and marks the network as taken, until the session is gone
    or :func:`grata.restore` is called.

    Args:
        method: method that adapts its network.
        windows: choice of the windows of large volumes to adapt on: a :class:`WindowSelection` or its settings.
        bank: one adaptation per site or scanner, which goes on from its last state, also in another process: an
            :class:`grata.bank.AdapterBank`, its folder, or a mapping of ``path`` and ``tags``.
        start_from: saved adaptation that the stream, or each new entry of the bank, starts from.
        save_to: file of the saved adaptation of a stream without a bank, written after each case.
        journal: file of JSON lines, one for each image of a case; None: no journal.
        reset: policy that says when to start from the source network again, see :mod:`grata.session.resets`; None: as
            in the method's paper.
        site: site of cases that name none.
        guard: judge of each prediction: true for the usual one, a :class:`QualityGuard`, or its settings; a check of
            one's own, see :class:`grata.session.Guard`; false or None: every finite prediction passes.
        about: further keys of each line of the journal, such as the fold of a network.

    Attributes:
        flags: flags of each image that has any, by name.
        judgements: judgement of each image that the guard judged, by name.
        unlike: how each image of this process that differs from the training images does so, by name.
        store: function that writes the state after each case, for an entrance whose stopped process can be resumed; it
            is called after the journal and before the bank, which :meth:`resume` completes from it.

    Raises:
        GrataError: a setting is refused.
    """

    def __init__(
        self,
        method: Method,
        windows: WindowSelection | Mapping[str, Any] | None = None,
        bank: AdapterBank | str | os.PathLike[str] | Mapping[str, Any] | None = None,
        start_from: str | os.PathLike[str] | None = None,
        save_to: str | os.PathLike[str] | None = None,
        journal: Journal | str | os.PathLike[str] | None = None,
        reset: ResetPolicy | str | Mapping[str, Any] | None = None,
        site: str | None = None,
        guard: Guard | QualityGuard | bool | Mapping[str, Any] | None = True,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.method = method
        self.windows = window_selection(windows)
        self.learner = Learner(method, reset)
        self.keeper = Keeper(self.learner, bank, start_from, save_to)
        self.journal = Journal(journal) if isinstance(journal, str | os.PathLike) else journal
        self.site = site
        self.guard = make_guard(guard)
        self.about = dict(about or {})
        self.flags: dict[str, tuple[str, ...]] = {}
        self.judgements: dict[str, Judgement] = {}
        self.unlike: dict[str, str] = {}
        self.store: Store | None = None
        self._cases = 0
        self._open: Case | None = None
        self._taken = False

    @property
    def network(self) -> torch.nn.Module:
        """The network to predict with."""
        return self.method.network

    @property
    def episodic(self) -> bool:
        """Whether every case starts from the source network."""
        return self.learner.episodic

    def case(
        self,
        images: torch.Tensor,
        name: str | Sequence[str] = "",
        site: str | Sequence[str] | None = None,
        meta: Mapping[str, Any] | None = None,
        unlike: str | Sequence[str] | None = None,
    ) -> Case:
        """Return the context of a case, a batch of one or more images that are adapted to together.

        Args:
            images: ``(B, C, H, W)`` or ``(B, C, D, H, W)`` of any real number type, on the network's device.
            name: name of the case, or one for each image; a case without a name gets its number.
            site: site of all its images, or one for each; None: the session's.
            meta: collated metadata of images that are not a ``MetaTensor``, for a bank by scanner.
            unlike: how each image differs from those that the network was trained on, as text; empty or None: it does
                not, as far as is known. An image that does is flagged, and to be reviewed.

        Raises:
            GrataError: the images are complex or truth values, or there is another number of names or sites.
        """
        images = as_input(images, self.method.given)
        self._cases += 1
        names = _texts(name) or numbered(f"case-{self._cases}", len(images))
        sites = _texts(self.site if site is None else site)
        sites = [place or self.site or "" for place in (sites * len(images) if len(sites) == 1 else sites)]
        differences = _texts(unlike)
        _check_number(len(images), name=names, site=sites, unlike=differences)
        return Case(self, images, names, sites if any(sites) else [], meta or {}, differences)

    def restore(self) -> None:
        """Bring the source network back exactly; the next case starts from it, and is the first that a guard sees."""
        self.learner.restore()
        if isinstance(self.guard, QualityGuard):
            self.guard.forget()

    def _take(self) -> None:
        """Take the network; if it was restored since this session had it, the guard knows nothing of what follows."""
        if take(self.method, self) and self._taken and isinstance(self.guard, QualityGuard):
            self.guard.forget()
        self._taken = True

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which another process continues bit for bit, with :meth:`load_state_dict`."""
        state = self.learner.state_dict()
        return state | {"guard": self.guard.state_dict()} if isinstance(self.guard, QualityGuard) else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``.

        Raises:
            GrataError: the state belongs to another method, network or policy, or to other settings; nothing is changed
                then.
        """
        self.learner.load_state_dict(state)
        self._load_guard(state.get("guard"))

    def _follow(self, other: Session) -> None:
        """Let the guard know what that of another session of the same ensemble has seen."""
        if self is not other and isinstance(other.guard, QualityGuard):
            self._load_guard(other.guard.state_dict())

    def _load_guard(self, state: Mapping[str, Any] | None) -> None:
        if isinstance(self.guard, QualityGuard):
            if state is None:
                self.guard.forget()
            else:
                self.guard.load_state_dict(state)

    def resume(self, state: Mapping[str, Any], kept: Mapping[str, Any] | None) -> None:
        """Go on from what :attr:`store` was called with in a stopped process, and complete the bank from it.

        Raises:
            GrataError: the state does not belong to this session, or the bank is not as that process left it.
        """
        self.load_state_dict(state)
        self.keeper.resume(kept)

    def fail(self, name: str, message: str) -> None:
        """Write the line of an image that failed, without a case or in one that was rolled back.

        Args:
            name: name of the image.
            message: what was wrong, in one sentence.

        Raises:
            OutputError: the journal cannot be written.
        """
        if self.journal is not None:
            self.journal.append(fault_line(name, message))

    def _listed(self, name: str, flags: Sequence[str]) -> str:
        words = {UNLIKE_TRAINING: f"{UNLIKE_TRAINING}: {self.unlike[name]}"} if name in self.unlike else {}
        return ", ".join(words.get(flag, flag) for flag in flags)

    def _is_said(self, name: str, flags: Sequence[str]) -> bool:
        """Return whether the verdict on an image has told already all that its flags say."""
        reasons = self.judgements[name].reasons if name in self.judgements else ()
        return set(flags) == {UNLIKE_TRAINING} and self.unlike.get(name) in reasons

    def remarks(self) -> list[str]:
        """Return one line for each image with flags that its verdict has not told of, in their order."""
        where = "".join(f", {key} {value}" for key, value in self.about.items())
        lines = [
            f"{name}{where}: {self._remark(name, flags)}"
            for name, flags in self.flags.items()
            if NOT_ADAPTED not in flags and not self._is_said(name, flags)
        ]
        if any(PROBABILITIES in flags for flags in self.flags.values()):
            lines.append(f"{SAID[PROBABILITIES]}{where}. Give the network without its last activation.")
        if isinstance(self.guard, QualityGuard) and self.guard.given_up:
            left = sum(NOT_ADAPTED in flags for flags in self.flags.values())
            lines.append(
                f"this network does not bear {self.method.name}{where}: adaptation was given up, "
                f"and {left} images were predicted by the source network as it is. {self.guard.given_up}."
            )
        return lines

    def _remark(self, name: str, flags: Sequence[str]) -> str:
        listed = self._listed(name, flags)
        if SKIPPED in flags:
            return f"adaptation skipped ({listed}), predicted with the parameters before it"
        used = self.judgements[name].used if name in self.judgements else "adapted"
        return f"{'adapted' if used == 'adapted' else 'adaptation is not used'} ({listed})"


class Case:
    """One case of a session, used in a ``with`` block: :meth:`adapt`, then predict, then :meth:`judge`.

    Attributes:
        images: images ``(B, C, ...)`` in the type that the network computes in, for the prediction.
        names: names of the images.
        sites: their sites; empty where they are unknown.
        unlike: how each differs from the training images; empty where nothing is known of it.
        steps: records of the steps, see :class:`grata.methods.StepRecord`.
        record: the case's record, complete after :meth:`judge`: values and flags of the steps, ``parameter_change``,
            ``seconds`` of the adaptation, ``seconds_predict`` from there to the prediction, ``peak_memory_mib`` of
            both (of the process, or of the tensors on CUDA; None: unknown), with a bank its entry, with the usual
            guard ``seconds_judge``, and of a single image ``verdict``, ``used``, ``reasons`` and ``quality``.
        judgements: judgement of each image; empty before :meth:`judge`, and without a guard that judges.
        source: what the source network predicts of the case, if the guard asked it; None: it did not.
        finished: whether the case is committed.
    """

    def __init__(
        self,
        session: Session,
        images: torch.Tensor,
        names: Sequence[str],
        sites: Sequence[str],
        meta: Mapping[str, Any],
        unlike: Sequence[str] = (),
    ) -> None:
        self.session = session
        self.images = images
        self.names = list(names)
        self.sites = list(sites)
        self.unlike = list(unlike)
        self.steps: list[StepRecord] = []
        self.record: dict[str, Any] = {}
        self.judgements: list[Judgement] = []
        self.source: Any = None
        self.finished = False
        self._meta = meta
        self._inferer: Inferer | Batches | None = None
        self._entry: str | None = None
        self._judged = False
        self._given_up = False
        self._keep = True
        self._restore = False
        self._watching = ExitStack()
        self._around = ExitStack()
        self._statistics: LayerStatistics | None = None

    def __enter__(self) -> Self:
        session = self.session
        if session._open is not None:
            raise RuntimeError("the session is in the middle of another case")
        session._take()
        session.keeper.synchronize()
        self._before = session.learner.snapshot()
        self._guard_before = session.guard.state_dict() if isinstance(session.guard, QualityGuard) else None
        session._open = self
        try:
            self._around.enter_context(session.method.inputs_kept())
            self._entry = session.keeper.begin(self.images, self.sites, self._meta)
            self._start = session.learner.snapshot() if session.guard is not None else None
        except BaseException:
            self.roll_back()
            raise
        return self

    def adapt(self, inferer: Inferer | Batches | None = None) -> list[StepRecord]:
        """Let the method adapt to the case.

        Args:
            inferer: inferer that predicts the case afterwards, and so says which batches there are to adapt to:
                ``SimpleInferer``, or ``SlidingWindowInferer`` for some of its windows; or a function that gives them.
                None: the images at once.

        Returns:
            The record of each step.

        Raises:
            GrataError: adaptation does not know the inferer, or the method refuses the images.
        """
        session, method = self.session, self.session.method
        device = next((p.device for p in method.given.parameters()), self.images.device)
        self._memory, self._clock, self._inferer = PeakMemory(device), Clock(device), inferer
        if isinstance(session.guard, QualityGuard) and session.guard.given_up:
            # what was learned before is put back when the case ends: in a bank, it may be another site's
            self._given_up = True
            session.learner.restore()
            self._watching.enter_context(evaluated(method.network))
            self.steps = [StepRecord((NOT_ADAPTED,))]
        else:
            with explained():
                self.steps = self._steps(inferer)
        if isinstance(session.guard, QualityGuard) and not session.guard.asks_source(method):
            # what the source network predicts anyway need not be predicted again
            self._statistics = self._watching.enter_context(layer_statistics(method.network))
        self.record = {
            **merged_record(self.steps),
            "parameter_change": method.parameter_change(),
            "seconds": self._clock.lap(),
        }
        self._peak = self._memory.mib()
        if self._entry is not None:
            self.record["bank"] = self._entry
            if session.keeper.is_unknown(self._entry):
                self.record["flags"] = [*self.record["flags"], UNKNOWN_SITE]
        return self.steps

    def _steps(self, inferer: Inferer | Batches | None) -> list[StepRecord]:
        learner = self.session.learner
        was_reset = learner.begin(self.sites[0] or None if self.sites else None)
        steps = []
        remembers = learner.method.learns and not learner.episodic
        for batch in self._batches(inferer):
            if remembers and is_absurd(learner.method, batch):
                steps.append(StepRecord((ABSURD, SKIPPED), was_reset))
            else:
                steps.append(learner.adapt(batch, was_reset))
            was_reset = False
        if not learner.method.active:
            self._watching.enter_context(evaluated(learner.method.network))
        return steps

    def restart_clock(self) -> None:
        """Let the time of the prediction begin now, where other work came after the adaptation."""
        self._clock.lap()

    def judge(self, prediction: Any, again: Again | None = None) -> Any:
        """Check a prediction, and return the one to use: a guard may put another in its place.

        Args:
            prediction: tensor, or a mapping, list or tuple of tensors.
            again: predicts images as the entrance does, by the adapted network or the source network; None: by the
                inferer that :meth:`adapt` got.

        Raises:
            GrataError: the prediction is not finite.
        """
        return judged_together([self], prediction, again)

    def _check(self, prediction: Any) -> None:
        if not self.steps:
            raise RuntimeError("a case is adapted to before its prediction is judged")
        self._watching.close()
        peaks = [peak for peak in (self._peak, self._memory.mib()) if peak is not None]
        self.record |= {"seconds_predict": self._clock.lap(), "peak_memory_mib": max(peaks, default=None)}
        check_finite(tensors_in(prediction))
        agreement = self.session.method.prediction_agreement
        if math.isfinite(agreement):
            self.record["agreement"] = agreement
        if self._says_probabilities(prediction):
            self.record["flags"] = [*self.record["flags"], PROBABILITIES]
        self._judged = True

    def _says_probabilities(self, prediction: Any) -> bool:
        """Return whether the network ends in its activation, so that its output would be activated twice."""
        guard, told = self.session.guard, self.session.method.meaning
        activation = (guard.activation if isinstance(guard, QualityGuard) else None) or told.get("activation")
        if activation is None:
            return False
        with suppress(GrataError):
            return are_probabilities(logits_in(prediction, told.get("output")), activation)
        return False

    def _verdict(self, prediction: Any, again: Again | None) -> Verdict | None:
        guard, method = self.session.guard, self.session.method
        if guard is None:
            return None
        if isinstance(guard, QualityGuard):
            return guard.judge(method, self.images, prediction, self.record, again or self._again, self._statistics)
        verdict = guard(method, self.images, prediction, self.record)
        if not isinstance(verdict, Verdict):
            raise TypeError(f"a guard returns a grata.session.Verdict, got {type(verdict).__name__}")
        return verdict

    def _take(self, verdict: Verdict) -> None:
        self.record |= verdict.record
        self._keep, self._restore = verdict.keep and not self._given_up, verdict.restore
        self.judgements, self.source = _doubted(verdict.judgements, self.unlike), verdict.source
        if verdict.flags:
            self.record["flags"] = [*self.record["flags"], *verdict.flags]
        if self.judgements:
            self.record["seconds_judge"] = self._clock.lap()
        if len(self.judgements) == 1:
            self.record |= self.judgements[0].as_dict()

    def _again(self, images: torch.Tensor, source: bool) -> Any:
        """Predict images by the inferer that the case was adapted through."""
        inferer, method = self._inferer, self.session.method
        predict = inferer if isinstance(inferer, Inferer) else SimpleInferer()
        with method.source_network() if source else nullcontext(method.network) as network, eval_mode(network):
            return predict(images, network)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.roll_back()
            if error is not None and (words := unfit(error)):
                raise words from error
            return
        if not self._judged:
            self.roll_back()
            raise RuntimeError("a case is adapted to and its prediction judged before it ends")
        self._commit()

    def _batches(self, inferer: Inferer | Batches | None) -> Sequence[torch.Tensor]:
        method, windows = self.session.method, self.session.windows
        if isinstance(inferer, Inferer):
            if not method.learns or isinstance(inferer, SimpleInferer):
                return [self.images]
            if isinstance(inferer, SlidingWindowInferer):
                return windows.select(self.images, inferer, method)
            raise GrataError(
                f"adaptation does not know {type(inferer).__name__}. "
                "Use SimpleInferer, SlidingWindowInferer or SliceInferer.",
                key="inferer",
            )
        return [self.images] if inferer is None else inferer(method, windows)

    def _commit(self) -> None:
        """Write journal, state and bank, in this order: a stopped process goes on from the state, if there is one."""
        session = self.session
        if self._restore:
            session.learner.restore()
        elif not self._keep:
            session.learner.go_back(self._start)
        size = session.journal.size() if session.journal is not None else 0
        before = size, dict(session.flags), dict(session.judgements)
        try:
            self._write_lines()
            if session.store is not None:
                state = session.state_dict()
                session.store(self, state, session.keeper.stage({k: v for k, v in state.items() if k != "guard"}))
                self._finish()
            session.keeper.keep()
        except BaseException:
            if not self.finished:
                self._take_back_lines(*before)
                self.roll_back()
            raise
        self._finish()

    def _finish(self) -> None:
        self.finished = True
        self._around.close()
        self.session._open = None

    def roll_back(self) -> None:
        """Put everything back to before the case; leaving the block by an exception does so by itself."""
        self.session._open = None
        self._watching.close()
        self._around.close()
        self.session.learner.go_back(self._before)
        self.session._load_guard(self._guard_before)
        # nobody may be left who could go on, so the network is free for another session until this one does
        loosen(self.session)

    def _write_lines(self) -> None:
        session = self.session
        for name, site, judgement, unlike in zip_longest(self.names, self.sites, self.judgements, self.unlike):
            record = self.record if judgement is None else self.record | judgement.as_dict()
            if unlike:
                record = {**record, "flags": [*record["flags"], UNLIKE_TRAINING], UNLIKE_TRAINING: unlike}
                session.unlike[name] = unlike
            if session.journal is not None:
                session.journal.append(journal_line(name, site or None, session.method.name, record, session.about))
            if record["flags"]:
                session.flags[name] = tuple(record["flags"])
            if judgement is not None:
                session.judgements[name] = judgement

    def _take_back_lines(
        self, size: int, flags: Mapping[str, tuple[str, ...]], judgements: Mapping[str, Judgement]
    ) -> None:
        session = self.session
        if session.journal is not None:
            session.journal.cut(size)
        session.flags.clear()
        session.flags.update(flags)
        session.judgements.clear()
        session.judgements.update(judgements)


def judged_together(cases: Sequence[Case], prediction: Any, again: Again | None = None) -> Any:
    """Check the prediction that several cases gave together, such as the mean over the folds of an ensemble.

    The guard of the first case judges; what it says holds for all. See :meth:`Case.judge`.
    """
    for case in cases:
        case._check(prediction)
    verdict = cases[0]._verdict(prediction, again)
    if verdict is None:
        return prediction
    for case in cases:
        case._take(verdict)
        case.session._follow(cases[0].session)
    check_finite(tensors_in(verdict.prediction))
    return verdict.prediction


@contextmanager
def together(cases: Sequence[Case]) -> Iterator[Sequence[Case]]:
    """Enter cases of several sessions, such as the folds of an ensemble, and commit them in their order.

    An exception in the block rolls all of them back. Where one cannot be committed, those after it are rolled back.

    Args:
        cases: one case of each session.

    Yields:
        The cases.
    """
    with ExitStack() as stack:
        # The last to enter is the first to leave.
        for case in reversed(cases):
            stack.enter_context(case)
        yield cases


def _doubted(judgements: Sequence[Judgement], unlike: Sequence[str]) -> list[Judgement]:
    """Return judgements with how each image differs from the training images as a further reason."""
    return [one.doubted(text) if text else one for one, text in zip_longest(judgements, unlike[: len(judgements)])]


def _texts(value: Any) -> list[str]:
    """Return names as text: of one or several; what is None has an empty one. Collated numbers may be a tensor."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if value is None or value == "":
        return []
    return ["" if item is None else str(item) for item in (value if isinstance(value, list | tuple) else [value])]


def _check_number(images: int, **given: Sequence[str]) -> None:
    for key, values in given.items():
        if values and len(values) != images:
            raise GrataError(f"there are {len(values)} for {images} images. Give one for each.", key=key)


def numbered(name: str, images: int) -> list[str]:
    """Return the name of a case for each of its images, with its number where there are several."""
    return [name] if images == 1 else [f"{name}-{index + 1}" for index in range(images)]
