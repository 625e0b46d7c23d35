"""Count what makes sources hard to read, and hold what is left of it to a list that only gets shorter.

    python scripts/house.py                       # a table of counts for src/grata
    python scripts/house.py ../other/src/grata    # the same of other folders, side by side
    python scripts/house.py --check               # compare with scripts/complexity.txt: what the gate does
    python scripts/house.py --shrink              # drop from that list what has become simpler

Complexity is counted as radon counts it: 1 and one more for each branch, loop, handler, comprehension, its conditions
and each `and` or `or`. Ruff's C901, which the gate holds to 10 without exceptions, leaves the last three out.
"""

import argparse
import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).parents[1]
LISTED = Path(__file__).with_name("complexity.txt")
FILE_LINES, FUNCTION_LINES, COMPLEXITY, PARAMETERS = 300, 60, 10, 8


@dataclass(frozen=True)
class Function:
    """What is counted of one function: its name is that of its file, its classes and itself."""

    name: str
    lines: int
    complexity: int
    parameters: int


def weight(node: ast.AST) -> int:
    """Return what one node adds to the complexity of its function."""
    match node:
        case ast.If() | ast.IfExp() | ast.Assert():
            return 1
        case ast.For() | ast.AsyncFor() | ast.While():
            return 1 + bool(node.orelse)
        case ast.Try() | ast.TryStar():
            return len(node.handlers) + bool(node.orelse)
        case ast.BoolOp():
            return len(node.values) - 1
        case ast.comprehension():
            return 1 + len(node.ifs)
        case ast.Match():
            return len(node.cases) - any(
                isinstance(c.pattern, ast.MatchAs) and not c.pattern.pattern for c in node.cases
            )
    return 0


def own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes in a function's body, without those of functions and classes in it."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield child
            yield from own_nodes(child)


def functions(node: ast.AST, prefix: str) -> Iterator[Function]:
    """Yield each function and method below a node, those inside functions as well."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            name, given = f"{prefix}{child.name}", child.args
            named = [a for a in (*given.posonlyargs, *given.args, *given.kwonlyargs) if a.arg not in ("self", "cls")]
            count = len(named) + (given.vararg is not None) + (given.kwarg is not None)
            lines = (child.end_lineno or child.lineno) - child.lineno + 1
            yield Function(name, lines, 1 + sum(map(weight, own_nodes(child))), count)
            yield from functions(child, f"{name}.")
        else:
            yield from functions(child, f"{prefix}{child.name}." if isinstance(child, ast.ClassDef) else prefix)


def read(folder: Path) -> tuple[dict[str, int], list[Function]]:
    """Return the lines of each file of a folder, and its functions."""
    lines, found = {}, []
    for path in sorted(folder.rglob("*.py")):
        name, text = path.relative_to(folder).as_posix(), path.read_text(encoding="utf-8")
        lines[name] = len(text.splitlines())
        found += functions(ast.parse(text), f"{name}:")
    return lines, found


def counts(folder: Path) -> dict[str, int]:
    """Return the rows of the table for one folder."""
    lines, found = read(folder)
    return {
        "files": len(lines),
        "lines": sum(lines.values()),
        f"files over {FILE_LINES} lines": sum(n > FILE_LINES for n in lines.values()),
        "functions": len(found),
        f"functions over {FUNCTION_LINES} lines": sum(f.lines > FUNCTION_LINES for f in found),
        f"functions above complexity {COMPLEXITY}": sum(f.complexity > COMPLEXITY for f in found),
        f"signatures with {PARAMETERS} and more parameters": sum(f.parameters >= PARAMETERS for f in found),
    }


def listed() -> dict[str, int]:
    """Return the functions that may be above the limit, with how far."""
    rows = (line.split(maxsplit=1) for line in LISTED.read_text(encoding="utf-8").splitlines())
    return {name: int(complexity) for complexity, name in rows}


def compare(found: dict[str, int], allowed: dict[str, int]) -> list[str]:
    """Return what is wrong with the functions above the limit, or with the list of them."""
    worse = [
        f"{name}: complexity {n} is above {allowed.get(name, COMPLEXITY)}. Split it."
        for name, n in found.items()
        if n > allowed.get(name, COMPLEXITY)
    ]
    simpler = [
        f"{name}: complexity is no longer {n}. Run python scripts/house.py --shrink."
        for name, n in allowed.items()
        if found.get(name, 0) < n
    ]
    return worse + simpler


def main() -> int:
    """Print the counts of folders, or check or shorten the list of complex functions; return the exit status."""
    parser = argparse.ArgumentParser(description="Count what makes sources hard to read.")
    parser.add_argument("folders", nargs="*", type=Path, default=[ROOT / "src" / "grata"])
    parser.add_argument("--check", action="store_true", help="compare complex functions with scripts/complexity.txt")
    parser.add_argument("--shrink", action="store_true", help="drop from that list what has become simpler")
    options = parser.parse_args()
    if not (options.check or options.shrink):
        columns = [counts(folder) for folder in options.folders]
        rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
        print(tabulate(rows, headers=["", *map(str, options.folders)], tablefmt="github"))
        return 0
    found = {f.name: f.complexity for f in read(ROOT / "src" / "grata")[1] if f.complexity > COMPLEXITY}
    allowed = listed()
    if options.shrink:
        allowed = {name: min(n, found[name]) for name, n in allowed.items() if name in found}
        LISTED.write_text("".join(f"{n} {name}\n" for name, n in sorted(allowed.items())), encoding="utf-8")
    wrong = compare(found, allowed)
    print("\n".join(wrong) if wrong else f"{len(found)} functions above complexity {COMPLEXITY}, all of them listed.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
