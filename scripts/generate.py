"""Write what follows from declared settings: the catalogue of the methods, their overlays, and two tables of the docs.

    python scripts/generate.py            # after a change to a method, or a new one
    python scripts/generate.py --check    # exit status 1 where a file is not what would be written

``src/grata/methods/catalogue.json`` lets ``grata methods`` start without torch. ``configs/methods/<name>.yaml`` selects
a method with its defaults. The tables stand in ``docs/methods.md`` and, of the guard's settings, in
``docs/can-i-trust-it.md``, each between two markers, which the page keeps.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path

import yaml

from grata.cli.listing import methods_table
from grata.doctor import catalogue
from grata.doctor.catalogue import MethodEntry, SettingEntry, written
from grata.session import QualityGuard

ROOT = Path(__file__).parents[1]
OVERLAYS = ROOT / "configs" / "methods"
PAGE, GUARD = ROOT / "docs" / "methods.md", ROOT / "docs" / "can-i-trust-it.md"
BEGIN, END = "<!-- generated: {} -->", "<!-- end -->"
# A bundle says these for all methods, so that an overlay leaves them to it.
_COMMON = {"activation", "seed", "reset", "prepared", "output"}
# What predicts is a choice that every overlay shows.
_SHOWN = {"predict", "predict_views"}
_WIDTH = 120


def main() -> int:
    """Write the files, or compare them; the exit status is 1 where one differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, and compare")
    check = parser.parse_args().check
    stale = [path for path, text in generated().items() if _present(path) != text]
    for path in stale:
        print(f"{path.relative_to(ROOT)} {'is not what the methods declare' if check else 'written'}")
        if not check:
            path.write_text(generated()[path], encoding="utf-8")
    if check and stale:
        print("Run python scripts/generate.py.")
    return 1 if check and stale else 0


def generated() -> dict[Path, str]:
    """Return the text of each file that is generated."""
    methods = catalogue.build(own=True)
    table = methods_table(methods.values(), "readme").replace("](configs/", "](../configs/")
    pages = {PAGE: _page(PAGE, "methods", table), GUARD: _page(GUARD, "guard", guard_table())}
    files = {catalogue.PATH: catalogue.to_json(methods), **pages}
    return files | {OVERLAYS / f"{name}.yaml": overlay(method) for name, method in methods.items()}


def overlay(method: MethodEntry) -> str:
    """Return the overlay that selects a method in any bundle, with its defaults.

    It shows what the method itself declares, what predicts, and of its bases' settings those that the overlay shows
    already.
    """
    path = OVERLAYS / f"{method.name}.yaml"
    shown = _SHOWN | ((yaml.safe_load(_present(path) or "{}") or {}).get("settings") or {}).keys()
    keys = [key for key in method.settings if key in shown or (key in method.own and key not in _COMMON)]
    reference = f"{method.title}{f' ({method.year})' if method.year else ''}: {method.rule}."
    prepared = f" It needs {', '.join(method.prepared)}: see grata prepare." if method.prepared else ""
    config = f"\"['<bundle>/configs/adapt.yaml','configs/methods/{method.name}.yaml']\""
    lines = textwrap.wrap(reference[0].upper() + reference[1:] + prepared, _WIDTH - 2)
    lines += [f"After a bundle's adapt.yaml: --config_file {config}"]
    text = "".join(f"# {line}\n" for line in lines) + f"method: {method.name}\n"
    if not keys:
        return text + "settings: {}\n"
    return text + "settings:\n" + "".join(_setting(key, method.settings[key]) for key in keys)


def _setting(key: str, setting: SettingEntry) -> str:
    # An option below a mapping can be overridden by --settings#<setting>#<option>, one below null cannot: an empty
    # mapping stands for null, unless null means more than that.
    empty = setting.default is None and setting.range.startswith("mapping or null") and "null:" not in setting.help
    value = "{}" if empty else _yaml(setting.default)
    comment = textwrap.wrap(f"{setting.help} ({setting.range})" if setting.range else setting.help, _WIDTH - 4)
    return "".join(f"  # {line}\n" for line in comment) + f"  {key}: {value}\n"


def _yaml(value: object) -> str:
    text = written(value)
    return text if yaml.safe_load(text) == value else yaml.safe_dump(value, default_flow_style=True).strip()


def guard_table() -> str:
    """Return the table of the guard's settings."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for key, setting in QualityGuard.settings().items():
        default = "none" if setting.default == () else written(setting.default)
        lines.append(f"| `{key}` | {default} | {setting.help}{f' ({setting.range})' if setting.range else ''} |")
    return "\n".join(lines)


def _page(page: Path, name: str, table: str) -> str:
    marker = BEGIN.format(name)
    head, begin, rest = (_present(page) or "").partition(marker)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{page}: the markers are missing. Put {marker} and {END} where the table belongs.")
    return f"{head}{marker}\n{table}\n{END}{tail}"


def _present(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main())
