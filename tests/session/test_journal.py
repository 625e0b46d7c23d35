import json

import pytest

from grata.errors import GrataError
from grata.session import Journal


def test_lines_are_valid_json_also_for_numbers_that_are_not(tmp_path):
    journal = Journal(tmp_path / "a" / "journal.jsonl")
    journal.append({"case": "a", "loss": float("nan"), "steps": [{"lr": float("inf")}]})
    text = journal.path.read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert json.loads(text) == {"case": "a", "loss": None, "steps": [{"lr": None}]}


def test_a_line_that_a_crash_cut_short_is_dropped_and_so_are_cases_that_were_not_committed(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    for case in "abc":
        journal.append({"case": case})
    with journal.path.open("a") as file:
        file.write('{"case": "d", "lo')
    assert [line["case"] for line in journal.lines()] == ["a", "b", "c"]
    journal.keep({"a", "b"})
    assert [line["case"] for line in journal.lines()] == ["a", "b"]
    assert journal.path.read_text().endswith("}\n")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(GrataError, match="journal.jsonl"):
        Journal(tmp_path / "file" / "journal.jsonl").append({"case": "a"})
