"""Adapt the network of a ``SupervisedEvaluator`` to each batch, just before it predicts the batch."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator
from monai.utils import CommonKeys
from monai.utils.enums import PostFix
from torch import nn

from .. import __version__
from ..adapters import UNKNOWN, AdapterBank, Keeper
from ..errors import GrataError
from ..methods import GraTa, Method, StepRecord
from ..methods.base import SKIPPED
from .journal import Journal
from .steps import adapt_to_case, merged_record
from .windows import WindowSelection, window_selection

__all__ = ["AdaptationHandler", "GraTaHandler"]


class AdaptationHandler:
    """A handler that plugs a method into ``monai.engines.SupervisedEvaluator``.

    On ``ITERATION_STARTED`` the handler prepares the batch as the engine does (``prepare_batch``, device, AMP), and the
    method adapts the network to it. The engine then predicts the batch with the adapted network. With a
    ``SlidingWindowInferer`` and a volume larger than its window, the method adapts on some windows, never on all, so
    the memory is that of one batch of windows. The source weights are those at the first batch, because handlers may
    load them on ``STARTED``. When the engine runs again, or goes on with a method's saved state, this handler undoes
    what such handlers loaded over the adapted parameters: attach it after them.

    The evaluator's network may also be a module around the method's network, such as one that ends in the activation,
    or a compiled one.

    Args:
        method: method that adapts the network.
        windows: selection of windows of large volumes: a :class:`WindowSelection` or its settings.
        journal: file of JSON lines, one per case: case, site, losses, cosine, learning rate, gradient norms, change of
            the parameters from the source, seconds, peak memory, method and version. None: no journal.
        source_key: key under which the prediction of the source network is put into ``engine.state.batch``, where
            postprocessing finds it. None: the source network does not predict.
        case_key: key of the case ids in the batch.
        site_key: key of the site names in the batch.
        bank: one adaptation per site or scanner, which goes on from its last state, also in another run: an
            :class:`grata.adapters.AdapterBank`, its folder, or a mapping of ``path`` and ``tags``.
        start_from: saved adaptation to start from, see :class:`grata.adapters.Keeper`.
        save_to: file of the saved adaptation of a stream without a bank, written after each case.

    Attributes:
        flags: flags of the record, by case; cases without flags are left out.
        keeper: keeper of the bank or the saved adaptation.

    Raises:
        GrataError: a setting of the windows or the bank is refused.
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
    ) -> None:
        self.method = method
        self.keeper = Keeper(method, bank, start_from, save_to)
        self.windows = window_selection(windows)
        self.journal = Journal(journal) if isinstance(journal, str | Path) else journal
        self.source_key = source_key
        self.case_key = case_key
        self.site_key = site_key
        self.flags: dict[str, tuple[str, ...]] = {}
        self._line: dict[str, Any] = {}
        self._images = 1

    @property
    def skipped(self) -> dict[str, tuple[str, ...]]:
        """Flags of the cases with a skipped step (a loss or gradient that is not finite, nothing to learn from)."""
        return {case: flags for case, flags in self.flags.items() if SKIPPED in flags}

    @property
    def noted(self) -> dict[str, tuple[str, ...]]:
        """Flags of the cases without a skipped step."""
        return {case: flags for case, flags in self.flags.items() if SKIPPED not in flags}

    def remarks(self) -> list[str]:
        """Return one line for each case with flags, in the order of the cases."""
        remarks = []
        for case, flags in self.flags.items():
            listed = ", ".join(flags)
            skipped = f"adaptation skipped ({listed}), predicted with the parameters before it"
            remarks.append(f"{case}: {skipped if SKIPPED in flags else f'adapted ({listed})'}")
        return remarks

    def attach(self, engine: SupervisedEvaluator) -> None:
        """Register the handler on the engine's events.

        Args:
            engine: evaluator whose network is adapted.
        """
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_STARTED, self.adapt)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.record)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.keep)

    def start(self, engine: SupervisedEvaluator) -> None:
        """Let the engine predict with the method's network.

        Raises:
            GrataError: the engine's network is not the one that the method was given.
        """
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
            GrataError: the network needs more than the image, or the keeper or the method refuses the batch.
        """
        state: Any = engine.state
        batch: Any = engine.prepare_batch(state.batch, state.device, engine.non_blocking, **engine.to_kwargs)
        images, _, args, kwargs = batch if len(batch) == 4 else (*batch, (), {})
        if self.method.learns and (args or kwargs or getattr(engine.inferer, "with_coord", False)):
            raise GrataError(
                "the network gets more than the image, and adaptation cannot make views of the rest. "
                "Use method source or ptbn, or a network that takes the image alone.",
                key="prepare_batch, inferer",
            )
        entry = self.keeper.begin(images, self._items(engine, self.site_key), self._meta(engine))
        if self.source_key is not None:
            with self.method.source_network() as source, engine.mode(engine.network), _precision(engine):
                network = source if engine.network is self.method.network else engine.network
                state.batch[self.source_key] = engine.inferer(images, network, *args, **kwargs)
        started = time.perf_counter()
        with _peak_memory(images.device) as peak:
            records = self._adapt(images, engine)
        self._images = len(images)
        self._line = {
            **merged_record(records),
            "parameter_change": self.method.parameter_change(),
            "seconds": round(time.perf_counter() - started, 4),
            "peak_memory_mib": peak[0],
        }
        if entry is not None:
            self._line["bank"] = entry
        if entry == UNKNOWN:
            self._line["flags"] = [*self._line["flags"], "unknown_site"]

    def _adapt(self, images: torch.Tensor, engine: SupervisedEvaluator) -> list[StepRecord]:
        with _precision(engine):
            sites = self._items(engine, self.site_key)
            return adapt_to_case(self.method, images, engine.inferer, self.windows, sites[0] if sites else None)

    def record(self, engine: SupervisedEvaluator) -> None:
        """Write the journal's lines for the batch that was just predicted."""
        cases, sites = (self._items(engine, key) for key in (self.case_key, self.site_key))
        unnamed = [f"iteration-{engine.state.iteration}-{index}" for index in range(self._images)]
        for index, case in enumerate(cases or unnamed):
            if self._line["flags"]:
                self.flags[case] = tuple(self._line["flags"])
            if self.journal is not None:
                self.journal.append(
                    {
                        "case": case,
                        "site": sites[index] if sites else None,
                        "method": self.method.name,
                        "version": __version__,
                        **self._line,
                    }
                )

    def keep(self, engine: SupervisedEvaluator) -> None:
        """Keep the adaptation after the batch, which is finished."""
        self.keeper.keep()

    def _meta(self, engine: SupervisedEvaluator) -> Mapping[str, Any]:
        """Return the metadata that loading put beside images that are not a ``MetaTensor``."""
        batch: Any = engine.state.batch
        return batch.get(PostFix.meta(CommonKeys.IMAGE), {}) if isinstance(batch, Mapping) else {}

    def _items(self, engine: SupervisedEvaluator, key: str) -> list[str]:
        batch: Any = engine.state.batch
        if isinstance(batch, Mapping):
            value = batch.get(key, [])
            return [str(v) for v in ([value] if isinstance(value, str) else value)]
        items = batch if isinstance(batch, list) else []
        return [str(item[key]) for item in items if isinstance(item, Mapping) and key in item]


class GraTaHandler(AdaptationHandler):
    """An :class:`AdaptationHandler` with GraTa as its method.

    Args:
        network: network of the evaluator.
        windows, journal, source_key, case_key, site_key, bank, start_from, save_to: see :class:`AdaptationHandler`.
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
        **settings: Any,
    ) -> None:
        method = GraTa(network=network, **settings)
        super().__init__(method, windows, journal, source_key, case_key, site_key, bank, start_from, save_to)


def _precision(engine: SupervisedEvaluator) -> contextlib.AbstractContextManager:
    """Return the engine's own autocast, which handlers run outside of."""
    return torch.autocast("cuda", **engine.amp_kwargs) if engine.amp else contextlib.nullcontext()


@contextlib.contextmanager
def _peak_memory(device: torch.device) -> Iterator[list[float | None]]:
    """Measure the peak memory in MiB: of the block on a CUDA device, of the process so far on a CPU; None: unknown."""
    peak: list[float | None] = [None]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak[0] = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
        return
    yield peak
    with contextlib.suppress(ImportError):
        import resource  # not on Windows

        unit = 2**20 if sys.platform == "darwin" else 2**10
        peak[0] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)
