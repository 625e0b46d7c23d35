"""What is generated from the methods' declared settings is what lies in the repository."""

import importlib.metadata
import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from grata.doctor import catalogue
from grata.methods import METHODS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "scripts" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_file_is_what_would_be_written(script):
    for path, text in script.generated().items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run python scripts/generate.py"


def test_the_catalogue_is_the_classes(monkeypatch):
    built = catalogue.build()
    assert list(built) == list(METHODS)
    monkeypatch.setattr(catalogue, "build", lambda: None)
    assert catalogue.load() == built


@pytest.mark.parametrize("what", ["another file", "damaged", "missing", "an entry point"])
def test_a_catalogue_of_other_files_is_not_used(what, monkeypatch, tmp_path):
    path = tmp_path / "catalogue.json"
    content = json.loads(catalogue.PATH.read_text(encoding="utf-8"))
    if what == "another file":
        path.write_text(json.dumps(content | {"sha256": "0"}))
    elif what == "damaged":
        path.write_text("{")
    elif what == "an entry point":
        path.write_text(json.dumps(content))
        point = importlib.metadata.EntryPoint("mine", "package:Mine", "grata.methods")
        monkeypatch.setattr(catalogue, "entry_points", lambda group: [point] if group == "grata.methods" else [])
    monkeypatch.setattr(catalogue, "PATH", path)
    monkeypatch.setattr(catalogue, "build", lambda: "built")
    assert catalogue.load() == "built"


@pytest.mark.parametrize("name", METHODS)
def test_an_overlay_selects_the_method_with_its_defaults(name):
    overlay = yaml.safe_load((ROOT / "configs" / "methods" / f"{name}.yaml").read_text(encoding="utf-8"))
    declared = catalogue.load()[name].settings
    assert overlay["method"] == name
    for key, value in overlay["settings"].items():
        assert value == declared[key].default or (value == {} and declared[key].default is None), key


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (1e-5, "0.00001"),
        (3.90625e-06, "0.00000390625"),
        (2 / 255, "0.00784313725490196"),
        (150, "150"),
        ([0.9, None], "[0.9, null]"),
        ({"momentum": 0.9}, "{momentum: 0.9}"),
        ("plogp", "plogp"),
    ],
)
def test_values_are_written_as_yaml_reads_them(value, text):
    assert catalogue.written(value) == text and yaml.safe_load(text) == value
