"""Which methods a bundle can take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from ..errors import GrataError
from ..workflows.configuration import quiet
from .bundle import Bundle
from .config import MethodRow

__all__ = ["fitting_methods"]


def fitting_methods(root: str | Path, names: Sequence[str]) -> str:
    """A table of methods and whether the network of a bundle, with what was prepared for it, can be adapted by them.

    Args:
        root: folder of the bundle.
        names: of methods.

    Raises:
        GrataError: the bundle's configuration or weights cannot be read.
    """
    quiet()
    bundle = Bundle(Path(root), {"device": "cpu"}, "bundle")
    network = bundle.make_network()
    rows = []
    for name in names:
        try:
            bundle.create_method(MethodRow(name, name, {}), network, seed=0)
            rows.append([name, "yes", ""])
        except GrataError as error:
            rows.append([name, "no", str(error)])
    return tabulate(rows, ["method", "fits", "what it lacks"], "simple", maxcolwidths=[None, None, 80])
