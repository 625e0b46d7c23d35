"""The methods as tables: for ``grata methods``, the docs and the README."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tabulate import tabulate

from ..checks import check_choice, check_flag, did_you_mean
from ..doctor.catalogue import MethodEntry, written
from ..errors import GrataError

__all__ = ["FORMS", "describe", "find", "methods_table", "select"]

FORMS = ("simple", "markdown", "readme", "json")
_MODES = ("online", "episodic")

_COLUMNS: dict[str, Callable[[MethodEntry], str]] = {
    "method": lambda method: method.name,
    "paper": lambda method: f"{method.title} {method.year or ''}".strip(),
    "rule": lambda method: method.rule,
    "changes": lambda method: method.changes,
    "needs": lambda method: ", ".join(method.needs) or "-",
    "mode": lambda method: "episodic" if method.episodic else "online",
    "images": lambda method: ", ".join(f"{dims}D" for dims in method.spatial_dims),
    "passes": lambda method: f"{method.forwards} + {method.backwards}",
}


def select(
    methods: Mapping[str, MethodEntry],
    changes: str | None = None,
    mode: str | None = None,
    spatial_dims: int | None = None,
    backwards: bool | None = None,
    prepared: bool | None = None,
) -> list[MethodEntry]:
    """Return the methods that fit, in the order of ``methods``.

    Args:
        methods: the methods by name, see :func:`grata.doctor.catalogue.load`.
        changes: text in what the method changes, such as ``statistics``.
        mode: ``online`` or ``episodic``, as the method's paper has it.
        spatial_dims: number of spatial dimensions of the images, 2 or 3.
        backwards: whether it computes gradients.
        prepared: whether it needs something that is prepared from the source set.

    Raises:
        GrataError: a filter has a value that it cannot have.
    """
    if spatial_dims not in (None, 2, 3):
        raise GrataError(f"must be 2 or 3, got {spatial_dims!r}.", key="spatial_dims")
    _check("mode", mode, lambda value: check_choice(value, _MODES))
    _check("backwards", backwards, check_flag)
    _check("prepared", prepared, check_flag)
    filters: dict[str, tuple[Any, Callable[[MethodEntry], bool]]] = {
        "changes": (changes, lambda method: str(changes).lower() in method.changes.lower()),
        "mode": (mode, lambda method: method.episodic == (mode == "episodic")),
        "spatial_dims": (spatial_dims, lambda method: spatial_dims in method.spatial_dims),
        "backwards": (backwards, lambda method: bool(method.backwards) == backwards),
        "prepared": (prepared, lambda method: bool(method.prepared) == prepared),
    }
    asked = [fits for value, fits in filters.values() if value is not None]
    return [method for method in methods.values() if all(fits(method) for fits in asked)]


def find(methods: Mapping[str, MethodEntry], name: str) -> MethodEntry:
    """Return the method called ``name``.

    Raises:
        GrataError: there is none of that name.
    """
    if name not in methods:
        hint = did_you_mean(name, methods)
        raise GrataError(f"there is no {name!r}; the methods are {', '.join(methods)}.{hint and ' ' + hint}", "method")
    return methods[name]


def methods_table(methods: Iterable[MethodEntry], form: str = "simple") -> str:
    """Return a table of methods.

    Args:
        methods: the methods, one row each.
        form: ``simple`` for a terminal, ``markdown``, ``readme`` (markdown with links to the overlays), or ``json``.

    Raises:
        GrataError: the form is not known.
    """
    _check("form", form, lambda value: check_choice(value, FORMS))
    if form == "json":
        return json.dumps([_record(method) for method in methods], indent=2)
    columns = dict(_COLUMNS)
    if form == "readme":
        columns["method"] = lambda method: f"[`{method.name}`](configs/methods/{method.name}.yaml)"
    rows = [[cell(method) for cell in columns.values()] for method in methods]
    if form != "simple":
        return tabulate(rows, list(columns), "github", disable_numparse=True)
    widths = [None, None, 44, 24, 18, None, None, None]
    return tabulate(rows, list(columns), "simple", disable_numparse=True, maxcolwidths=widths)


def describe(method: MethodEntry) -> str:
    """Return the description of a method: its card, its documentation, and its settings with their meaning."""
    facts = [[key, cell(method)] for key, cell in _COLUMNS.items()] + [["reference", method.reference]]
    parts = [tabulate(facts, tablefmt="plain", maxcolwidths=[None, 90]), method.documentation]
    if method.settings:
        rows = [[key, written(item.default), item.range, item.help] for key, item in method.settings.items()]
        parts.append(
            tabulate(
                rows,
                ["setting", "default", "range", "meaning"],
                "simple",
                disable_numparse=True,
                maxcolwidths=[None, 24, 30, 60],
            )
        )
    return "\n\n".join(parts)


def _record(method: MethodEntry) -> dict[str, Any]:
    fields = dataclasses.asdict(method)
    del fields["settings"], fields["own"], fields["documentation"]
    return fields


def _check(key: str, value: Any, check: Callable[[Any], object]) -> None:
    try:
        if value is not None:
            check(value)
    except GrataError as error:
        raise error.under(key) from error
