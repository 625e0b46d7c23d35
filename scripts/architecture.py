"""Draw the rooms of the package from its imports, and write the table of docs/architecture.md.

    python scripts/architecture.py           # writes docs/architecture.md and docs/figures/architecture.svg
    python scripts/architecture.py --check   # exits with 1 when the table is not what the sources say, or on a circle

A room is a folder of src/grata, or a module beside them. An import counts wherever it stands: at the top of a module,
inside a function, or for type checkers alone. The sentence of a room is the first of its docstring.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "grata"
SOURCES = ROOT / "src" / PACKAGE
PAGE = ROOT / "docs" / "architecture.md"
FIGURE = ROOT / "docs" / "figures" / "architecture.svg"
BEGIN, END = "<!-- rooms -->", "<!-- end of rooms -->"
Graph = dict[str, set[str]]


def modules() -> dict[str, Path]:
    """Return the file of each module by its full name."""
    found = {}
    for path in sorted(SOURCES.rglob("*.py")):
        parts = (PACKAGE, *path.relative_to(SOURCES).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """Yield each module of the package that a module imports, once or several times."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield from (target for target in (whole if whole in known else base,) if target in known)


def module_graph() -> Graph:
    """Return the modules that each module imports."""
    known = modules()
    return {name: {target for target in imports(name, path, known) if target != name} for name, path in known.items()}


def room(module: str) -> str:
    """Return the room of a module; the package itself is its own."""
    return module.split(".")[1] if "." in module else PACKAGE


def room_graph() -> Graph:
    """Return the rooms that each room imports."""
    graph: Graph = {}
    for module, targets in module_graph().items():
        graph.setdefault(room(module), set()).update({room(target) for target in targets} - {room(module)})
    return graph


def circles(graph: Graph) -> list[list[str]]:
    """Return groups of nodes that can all reach each other, two or more; none: the graph has no circle."""
    reached = {node: _reached(graph, node) for node in graph}
    groups = {tuple(sorted(other for other in reached[node] if node in reached[other])) for node in graph}
    return [list(group) for group in sorted(groups) if group]


def _reached(graph: Graph, start: str) -> set[str]:
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += graph[node]
    return found


def former_places() -> set[str]:
    """Return the modules that only lead to the new place of what they had."""
    return {
        room(name)
        for name, path in modules().items()
        if path.parent == SOURCES and "= moved(__name__)" in path.read_text(encoding="utf-8")
    }


def shown() -> Graph:
    """Return the graph of the rooms that are drawn: folders, and the modules that they share."""
    graph = room_graph()
    apart = former_places() | {PACKAGE} | {name for name in graph if name.startswith("_")}
    return {name: targets - apart for name, targets in graph.items() if name not in apart}


def layers(graph: Graph) -> dict[str, int]:
    """Return the height of each room: 0 for one that imports none, else one more than the highest that it imports."""
    heights: dict[str, int] = {}

    def height(node: str) -> int:
        if node not in heights:
            heights[node] = 1 + max((height(target) for target in graph[node]), default=-1)
        return heights[node]

    for node in graph:
        height(node)
    return heights


def reduced(graph: Graph) -> Graph:
    """Return the graph without edges that a longer way says as well."""
    return {
        node: {target for target in targets if not any(target in _reached(graph, o) for o in targets - {target})}
        for node, targets in graph.items()
    }


def sentence(name: str) -> str:
    """Return the first sentence of a room's docstring."""
    path = SOURCES / name / "__init__.py"
    text = ast.get_docstring(ast.parse((path if path.is_file() else SOURCES / f"{name}.py").read_text("utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("``", "`")


def table() -> str:
    """Return the rooms from the top down, each with its sentence and what it imports."""
    graph = shown()
    heights = layers(graph)
    rows = ["| room | what it is for | imports |", "|---|---|---|"]
    for name in sorted(graph, key=lambda name: (-heights[name], name)):
        is_folder = (SOURCES / name).is_dir()
        targets = ", ".join(sorted(graph[name])) or "nothing"
        rows.append(f"| `{name}{'/' if is_folder else '.py'}` | {sentence(name)} | {targets} |")
    return "\n".join(rows)


def page() -> str:
    """Return the text of the page with the present table."""
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{table()}\n{END}{tail}"


def folders() -> Graph:
    """Return the graph of the folders: the modules beside them are used everywhere."""
    graph = {name: targets for name, targets in shown().items() if (SOURCES / name).is_dir()}
    return {name: targets & graph.keys() for name, targets in graph.items()}


def edges() -> str:
    """Return the drawn edges as text, by which a picture is told to be of these sources."""
    return "; ".join(f"{name}: {', '.join(sorted(targets))}" for name, targets in sorted(reduced(folders()).items()))


def draw() -> None:
    """Draw the folders in layers, each above what it imports; edges that follow from others are left out."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    graph = folders()
    heights, drawn = layers(graph), reduced(graph)
    rows: dict[int, list[str]] = {}
    for name in sorted(graph):
        rows.setdefault(heights[name], []).append(name)
    place = {}
    for height, names in sorted(rows.items()):
        if height:
            # above the middle of what it stands on
            names.sort(key=lambda name: sum(place[t][0] for t in drawn[name]) / max(1, len(drawn[name])))
        for index, name in enumerate(names):
            place[name] = ((index + 1) / (len(names) + 1), height)
    with mpl.rc_context({"svg.hashsalt": PACKAGE, "svg.fonttype": "none", "font.size": 10}):
        figure, axes = plt.subplots(figsize=(9, 1.0 + 0.78 * len(rows)), layout="constrained")
        for name, targets in drawn.items():
            for target in sorted(targets):
                (x0, y0), (x1, y1) = place[name], place[target]
                axes.annotate(
                    "",
                    (x1, y1 + 0.17),
                    (x0, y0 - 0.17),
                    arrowprops={"arrowstyle": "-|>", "color": "#b0b0b0", "lw": 0.9, "shrinkA": 0, "shrinkB": 0},
                )
        for name, (x, y) in place.items():
            box = {"boxstyle": "round,pad=0.35", "fc": "white", "ec": "#1f4e79", "lw": 1.4}
            axes.text(x, y, name, ha="center", va="center", color="#1f4e79", bbox=box)
        axes.set(xlim=(0, 1), ylim=(-0.5, max(heights.values()) + 0.5))
        axes.axis("off")
        FIGURE.parent.mkdir(exist_ok=True)
        figure.savefig(FIGURE, metadata={"Date": None, "Description": edges()})
        plt.close(figure)


def main() -> int:
    """Run the command line."""
    found = circles(module_graph()) + circles(room_graph())
    for circle in found:
        print(f"circle: {', '.join(circle)}")
    if "--check" not in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
        draw()
        return 1 if found else 0
    stale = page() != PAGE.read_text(encoding="utf-8") or edges() not in FIGURE.read_text(encoding="utf-8")
    if stale:
        print("docs/architecture.md is not what the sources say. Run python scripts/architecture.py.")
    return 1 if found or stale else 0


if __name__ == "__main__":
    sys.exit(main())
