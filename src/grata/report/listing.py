"""The registry as tables: for the command ``python -m grata methods`` and the README."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tabulate import tabulate

from ..errors import GrataError
from ..methods import METHODS, settings_of

__all__ = ["describe", "methods_table", "select"]


def select(
    changes: str | None = None,
    mode: str | None = None,
    spatial_dims: int | None = None,
    backwards: bool | None = None,
    prepared: bool | None = None,
) -> list[str]:
    """Names of the methods that fit, by the year of their publication.

    Args:
        changes: text in what the method changes, such as ``statistics``.
        mode: ``online`` or ``episodic``, as the method's paper has it.
        spatial_dims: of the images, 2 or 3.
        backwards: whether it computes gradients.
        prepared: whether it needs something that is prepared from the source set.

    Raises:
        GrataError: a filter has a value that it cannot have.
    """
    if mode not in (None, "online", "episodic"):
        raise GrataError(f"must be online or episodic, got {mode!r}.", key="mode")
    if spatial_dims not in (None, 2, 3):
        raise GrataError(f"must be 2 or 3, got {spatial_dims!r}.", key="spatial_dims")
    for key, value in (("backwards", backwards), ("prepared", prepared)):
        if value is not None and not isinstance(value, bool):
            raise GrataError(f"must be true or false, got {value!r}.", key=key)
    chosen = []
    for name, method in METHODS.items():
        card = method.card
        if (
            (changes is None or str(changes).lower() in card.changes.lower())
            and (mode is None or card.episodic == (mode == "episodic"))
            and (spatial_dims is None or spatial_dims in card.spatial_dims)
            and (backwards is None or bool(card.backwards) == backwards)
            and (prepared is None or bool(card.prepared) == prepared)
        ):
            chosen.append(name)
    return chosen


_COLUMNS: dict[str, Callable[[str], str]] = {
    "method": lambda name: name,
    "paper": lambda name: f"{METHODS[name].card.title} {METHODS[name].card.year or ''}".strip(),
    "rule": lambda name: METHODS[name].card.rule,
    "changes": lambda name: METHODS[name].card.changes,
    "needs": lambda name: ", ".join(METHODS[name].card.needs) or "-",
    "mode": lambda name: "episodic" if METHODS[name].card.episodic else "online",
    "images": lambda name: ", ".join(f"{dims}D" for dims in METHODS[name].card.spatial_dims),
    "passes": lambda name: f"{METHODS[name].card.forwards} + {METHODS[name].card.backwards}",
}


def methods_table(names: list[str], form: str = "simple") -> str:
    """A table of methods.

    Args:
        names: which.
        form: ``simple`` for a terminal, ``markdown``, ``readme`` (markdown with links to the overlays), or ``json``.

    Raises:
        GrataError: an unknown form.
    """
    if form == "json":
        return json.dumps([_record(name) for name in names], indent=2)
    if form not in ("simple", "markdown", "readme"):
        raise GrataError(f"must be simple, markdown, readme or json, got {form!r}.", key="form")
    columns = dict(_COLUMNS)
    if form == "readme":
        columns["method"] = lambda name: f"[`{name}`](configs/methods/{name}.yaml)"
    rows = [[cell(name) for cell in columns.values()] for name in names]
    if form != "simple":
        return tabulate(rows, list(columns), "github", disable_numparse=True)
    widths = [None, None, 44, 24, 18, None, None, None]
    return tabulate(rows, list(_COLUMNS), "simple", disable_numparse=True, maxcolwidths=widths)


def describe(name: str) -> str:
    """All that there is to tell of one method: its card, its settings with their defaults, and its docstring.

    Raises:
        GrataError: there is no such method.
    """
    if name not in METHODS:
        raise GrataError(f"there is no {name!r}; the methods are {', '.join(METHODS)}.", key="method")
    facts = [[key, cell(name)] for key, cell in _COLUMNS.items()] + [["reference", METHODS[name].card.reference]]
    settings = [[key, repr(value)] for key, value in settings_of(name).items()]
    documentation = "\n".join(line.removeprefix("    ") for line in (METHODS[name].__doc__ or "").splitlines())
    parts = [tabulate(facts, tablefmt="plain", maxcolwidths=[None, 90]), documentation.strip()]
    if settings:
        parts.append(tabulate(settings, ["setting", "default"], "simple", disable_numparse=True))
    return "\n\n".join(parts)


def _record(name: str) -> dict[str, Any]:
    card = METHODS[name].card
    return {"name": name, **vars(card), "prepared": list(card.prepared)}
