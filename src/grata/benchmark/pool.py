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

from ..workflows.configuration import explain, quiet
from .jobs import Job
from .stream import run_job

__all__ = ["run_jobs"]


def run_jobs(
    jobs: Sequence[Job], parts: Path, workers: int, advance: Callable[[], None], failed: Callable[[Job, str], None]
) -> None:
    """Run jobs, in this process or several at a time.

    Each job has a process of its own: its peak memory and its seconds are then not those of the job before it.

    Args:
        jobs: in order.
        parts: folder of all parts.
        workers: how many processes at a time; 0: everything in this one.
        advance: called for each image that is done.
        failed: called with a job that could not be finished, and why.
    """
    if workers == 0:
        for job in jobs:
            try:
                run_job(job, parts, advance)
            except Exception as error:
                failed(job, explain(error))
        return
    context = multiprocessing.get_context("spawn")
    waiting, running = deque(jobs), {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.popleft()
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(job, parts, theirs), daemon=True)
                process.start()
                theirs.close()
                running[ours] = (process, job)
            for connection in wait(list(running)):
                process, job = running[connection]
                try:
                    message = connection.recv()
                except (EOFError, OSError):
                    process.join()
                    del running[connection]
                    if process.exitcode != 0:
                        failed(job, _death(process.exitcode))
                    continue
                if message is None:
                    advance()
                else:
                    failed(job, message)
    finally:
        for process, _ in running.values():
            process.kill()
        for process, _ in running.values():
            process.join()


def _work(job: Job, parts: Path, connection: Connection) -> None:
    # Ctrl-C reaches all processes of a terminal; the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    quiet()
    try:
        run_job(job, parts, lambda: connection.send(None), own_process=True)
    except BrokenPipeError:
        # nobody is left to be told
        os._exit(1)
    except Exception as error:
        connection.send(explain(error))


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
