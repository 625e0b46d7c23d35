"""The table of cases, and what the terminal shows of the verdicts."""

import csv
import dataclasses
import math

import pytest

from grata.data import Fault
from grata.quality import Judgement
from grata.report import case_row, report_verdicts, verdict_lines, write_cases

SIGNALS = {"voxels": 120, "source_voxels": 100, "ratio": 1.2, "self_dice": 0.9}
QUALITY = {
    "expected_dice": 0.87,
    "expected_low": 0.8,
    "expected_high": 0.93,
    "agreement_views": float("nan"),
    "agreement_source": 0.91,
    "self_dice": 0.9,
    "distance": 0.4,
    "segments": {"Disc": SIGNALS},
}
OK = Judgement("ok", quality=QUALITY)
SOURCE = Judgement("review", "source", ("adaptation is not used: Disc is gone", "nothing is outlined"), QUALITY)
REJECT = Judgement("reject", "neither", ("a Dice of 0.10 is expected",), QUALITY, withheld=True)


def volumes(key, adapted, source):
    rows = [("grata", adapted), ("source", source)]
    return [{"class": "Disc", "variant": variant, "voxels": 1, key: size} for variant, size in rows]


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_line_says_where_a_case_lies_and_what_became_of_it():
    row = case_row("scan", OK, "north/scan.nii.gz", "north", volumes("volume_ml", 2.4, 2.0))
    assert (row["case"], row["path"], row["site"]) == ("scan", "north/scan.nii.gz", "north")
    assert (row["verdict"], row["used"], row["written"], row["reasons"]) == ("ok", "adapted", "yes", "")
    assert (row["expected_dice"], row["agreement_source"]) == (0.87, 0.91)
    # what was not measured has no value
    assert "agreement_views" not in row
    assert (row["Disc, adapted"], row["Disc, source"], row["Disc, ratio"]) == (2.4, 2.0, 1.2)
    rejected = case_row("scan", REJECT)
    assert (rejected["used"], rejected["written"]) == ("neither", "no")


@pytest.mark.parametrize("key", ["volume_ml", "area_mm2", "area_px"])
def test_sizes_have_the_unit_of_the_volumes_and_without_them_are_voxels(key):
    assert case_row("scan", OK, volumes=volumes(key, 2.4, 2.0))["Disc, adapted"] == 2.4
    plain = case_row("scan", OK)
    assert (plain["Disc, adapted"], plain["Disc, source"]) == (120, 100)


def test_the_method_that_adapts_nothing_has_one_size():
    alone = [row for row in volumes("volume_ml", 2.4, 2.0) if row["variant"] == "source"]
    row = case_row("scan", OK, volumes=alone)
    assert (row["Disc, adapted"], row["Disc, source"]) == (2.0, 2.0)


def test_where_the_source_prediction_is_used_the_adapted_size_follows_from_the_ratio():
    """The prediction that is written is the source's, so both volumes that were measured are its."""
    row = case_row("scan", SOURCE, volumes=volumes("volume_ml", 2.0, 2.0))
    assert (row["Disc, source"], row["Disc, adapted"]) == (2.0, pytest.approx(2.4))
    found_alone = SIGNALS | {"source_voxels": 0, "ratio": math.inf}
    lost = dataclasses.replace(SOURCE, quality=QUALITY | {"segments": {"Disc": found_alone}})
    row = case_row("scan", lost, volumes=volumes("volume_ml", 0.0, 0.0))
    assert row["Disc, source"] == 0 and math.isnan(row["Disc, adapted"]) and math.isinf(row["Disc, ratio"])


def test_what_could_not_be_predicted_has_a_line_too(tmp_path):
    cut = Fault("cut", "its voxels cannot be read")
    report_verdicts({"scan": OK}, tmp_path, {"cut": "north"}, [cut])
    rows = {row["case"]: row for row in read(tmp_path / "cases.csv")}
    assert (rows["cut"]["verdict"], rows["cut"]["site"], rows["cut"]["written"]) == ("failed", "north", "no")
    assert rows["cut"]["reasons"] == cut.message and rows["cut"]["Disc, adapted"] == ""
    # put right, it takes the place of that line; and what was finished before its adaptation was lost is judged
    report_verdicts({"cut": OK}, tmp_path, faults=[Fault("cut", "it is finished, but")])
    assert {row["case"]: row["verdict"] for row in read(tmp_path / "cases.csv")} == {"scan": "ok", "cut": "ok"}


def test_columns_are_those_of_any_line_in_a_fixed_order(tmp_path):
    bare = Judgement("unjudged", reasons=("nothing is known of the network's output",))
    write_cases([case_row("b", bare), case_row("a", REJECT, "x/a.nii")], tmp_path / "cases.csv")
    rows = read(tmp_path / "cases.csv")
    assert [row["case"] for row in rows] == ["b", "a"]
    assert list(rows[0]) == [
        *("case", "path", "site", "verdict", "used", "written", "expected_dice", "expected_low", "expected_high"),
        *("agreement_source", "self_dice", "distance", "Disc, adapted", "Disc, source", "Disc, ratio", "reasons"),
    ]
    assert rows[0]["expected_dice"] == "" and rows[1]["expected_dice"] == "0.870000"
    assert rows[0]["reasons"] == "nothing is known of the network's output"


def test_the_columns_of_what_every_case_has_are_there_without_a_calibration(tmp_path):
    write_cases([case_row("a", Judgement("ok"))], tmp_path / "cases.csv")
    assert list(read(tmp_path / "cases.csv")[0]) == ["case", "path", "site", "verdict", "used", "written", "reasons"]


def test_the_terminal_counts_the_verdicts_and_names_what_is_not_ok():
    lines = verdict_lines({"a": OK, "b": SOURCE, "c": REJECT, "d": OK})
    assert lines == [
        "verdicts: 2 ok, 1 reject, 1 review",
        "  b: review (source prediction). adaptation is not used: Disc is gone; nothing is outlined",
        "  c: reject (withheld). a Dice of 0.10 is expected",
    ]
    assert verdict_lines({}) == []


def test_a_case_whose_source_prediction_is_used_is_named_although_it_is_ok():
    judgement = Judgement("ok", "source", ("adaptation is not used: it is less sure",))
    assert verdict_lines({"a": judgement})[1] == "  a: ok (source prediction). adaptation is not used: it is less sure"


def test_the_terminal_says_that_a_rejected_prediction_was_kept_or_withheld():
    kept = dataclasses.replace(REJECT, used="adapted", withheld=False)
    lines = verdict_lines({"one": kept, "two": REJECT})
    assert lines[1].startswith("  one: reject (kept all the same). ") and lines[2].startswith(
        "  two: reject (withheld). "
    )


def test_the_sizes_of_a_withheld_case_are_those_of_both_predictions():
    row = case_row("scan", REJECT, volumes=volumes("volume_ml", 2.0, 2.0))
    assert (row["Disc, source"], row["Disc, adapted"]) == (2.0, pytest.approx(2.4))


def test_lines_of_an_earlier_run_in_the_folder_stay(tmp_path, capsys):
    report_verdicts({"one": OK, "two": REJECT}, tmp_path, {"one": "north"})
    report_verdicts({"two": OK, "three": SOURCE}, tmp_path)
    rows = read(tmp_path / "cases.csv")
    assert [(row["case"], row["verdict"], row["site"]) for row in rows] == [
        ("one", "ok", "north"),
        ("two", "ok", ""),
        ("three", "review", ""),
    ]
    assert all(float(row["Disc, ratio"]) == 1.2 for row in rows) and float(rows[0]["expected_dice"]) == 0.87
    # a table that is none is replaced, and without a folder nothing is written
    (tmp_path / "cases.csv").write_bytes(b"\xff\xfe no table")
    report_verdicts({"one": OK}, tmp_path)
    assert [row["case"] for row in read(tmp_path / "cases.csv")] == ["one"]
    report_verdicts({"one": OK}, None)
    assert "verdicts: 1 ok" in capsys.readouterr().out
