"""The command ``grata bank``."""

from __future__ import annotations

import json
import os

from tabulate import tabulate

from ..console import say
from ..errors import GrataError
from ..files import absence, check_output_dir, expanded
from .bank import AdapterBank
from .header import saved_path

__all__ = ["run_bank"]

_ACTIONS = ("list", "inspect", "export", "reset")


def run_bank(
    action: str,
    folder: str | os.PathLike[str],
    name: str | None = None,
    checkpoint: str | None = None,
    output: str | None = None,
    all: bool = False,
) -> int:
    """Run an action on a bank and print its result.

    Args:
        action: ``list``, ``inspect``, ``export`` or ``reset``.
        folder: folder of the bank.
        name: name of an entry; except for ``reset``, the first letters are enough if no other entry has them.
        checkpoint: file of the source weights, for ``export`` of a merged checkpoint.
        output: file that ``export`` writes.
        all: whether ``reset`` removes all entries.

    Returns:
        Exit status: 1 if ``list`` finds damaged entries, else 0.

    Raises:
        GrataError: the action is unknown, lacks an argument, or fails.
    """
    if action not in _ACTIONS:
        raise GrataError(f"there is no {action!r}. The actions are {', '.join(_ACTIONS)}.", key="bank")
    bank = AdapterBank(str(folder))
    if not bank.path.is_dir():
        raise GrataError(f"{bank.path} {absence(bank.path)}. Name the folder of a bank.", key="bank")
    if not isinstance(all, bool):
        raise GrataError(f"must be true or false, got {all!r}.", key="all")
    if action == "list":
        return _list(bank)
    entries = _chosen(bank, action, name, all)
    if action == "inspect":
        say(json.dumps({"entry_name": entries[0], **bank.header(entries[0]).card}, indent=2))
    elif action == "export":
        _export(bank, entries[0], checkpoint, output)
    else:
        for entry in entries:
            bank.reset(entry)
            say(f"{entry}: removed. Its next case starts from the source network.")
        if not entries:
            say(f"{bank.path} has no entry.")
    return 0


def _chosen(bank: AdapterBank, action: str, name: str | None, all: bool) -> list[str]:
    if action == "reset" and all:
        if name is not None:
            raise GrataError("name one entry, or give --all true, not both.", key="reset")
        return bank.entries()
    if name is None:
        raise GrataError(f"name an entry{', or give --all true' if action == 'reset' else ''}.", key=action)
    # A removed entry cannot be restored, so it has to be named in full.
    return [str(name) if action == "reset" else _entry(bank, str(name))]


def _list(bank: AdapterBank) -> int:
    rows, damaged = [], []
    for entry in bank.entries():
        try:
            rows.append(_row(bank, entry))
        # one odd file must not hide the others, and it may hold anything
        except Exception as error:  # noqa: BLE001
            wrong = error if isinstance(error, GrataError) else f"{type(error).__name__}: {error}. Remove the file."
            damaged.append(f"{entry}: {wrong}")
            rows.append([entry, "damaged"])
    if not rows:
        say(f"{bank.path} has no entry.")
        return 0
    say(
        tabulate(
            rows, headers=["entry", "site or scanner", "method", "cases", "parameter change"], disable_numparse=True
        )
    )
    for line in damaged:
        say(f"\n{line}")
    return 1 if damaged else 0


def _row(bank: AdapterBank, entry: str) -> list[str]:
    found = bank.header(entry)
    scanner = ", ".join(f"{key} {value}" for key, value in found.entry.items()) or "unknown"
    change = f"{found.parameter_change['l2']:.4g} ({100 * found.parameter_change['relative']:.2g} %)"
    return [entry, scanner, found.method, str(found.cases), change]


def _entry(bank: AdapterBank, name: str) -> str:
    entries = bank.entries()
    found = [name] if name in entries else [entry for entry in entries if entry.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise GrataError(f"{name!r} may mean {', '.join(found)}. Give more of the name.", key="bank")
    raise GrataError(
        f"there is no entry {name!r} in {bank.path}; there are {', '.join(entries) or 'none'}.", key="bank"
    )


def _export(bank: AdapterBank, entry: str, checkpoint: str | None, output: str | None) -> None:
    if output is None:
        raise GrataError("name the new file by --output <file>.", key="export")
    adaptation = bank.read(entry)
    check_output_dir(expanded(str(output)).parent)
    if checkpoint is not None:
        from .export import export_checkpoint

        say("\n".join(export_checkpoint(adaptation, str(checkpoint), str(output))))
        return
    path = saved_path(str(output))
    if path.exists():
        raise GrataError(f"{path} exists already and is not overwritten. Name another file.", key="output")
    adaptation.save(path)
    say(f"{path}: adaptation by {adaptation.method}. Give it as start_from to go on from it.")
