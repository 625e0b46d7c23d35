"""What ``grata bank`` does."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tabulate import tabulate

from ..errors import GrataError
from ..files import check_output_dir
from ..settings import did_you_mean
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
    """Look after a bank, and print what was done.

    Args:
        action: ``list``, ``inspect``, ``export`` or ``reset``.
        folder: folder of the bank.
        name: name of an entry; unless the action is ``reset``, its beginning is enough where no other entry has it.
        checkpoint: file with the source weights, for ``export`` of a merged checkpoint.
        output: file that ``export`` writes.
        all: whether ``reset`` removes all entries.

    Returns:
        Exit status: 1 where entries are damaged, else 0.

    Raises:
        GrataError: the action is not known, lacks something, or fails.
    """
    if action not in _ACTIONS:
        hint = did_you_mean(action, _ACTIONS, f"Say {', '.join(_ACTIONS)}.")
        raise GrataError(f"there is no action {action!r}. {hint}", key="bank")
    bank = AdapterBank(str(folder))
    if not bank.path.is_dir():
        raise GrataError(f"{bank.path} does not exist. Name the folder of a bank.", key="bank")
    if action == "list":
        return _list(bank)
    if action == "reset":
        _reset(bank, name, all)
        return 0
    if name is None:
        raise GrataError("name an entry.", key=action)
    entry = _entry(bank, str(name))
    if action == "inspect":
        print(json.dumps({"entry_name": entry, **bank.header(entry).card}, indent=2))
    else:
        _export(bank, entry, checkpoint, output)
    return 0


def _reset(bank: AdapterBank, name: str | None, all: bool) -> None:
    if all and name is not None:
        raise GrataError("name one entry, or give --all true, not both.", key="reset")
    if not all and name is None:
        raise GrataError("name an entry, or give --all true.", key="reset")
    # A removed entry is gone: its name has to be given in full.
    entries = bank.entries() if all else [str(name)]
    for entry in entries:
        bank.reset(entry)
        print(f"{entry}: removed. Its next case starts from the source network.")
    if not entries:
        print(f"{bank.path} has no entry.")


def _list(bank: AdapterBank) -> int:
    rows, damaged = [], []
    for entry in bank.entries():
        try:
            found = bank.header(entry)
        except GrataError as error:
            damaged.append(f"{entry}: {error}")
            rows.append([entry, "damaged"])
            continue
        scanner = ", ".join(f"{key} {value}" for key, value in found.entry.items()) or "not known"
        change = f"{found.parameter_change['l2']:.4g} ({100 * found.parameter_change['relative']:.2g} %)"
        rows.append([entry, scanner, found.method, str(found.cases), change])
    if not rows:
        print(f"{bank.path} has no entry.")
        return 0
    print(
        tabulate(
            rows, headers=["entry", "site or scanner", "method", "cases", "parameter change"], disable_numparse=True
        )
    )
    for line in damaged:
        print(f"\n{line}")
    return 1 if damaged else 0


def _entry(bank: AdapterBank, name: str) -> str:
    entries = bank.entries()
    found = [name] if name in entries else [entry for entry in entries if entry.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise GrataError(f"{name!r} can be {', '.join(found)}. Give more of the name.", key="bank")
    raise GrataError(
        f"there is no entry {name!r} in {bank.path}; there are {', '.join(entries) or 'none'}.", key="bank"
    )


def _export(bank: AdapterBank, entry: str, checkpoint: str | None, output: str | None) -> None:
    if output is None:
        raise GrataError("name the new file by --output <file>.", key="export")
    adaptation = bank.read(entry)
    check_output_dir(Path(str(output)).parent)
    if checkpoint is not None:
        from .export import export_checkpoint

        print("\n".join(export_checkpoint(adaptation, str(checkpoint), str(output))))
        return
    path = saved_path(str(output))
    if path.exists():
        raise GrataError(f"{path} exists already and is not overwritten. Name another file.", key="output")
    adaptation.save(path)
    print(f"{path}: what {adaptation.method} has learned, for start_from.")
