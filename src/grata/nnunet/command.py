"""What ``grata nnunet`` does with its options."""

from __future__ import annotations

import inspect
from typing import Any

from ..checks import did_you_mean, option_constant
from ..errors import GrataError
from ..session.faults import quiet
from .run import predict

__all__ = ["run_command"]


def run_command(model_folder: str, input: str, output: str, method: str, **options: Any) -> int:
    """Run :func:`grata.nnunet.predict`.

    Args:
        model_folder: see :func:`grata.nnunet.predict`.
        input: see there.
        output: see there.
        method: see there.
        options: its other arguments, those of a mapping also one by one: ``settings#lr``.

    Returns:
        The exit status.

    Raises:
        GrataError: an option is not known, or ``predict`` refuses something.
    """
    from monai.bundle import ConfigParser

    quiet()
    known = list(inspect.signature(predict).parameters)[4:]
    parser = ConfigParser({})
    # What is given as a whole comes first: it would undo what is given of its parts.
    for key, value in sorted(options.items(), key=lambda item: item[0].count("#")):
        head = key.partition("#")[0]
        if head not in known:
            raise GrataError(f"there is no such option. {did_you_mean(head, known, _all(known))}", key=key)
        parser.set(option_constant(value, key) if isinstance(value, str) else value, key)
    return predict(str(model_folder), str(input), str(output), str(method), **parser.get())


def _all(known: list[str]) -> str:
    return f"They are {', '.join(known)}."
