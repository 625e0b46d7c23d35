"""The words of docstrings and messages, where a rule can be checked: see CONTRIBUTING.md."""

import ast
import re
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "src" / "grata"
FILES = sorted(SOURCES.rglob("*.py"))
SECTION = re.compile(r"^( *)(Args|Attributes):\n((?:(?:\1 +.*)?\n)*)", re.MULTILINE)
NOT_VERBS = ("A", "An", "The", "All", "Each", "Every", "Of", "Whether", "What", "Which", "How", "Where", "That")
ENTRY = re.compile(r"^(\w[^:\n]*): +(.*)$", re.MULTILINE)


def name(path):
    return path.relative_to(SOURCES).as_posix()


def entries(docstring):
    """The name and the first line of each entry of the sections Args and Attributes."""
    for section in SECTION.finditer(docstring + "\n"):
        lines = section[3].splitlines()
        indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
        for line in lines:
            if match := ENTRY.match(line[indent:]):
                yield match[1], match[2]


def docstrings(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def functions(path):
    """All functions of a file but properties, which are described as attributes."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if not any("property" in ast.unparse(decorator) for decorator in node.decorator_list):
            yield node


def test_entries_are_found():
    text = "Return it.\n\nArgs:\n    a: of a thing,\n        of two lines\n    b: rest: all\n\nReturns:\n    c: of it"
    assert list(entries(text)) == [("a", "of a thing,"), ("b", "rest: all")]
    assert list(entries("Attributes:\n    seed, lr: seed of it\n")) == [("seed, lr", "seed of it")]


@pytest.mark.parametrize("path", FILES, ids=name)
def test_entries_of_arguments_and_attributes_name_their_thing(path):
    """An entry is a noun, "seed: seed of the random generator", and begins with neither "of" nor "as"."""
    found = [entry for text in docstrings(ast.parse(path.read_text())) for entry in entries(text)]
    assert [entry for entry in found if entry[1].lower().startswith(("of ", "as "))] == []


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_functions_docstring_says_what_the_function_does(path):
    """It begins with a verb, "Return the ...": neither with a noun and its article nor with code."""
    found = [text.split()[0] for text in map(ast.get_docstring, functions(path)) if text]
    assert [word for word in found if not re.fullmatch(r"[A-Z][a-z]+,?", word) or word in NOT_VERBS] == []


@pytest.mark.parametrize("path", FILES, ids=name)
def test_messages_say_what_must_be(path):
    """A message says "must be true or false", not "it is true or false"."""
    texts = [n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)]
    assert [text for text in texts if isinstance(text, str) and "it is true or false" in text] == []
