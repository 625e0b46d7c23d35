"""``grata methods``: which methods there are, what each does, and which of them a bundle can take."""

from __future__ import annotations

import sys
from collections.abc import Container
from pathlib import Path
from typing import Annotated, Any

from ..console import say
from ..doctor.catalogue import load
from ..errors import GrataError
from .listing import describe, find, methods_table, select
from .options import DIMENSIONS, PATH, SWITCH, TEXT, Work, argument, check_bundle, option

__all__ = ["methods"]


def methods(
    name: Annotated[str | None, argument("Method to describe; without it, all methods are listed.")] = None,
    bundle: Annotated[
        str | None, option("bundle", PATH, "Folder of a bundle: show which methods fit it, and what the others lack.")
    ] = None,
    changes: Annotated[
        str | None, option("changes", TEXT, "Only methods that change this, such as statistics or affine.")
    ] = None,
    mode: Annotated[str | None, option("mode", TEXT, "Only methods that are online, or episodic.")] = None,
    spatial_dims: Annotated[
        int | None, option("spatial_dims", DIMENSIONS, "Only methods for 2D or for 3D images.")
    ] = None,
    backwards: Annotated[
        Any, option("backwards", SWITCH, "Only methods that compute gradients, or only those that do not.")
    ] = None,
    prepared: Annotated[
        Any,
        option("prepared", SWITCH, "Only methods that need something of the source set, or only those that do not."),
    ] = None,
    form: Annotated[
        str, option("form", TEXT, "Form of the list: simple, markdown, readme or json.", default="simple")
    ] = "simple",
) -> Work:
    """List the methods, or show all about one.

    Passes are the calls of the network for one image, forwards + backwards, prediction included.
    """

    def run() -> int:
        filters = {
            "changes": changes,
            "mode": mode,
            "spatial_dims": spatial_dims,
            "backwards": backwards,
            "prepared": prepared,
        }
        known = load()
        _refuse_method_as_bundle(known, bundle)
        chosen = [find(known, name)] if name is not None else select(known, **filters)
        if name is not None:
            _refuse_idle(name, [key for key, value in filters.items() if value is not None], form)
        if bundle is None:
            say(methods_table(chosen, form) if name is None else describe(chosen[0]))
            if not chosen:
                say("No method is left. grata methods without filters lists all.", sys.stderr)
            return 0
        if form != "simple":
            raise GrataError("what a bundle can take is shown as simple alone. Leave out bundle, or form.", key="form")
        check_bundle(bundle)
        from ..doctor.fit import fitting_methods

        say(fitting_methods(bundle, [method.name for method in chosen]))
        return 0

    return run


def _refuse_method_as_bundle(known: Container[str], bundle: str | None) -> None:
    if bundle in known and not Path(str(bundle)).is_dir():
        raise GrataError(f"{bundle} is a method, not the folder of a bundle. Name one method at a time.", "bundle")


def _refuse_idle(name: str, filters: list[str], form: str) -> None:
    if filters:
        raise GrataError(f"chooses among all methods. Leave out {name}, or {filters[0]}.", key=filters[0])
    if form != "simple":
        raise GrataError(f"is the form of the list of methods. Leave out {name}, or form.", key="form")
