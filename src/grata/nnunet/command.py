"""What ``python -m grata nnunet`` does with its options."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from monai.bundle import ConfigParser

from ..errors import GrataError
from .run import predict

__all__ = ["run_command"]

_CONSTANTS = {"true": True, "false": False, "none": None, "null": None}


def run_command(model_folder: str, input: str, output: str, method: str, **options: Any) -> int:
    """Run :func:`grata.nnunet.predict`.

    Args:
        model_folder, input, output, method: as there.
        options: its others, those of a mapping also one by one: ``settings#lr``.

    Raises:
        GrataError: an option that there is not, or what ``predict`` raises.
    """
    known = list(inspect.signature(predict).parameters)[4:]
    parser = ConfigParser({})
    # What is given as a whole comes first: it would undo what is given of its parts.
    for key, value in sorted(options.items(), key=lambda item: item[0].count("#")):
        head = key.split("#")[0]
        if head not in known:
            near = difflib.get_close_matches(head, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"They are {', '.join(known)}."
            raise GrataError(f"there is no such option. {hint}", key=key)
        parser.set(_CONSTANTS.get(value.lower(), value) if isinstance(value, str) else value, key)
    return predict(str(model_folder), str(input), str(output), str(method), **parser.get())
