"""The machine: the device that is asked for, and an allocator that keeps freed memory."""

from __future__ import annotations

import ctypes
import sys

import torch

from .errors import GrataError

__all__ = ["check_device", "keep_pages"]

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_NEVER = -1
_PAD = 256 * 2**20


def keep_pages() -> bool:
    """Let the C library's allocator keep freed memory, from now on and for the whole process.

    By default the allocator returns the memory of large tensors to the system, and every page of the next tensor causes
    a page fault: a quarter of a large network's time on a CPU. Keeping it costs a few hundred MiB of resident memory
    and changes no result.

    Returns:
        True on Linux with glibc; elsewhere False, and nothing is changed.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _PAD))
    done = [mallopt(option, value) == 1 for option, value in settings]
    return all(done)


def check_device(device: str | torch.device) -> torch.device:
    """Return ``device`` as a ``torch.device``.

    Raises:
        GrataError: it is not a device, or this machine does not have it.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise GrataError(f"{device!r} is not a device. Give cpu, cuda or cuda:0.", key="device") from error
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found.type not in ("cpu", "cuda"):
        try:
            torch.zeros(1, device=found).item()
        except (RuntimeError, NotImplementedError, AssertionError) as error:
            raise GrataError(
                f"{found} was asked for, but torch {torch.__version__} cannot compute on it here. Use --device cpu.",
                key="device",
            ) from error
    if found.type == "cuda" and (found.index or 0) >= count:
        raise GrataError(
            f"{found} was asked for, but torch {torch.__version__} sees {count} CUDA devices here. "
            "Use --device cpu, or install a CUDA build of torch and its driver.",
            key="device",
        )
    return found
