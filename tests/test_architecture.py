"""The package has no circle of imports, and docs/architecture.md says how its rooms stand on each other."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("architecture", ROOT / "scripts" / "architecture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_circle_of_imports(script):
    assert script.circles(script.module_graph()) == []
    assert script.circles(script.room_graph()) == []


def test_a_circle_would_be_found(script, tmp_path, monkeypatch):
    for name, text in {
        "one": "from .two import x",
        "two": "def f():\n    from . import three",
        "three": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .one import y",
        "four": "from .one import x",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "__init__.py").write_text("")
    monkeypatch.setattr(script, "SOURCES", tmp_path)
    assert script.circles(script.module_graph()) == [["grata.one", "grata.three", "grata.two"]]
    assert script.circles(script.room_graph()) == [["one", "three", "two"]]


def test_the_graph_is_that_of_real_imports(script):
    graph = script.module_graph()
    assert "grata.session.learner" in graph["grata.session.keeper"]
    assert "grata.methods" in graph["grata.session.learner"]
    # inside a function, and for type checkers alone
    assert "grata.nnunet" in graph["grata.doctor.doctor"]
    assert "grata.session.session" in graph["grata.session"]
    assert graph["grata.errors"] == set()


def test_methods_know_no_session_and_a_session_no_engine(script):
    below = {"methods": {"session", "bank", "engines", "data", "report"}, "session": {"engines", "bundles", "report"}}
    graph = script.room_graph()
    for room, strangers in below.items():
        assert not graph[room] & strangers


def test_the_page_and_its_picture_are_of_these_sources(script):
    assert script.page() == script.PAGE.read_text(encoding="utf-8"), "run python scripts/architecture.py"
    assert script.edges() in script.FIGURE.read_text(encoding="utf-8"), "run python scripts/architecture.py"


def test_every_folder_has_its_sentence(script):
    folders = {path.parent.name for path in script.SOURCES.glob("*/__init__.py")}
    page = script.PAGE.read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert {f"{folder}/" for folder in folders} <= set(rows)
    for folder in folders:
        assert len(rows[f"{folder}/"].split("|")[2].split()) > 3
