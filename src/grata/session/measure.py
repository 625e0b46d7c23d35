"""Clock and memory of a case, with one meaning wherever a case comes from."""

from __future__ import annotations

import re
import time
from pathlib import Path

import torch

__all__ = ["Clock", "PeakMemory"]

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
"""Resets the peak resident size of a process, see proc(5)."""


class Clock:
    """Seconds between two readings, with the work that a CUDA device still had to do.

    Args:
        device: device that computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last = self._now()

    def lap(self) -> float:
        """Return the seconds since the last reading, or since the construction."""
        now = self._now()
        seconds, self._last = now - self._last, now
        return round(seconds, 4)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class PeakMemory:
    """Peak memory from the construction on: of tensors on a CUDA device, of the whole process on a CPU with Linux.

    Args:
        device: device that computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known = device.type == "cuda"
        if self._known:
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            _CLEAR.write_text(_RESET_PEAK)
        except OSError:
            return
        self._known = True

    def mib(self) -> float | None:
        """Return the peak in MiB; None where the system cannot measure it."""
        if not self._known:
            return None
        if self._device.type == "cuda":
            return round(torch.cuda.max_memory_allocated(self._device) / 2**20, 1)
        found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
        return round(int(found[1]) / 2**10, 1) if found else None
