"""Tables hold names and numbers, and nothing that a spreadsheet would run."""

import csv

import pytest

from grata.benchmark.run import _columns
from grata.quality import Judgement
from grata.report import read_scores, report_verdicts, write_scores, write_volumes
from grata.report.tables import cell, read_table, write_table

FORMULAS = ["=1+1", "+cmd|'/C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "＝1", '=HYPERLINK("http://x","y")', "--x"]
HARMLESS = ["a=1", "case-1", "", "'quoted'", "-0.5", "+3", "-inf", "nan", "1e-5", "Müller", "' =1"]
NESTED = ["'=1", "''=1", "'-x", "'@"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_text_that_would_be_run_is_covered(text):
    assert cell(text) == f"'{text}"


@pytest.mark.parametrize("value", [*HARMLESS, -0.5, -3, None, True])
def test_all_else_stays(value):
    assert cell(value) is value


def test_what_would_steer_a_terminal_is_replaced(tmp_path):
    site = "=cmd|\x1b[31mX\x07\x9b2J\0\x7f"
    write_table([{"site": site}], ["site"], tmp_path / "t.csv")
    text = (tmp_path / "t.csv").read_text(encoding="utf-8")
    assert text == "site\n'=cmd|\ufffd[31mX\ufffd\ufffd2J\ufffd\ufffd\n"
    for _ in range(2):
        report_verdicts({"a\x1b": Judgement("ok")}, tmp_path, {})
    assert [line["case"] for line in read_table(tmp_path / "cases.csv")[1]] == ["a\ufffd"]
    assert cell("one\ttwo\r\nthree") == "one\ttwo\r\nthree"


@pytest.mark.parametrize("decimals", [6, None])
def test_what_is_read_is_what_was_written(decimals, tmp_path):
    rows = [{"case": text, "site": text, "dice": -0.25} for text in (*FORMULAS, *HARMLESS, *NESTED)]
    write_table(rows, ["case", "site", "dice"], tmp_path / "t.csv", decimals)
    columns, read = read_table(tmp_path / "t.csv")
    assert columns == ["case", "site", "dice"]
    assert [(row["case"], row["site"]) for row in read] == [(row["case"], row["site"]) for row in rows]
    assert {row["dice"] for row in read} == {"-0.250000" if decimals else "-0.25"}
    assert cells(tmp_path / "t.csv").isdisjoint(FORMULAS)


def test_every_table_of_a_run(tmp_path):
    site = "=cmd()"
    score = {"case": "+c", "site": site, "variant": "tent", "class": "@x", "dice": 0.5, "hd95": 1.0, "assd": 1.0}
    write_scores([score], tmp_path / "scores.csv")
    assert read_scores(tmp_path / "scores.csv")[0] | score == read_scores(tmp_path / "scores.csv")[0]
    write_volumes(
        [{"case": "+c", "site": site, "variant": "tent", "class": "@x", "voxels": 3}], tmp_path / "volumes.csv"
    )
    judgement = Judgement("ok")
    for case in ("=first()", "=second()"):
        report_verdicts({case: judgement}, tmp_path, {case: site})
    _, lines = read_table(tmp_path / "cases.csv")
    assert [line["case"] for line in lines] == ["=first()", "=second()"]
    report_verdicts({"=first()": judgement}, tmp_path, {"=first()": site})
    _, lines = read_table(tmp_path / "cases.csv")
    assert [line["case"] for line in lines] == ["=second()", "=first()"]
    rows = [{"protocol": "p", "case": "-rm", "error": "=boom", "dice/mean": -0.5}]
    write_table(rows, _columns(rows), tmp_path / "results.csv", decimals=None)
    for table in tmp_path.glob("*.csv"):
        assert not any(text.startswith(("=", "+", "@", "-r")) for text in cells(table)), table


def cells(path):
    with open(path, encoding="utf-8", newline="") as file:
        return {text for row in csv.reader(file) for text in row}
