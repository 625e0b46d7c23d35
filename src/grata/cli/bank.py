"""``grata bank``: what was learned for each site or scanner."""

from __future__ import annotations

from typing import Annotated, Any

from .options import PATH, SWITCH, Work, argument, option

__all__ = ["bank"]


def bank(
    action: Annotated[str, argument("list, inspect, export or reset.")],
    folder: Annotated[str, argument("Folder of the bank.", PATH)],
    name: Annotated[
        str | None,
        argument("Name of an entry as list shows it, or its beginning; reset needs the whole name."),
    ] = None,
    checkpoint: Annotated[
        str | None,
        option(
            "checkpoint",
            PATH,
            "For export: file with the source weights (.pt, .pth or .ts); a copy of it with the adapted values is "
            "written. Without it, a copy of the saved adaptation is written.",
        ),
    ] = None,
    output: Annotated[str | None, option("output", PATH, "For export: file to write.")] = None,
    all: Annotated[Any, option("all", SWITCH, "For reset: remove all entries.", default="false")] = None,
) -> Work:
    """Look after a bank, which keeps one adaptation for each site or scanner.

    list shows the entries, inspect one entry's card, export writes one to a file, reset removes one, so that its site
    starts from the source network again.
    """

    def run() -> int:
        from ..bank.command import run_bank

        return run_bank(action, folder, name, checkpoint, output, bool(all))

    return run
