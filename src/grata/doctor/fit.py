"""Which methods a bundle can take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from ..benchmark.bundle import BenchmarkBundle
from ..benchmark.config import MethodRow
from ..errors import GrataError
from ..session.faults import quiet

__all__ = ["fitting_methods"]


def fitting_methods(root: str | Path, names: Sequence[str]) -> str:
    """Return a table that shows which methods can adapt a bundle's network with what was prepared for it.

    Args:
        root: folder of the bundle.
        names: names of the methods.

    Raises:
        GrataError: the bundle's configuration or weights cannot be read.
    """
    quiet()
    bundle = BenchmarkBundle(Path(root), {"device": "cpu"}, "bundle")
    network = bundle.make_network()
    rows = []
    for name in names:
        try:
            bundle.create_method(MethodRow(name, name, {}), network, seed=0)
            rows.append([name, "yes", ""])
        except GrataError as error:
            rows.append([name, "no", str(error)])
    return tabulate(rows, ["method", "fits", "reason"], "simple", maxcolwidths=[None, None, 80])
