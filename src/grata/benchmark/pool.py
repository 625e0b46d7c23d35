"""Jobs in processes of their own: one that dies takes its job with it, and nothing else."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from ..session.faults import explain, quiet
from .jobs import Job
from .stream import run_job

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

__all__ = ["run_jobs"]

_GRACE_S = 5
"""Seconds within which a worker ends by itself."""


def run_jobs(
    jobs: Sequence[Job], parts: Path, workers: int, advance: Callable[[], None], failed: Callable[[Job, str], None]
) -> None:
    """Run jobs, in this process or several at a time.

    With workers each job has a process of its own, so that its peak memory and its seconds do not include those of the
    job before it.

    Args:
        jobs: jobs in order.
        parts: folder of all parts.
        workers: number of processes at a time; 0: all jobs run in this process.
        advance: function called after each finished image.
        failed: function called with a job that could not be finished, and the reason.
    """
    if workers == 0:
        for job in jobs:
            try:
                run_job(job, parts, advance)
            # A bundle's configuration can call anything, which can raise anything.
            except Exception as error:  # noqa: BLE001
                failed(job, explain(error))
        return
    context, waiting = _context(), deque(jobs)
    running: dict[Connection, tuple[BaseProcess, Job]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                _start(context, waiting.popleft(), parts, running)
            for connection in cast(list[Connection], wait(list(running))):
                _receive(connection, running, advance, failed)
    finally:
        # asked to stop, a worker does not count its image as one that ended the process
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.join(_GRACE_S)
            process.kill()
            process.join()


def _context() -> ForkServerContext | SpawnContext:
    """Return the context that starts worker processes.

    Imports take longer than many jobs, so where it is safe a worker is a fork of a process that has imported this
    module. It is not safe with CUDA, which a fork cannot use, nor on macOS, where some libraries crash after a fork.
    """
    if sys.platform != "linux" or torch.cuda.is_available():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _start(
    context: ForkServerContext | SpawnContext,
    job: Job,
    parts: Path,
    running: dict[Connection, tuple[BaseProcess, Job]],
) -> None:
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(job, parts, theirs), daemon=True)
    process.start()
    theirs.close()
    running[ours] = (process, job)


def _receive(
    connection: Connection,
    running: dict[Connection, tuple[BaseProcess, Job]],
    advance: Callable[[], None],
    failed: Callable[[Job, str], None],
) -> None:
    """Report what a worker sent, or how it ended."""
    process, job = running[connection]
    try:
        message = connection.recv()
    except (EOFError, OSError):
        process.join()
        del running[connection]
        if process.exitcode != 0:
            failed(job, _death(process.exitcode))
        return
    if message is None:
        advance()
    else:
        failed(job, message)


def _work(job: Job, parts: Path, connection: Connection) -> None:
    # Ctrl-C reaches all processes of a terminal; the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    quiet()
    try:
        run_job(job, parts, lambda: connection.send(None), own_process=True)
    except BrokenPipeError:
        # The parent is gone, so nobody can receive the reason.
        os._exit(1)
    except Exception as error:  # noqa: BLE001
        connection.send(explain(error))


def _die_with_parent() -> None:
    """End this process with its parent: a killed parent cannot end it, and another run must not meet it."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker is a child process"
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_S)
    os._exit(1)


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = "; it may have run out of memory, try fewer workers" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with status {code}"
