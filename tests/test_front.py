"""The names that a user types are the same to Python, to editors and to type checkers."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import grata
import grata.bank
import grata.session

TYPING = Path(__file__).parent / "typing"


def _for_checkers(module):
    """Names that a module imports for type checkers, by the module that each comes from."""
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    found = {}
    for node in block.body:
        assert all(alias.asname == alias.name for alias in node.names), "name as name, so that it is exported"
        found |= {alias.name: node.module for alias in node.names}
    return found


@pytest.mark.parametrize("module", [grata, grata.bank, grata.session])
def test_checkers_see_what_python_gives(module):
    names = _for_checkers(module)
    public = {name for name in module.__all__ if name not in ("GrataError", "RunError", "__version__")}
    assert names.keys() == public <= set(dir(module))
    for name, place in names.items():
        source = f"{module.__name__}.{place or name}"
        expected = importlib.import_module(source) if place is None else getattr(importlib.import_module(source), name)
        assert getattr(module, name) is expected
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_importing_grata_is_light():
    code = "import grata, sys; dir(grata)"
    code += "; print([n for n in ('torch', 'monai', 'numpy', 'safetensors') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
    """Lines with an error by file, as mypy reports them."""
    api = pytest.importorskip("mypy.api")
    files = [TYPING / "right_calls.py", TYPING / "wrong_calls.py"]
    cache = tmp_path_factory.mktemp("mypy")
    out, error, _ = api.run([f"--config-file={TYPING / 'mypy.ini'}", f"--cache-dir={cache}", *map(str, files)])
    assert not error
    found = {file.name: [] for file in files}
    for line in out.splitlines():
        if ": error:" in line:
            path, number, *_ = line.split(":")
            found[Path(path).name].append(int(number))
    return found


def test_right_calls_have_no_error(errors):
    assert errors["right_calls.py"] == []


def test_each_wrong_call_has_one_error(errors):
    lines = (TYPING / "wrong_calls.py").read_text(encoding="utf-8").splitlines()
    marked = [number for number, line in enumerate(lines, 1) if line.endswith("# wrong")]
    assert len(marked) == 11 and errors["wrong_calls.py"] == marked
