"""The page of faults names tests that exist, and counts its own cells."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "results" / "faults.md").read_text(encoding="utf-8")
CELLS = [line.strip("| \n").split(" | ")[1:] for line in PAGE.splitlines() if re.match(r"\| \d+\.", line)]
KINDS = ("held by ", "does not apply: ", "not held: ")


def test_every_test_that_is_named_exists():
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) > 100
    functions = {}
    for file in {file for file, _ in named}:
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        functions[file] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert [f"{file}::{name}" for file, name in named if name not in functions[file]] == []


def test_each_kind_says_what_it_is_at_each_door():
    assert all(len(row) == 5 and all(cell.startswith(KINDS) for cell in row) for row in CELLS)
    assert {int(number) for number in re.findall(r"^\| (\d+)\.", PAGE, re.MULTILINE)} == set(range(1, 25))
    cells = [cell for row in CELLS for cell in row]
    held, idle, lacking = (sum(cell.startswith(kind) for cell in cells) for kind in KINDS)
    assert f"Of {len(CELLS)} kinds at five doors, {held} cells are held, {idle} do not apply, {lacking} are not" in PAGE
    assert all("::" in cell for cell in cells if cell.startswith("held by "))
