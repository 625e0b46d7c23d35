"""The methods give the same numbers, to the last bit, as when their record was written."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
RECORD = Path(__file__).with_name("record_methods.txt")


@pytest.fixture(scope="module")
def script():
    """The script that records and compares."""
    spec = importlib.util.spec_from_file_location("record", ROOT / "scripts" / "record.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_methods_give_the_recorded_numbers(script):
    header, before = script.read(RECORD)
    here = script.machine()
    if changed := [key for key in here if header.get(key) != here[key]]:
        key = changed[0]
        pytest.skip(f"recorded with another {key}: {header.get(key)}, here {here[key]}")
    found = script.differences(before, script.fold(script.make_record(["methods"])))
    # scripts/record.py compares value by value with a record that was written before a change
    assert not found["differs"] + found["missing"]


def test_a_hash_holds_for_content_and_not_for_the_order_of_keys(script):
    value = {"a": torch.ones(2), "b": [1, 2.5, None, "x"]}
    assert script.digest(value) == script.digest(dict(reversed(value.items())))
    others = [
        {**value, "a": torch.ones(2, 1)},
        {**value, "a": torch.ones(2, dtype=torch.float64)},
        {**value, "a": np.ones(2, np.float32)},
        {**value, "b": [1, np.nextafter(2.5, 3).item(), None, "x"]},
        {**value, "b": [True, 2.5, None, "x"]},
        {**value, "c": None},
    ]
    assert len({script.digest(other) for other in (value, *others)}) == 1 + len(others)
    with pytest.raises(TypeError, match="object cannot be hashed"):
        script.digest({"a": object()})


def test_a_new_line_is_no_difference_and_a_missing_one_is(script, tmp_path, capsys):
    script.write({"methods/a": "1", "methods/b": "2"}, tmp_path / "record.txt")
    header, before = script.read(tmp_path / "record.txt")
    assert header == script.machine()
    assert script.compare(before, {"methods/a": "1", "methods/b": "2", "methods/c": "3"}) == 0
    assert "new: methods/c" in capsys.readouterr().out
    assert script.compare(before, {"methods/a": "1", "methods/b": "0"}) == 1
    assert script.compare(before, {"methods/a": "1"}) == 1
    assert "missing: methods/b\n1 of 2 lines are equal" in capsys.readouterr().out


def test_a_table_is_recorded_by_its_columns_without_what_is_measured(script):
    rows = [
        {"case": "a", "seconds": 1.0, "version": "1", "steps": [{"loss": 1.0}, {"loss": 2.0}]},
        {"case": "b", "peak_memory_mib": 3.0},
    ]
    assert dict(script.by_column("journal", rows)) == {
        "journal/case": ["a", "b"],
        "journal/steps/loss": [1.0, 2.0],
    }
