import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from grata.errors import GrataError
from grata.report import format_summary, summarise_scores, write_summary


@dataclass
class Broken:
    case: str
    message: str


SCORES = summarise_scores(
    [
        {"case": case, "site": "", "variant": variant, "class": name, "dice": dice, "hd95": hd95, "assd": 0.5}
        for variant, gain in (("source", 0.0), ("grata", 0.05))
        for case, dice in (("a", 0.7 + gain), ("b", 0.8 + gain))
        for name, hd95 in (("anterior", 2.0), ("posterior", math.inf if case == "a" else 3.0))
    ]
)
RUN = {
    "method": "grata",
    "version": "0.1.0",
    "cases_found": 3,
    "cases_finished": 2,
    "faults": [Broken("c", "c.nii.gz is truncated:\n  copy it again.")],
    "scores": SCORES,
}


def test_json_is_strict_and_only_its_timing_varies(tmp_path):
    settings = {"lr": np.float32(0.5), "views": ("identity", "flip_w"), "out": Path("x"), "limit": math.inf, "n": None}
    for name, seconds in (("one.json", 1.23456), ("two.json", 9.0)):
        write_summary(tmp_path / name, **RUN, seconds=seconds, settings=settings)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    one, two = (json.loads((tmp_path / n).read_text(), parse_constant=refuse) for n in ("one.json", "two.json"))
    assert one.pop("timing") == {"seconds": 1.235}
    two.pop("timing")
    assert one == two
    assert one["settings"] == {"lr": 0.5, "views": ["identity", "flip_w"], "out": "x", "limit": None, "n": None}
    assert one["faults"] == [{"case": "c", "message": "c.nii.gz is truncated:\n  copy it again."}]
    assert (one["cases_found"], one["cases_finished"]) == (3, 2)
    assert one["scores"][0]["dice"] == pytest.approx(0.75)
    assert one["scores"][0]["difference"] is None


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(GrataError, match="nowhere"):
        write_summary(tmp_path / "nowhere" / "summary.json", **RUN, seconds=1.0, settings={})


def test_text_for_the_terminal(tmp_path):
    text = format_summary(**RUN, seconds=12.34, output_dir=tmp_path)
    lines = text.splitlines()
    assert lines[0] == "grata (grata 0.1.0): 2 of 3 cases finished in 12.3 s"
    assert "  c: c.nii.gz is truncated: copy it again." in lines
    assert lines[-1] == f"Outputs: {tmp_path}"
    table = lines[2 : 3 + len(SCORES)]
    dice = table[0].index("Dice [")
    assert all(line[dice - 2 : dice] == "  " and line[dice].isdigit() for line in table[1:])
    assert table[4].split()[:5] == ["-", "grata", "anterior", "2", "0.800"]
    assert "+0.050 [+0.050, +0.050]" in table[4]
    assert "    -, source, posterior: 1 of 2" in lines


def test_distances_carry_their_unit(tmp_path):
    row = {"case": "a", "site": "", "variant": "source", "class": "disc", "dice": 0.5, "hd95": 4.0, "assd": 1.0}
    for unit in ("mm", "px"):
        scores = summarise_scores([{**row, "unit": unit}])
        text = format_summary(**{**RUN, "scores": scores}, seconds=1.0, output_dir=tmp_path)
        assert f"4.00 {unit}" in text and f"1.00 {unit}" in text and ("mm" in text) == (unit == "mm")


def test_text_without_labels_or_faults_says_no_more_than_that(tmp_path):
    text = format_summary(**{**RUN, "faults": [], "scores": []}, seconds=1.0, output_dir=tmp_path)
    assert text == f"grata (grata 0.1.0): 2 of 3 cases finished in 1.0 s\n\nOutputs: {tmp_path}"
