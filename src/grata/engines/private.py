"""The private parts of ignite and MONAI that a run cannot do without, in one place."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from ignite.engine import Engine, Events
from monai.handlers import StatsHandler

__all__ = ["forget_run", "is_last_handler", "silence"]


def is_last_handler(engine: Engine, event: Any, handler: Callable[..., Any]) -> bool:
    """Return whether a handler is the last of an event: ignite drops an error that no handler raises again."""
    handlers = engine._event_handlers[event]
    return bool(handlers) and handlers[-1][0] == handler


def forget_run(engine: Engine) -> None:
    """Let the next ``engine.run()`` begin anew.

    Ignite would go on with the run that failed. Its loader's iterator must be gone before the next workers fork, which
    would inherit it and shut down its own.
    """
    engine._internal_run_generator = None
    engine._dataloader_iter = None
    gc.collect()


def silence(engine: Engine) -> None:
    """Turn off the logs of the engine and of MONAI, which would repeat each fault with its whole traceback."""
    engine.logger.disabled = True
    for handler, *_ in list(engine._event_handlers[Events.EXCEPTION_RAISED]):
        if isinstance(getattr(handler, "__self__", None), StatsHandler):
            engine.remove_event_handler(handler, Events.EXCEPTION_RAISED)
