"""Jobs in processes of their own: one that dies takes its job with it, and nothing else."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from ..workflows.configuration import explain
from .bundle import quiet
from .stream import run_job

__all__ = ["run_jobs"]


def run_jobs(
    jobs: Sequence[Any], parts: Path, workers: int, advance: Callable[[], None], failed: Callable[[Any, str], None]
) -> int:
    """Run jobs, in this process or several at a time.

    Args:
        jobs: in order.
        parts: folder of all parts.
        workers: processes; 0: everything in this one.
        advance: called for each image that is done.
        failed: called with a job that could not be finished, and why.

    Returns:
        How many images failed.
    """
    if workers == 0:
        return _here(jobs, parts, advance, failed)
    context = multiprocessing.get_context("spawn")
    waiting, running, images = deque(jobs), {}, 0
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(theirs, parts), daemon=True)
                process.start()
                theirs.close()
                running[ours] = (process, _give(ours, waiting))
            for connection in wait(list(running)):
                process, job = running[connection]
                try:
                    kind, value = connection.recv()
                except (EOFError, OSError):
                    process.join()
                    del running[connection]
                    if job is not None:
                        failed(job, _death(process.exitcode))
                    continue
                if kind == "image":
                    advance()
                    continue
                if kind == "error":
                    failed(job, value)
                else:
                    images += value
                running[connection] = (process, _give(connection, waiting))
    finally:
        for process, _ in running.values():
            process.kill()
        for process, _ in running.values():
            process.join()
    return images


def _here(
    jobs: Sequence[Any], parts: Path, advance: Callable[[], None], failed: Callable[[Any, str], None]
) -> int:
    images = 0
    for job in jobs:
        try:
            images += run_job(job, parts, advance)
        except Exception as error:
            failed(job, explain(error))
    return images


def _give(connection: Connection, waiting: deque[Any]) -> Any:
    """Hand out the next job; None (and the worker ends) when there is none."""
    job = waiting.popleft() if waiting else None
    try:
        connection.send(job)
    except OSError:
        # it died before it was asked; the caller hears of that by the end of the connection
        pass
    return job


def _work(connection: Connection, parts: Path) -> None:
    # Ctrl-C reaches all processes of a terminal; the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    quiet()
    while (job := connection.recv()) is not None:
        try:
            connection.send(("done", run_job(job, parts, lambda: connection.send(("image", None)))))
        except Exception as error:
            connection.send(("error", explain(error)))


def _die_with_parent() -> None:
    """A parent that was killed cannot end its workers, and another run must not meet them."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = "; it may have run out of memory, try fewer workers" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with status {code}"
