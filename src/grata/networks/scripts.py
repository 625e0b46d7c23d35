"""TorchScript files, which are code, opened in one place."""

from __future__ import annotations

import os
import sys
from typing import cast

import torch

from ..console import say

__all__ = ["open_script"]


def open_script(
    path: str | os.PathLike[str], device: str | torch.device = "cpu", extra: dict[str, str] | None = None
) -> torch.jit.ScriptModule:
    """Return the network in a TorchScript file, and say beforehand that such a file is code.

    Args:
        path: the file.
        device: device of the network.
        extra: further files of the archive by name, whose contents are filled in.

    Raises:
        RuntimeError: it is not a TorchScript file.
        ValueError: likewise.
    """
    say(
        f"note: {os.path.basename(path)} is code: a TorchScript file can run anything when it is opened. Open only "
        "files that you trust.",
        sys.stderr,
    )
    return cast(torch.jit.ScriptModule, torch.jit.load(path, map_location=device, _extra_files=extra))
