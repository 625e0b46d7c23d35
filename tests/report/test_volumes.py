import csv

import numpy as np
import pytest

from grata.report import case_volumes, write_volumes


def test_volumes_are_counted_in_millilitres_and_written_as_a_table(tmp_path):
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[:5], labels[5:7, :5] = 1, 3
    rows = case_volumes(labels, {1: "organ", 2: "absent", 3: "lesion"}, (0.5, 2.0, 3.0))
    assert [(row["class"], row["voxels"]) for row in rows] == [("organ", 500), ("absent", 0), ("lesion", 100)]
    assert [row["volume_ml"] for row in rows] == pytest.approx([1.5, 0.0, 0.3])
    write_volumes([{"case": "a", "site": "x", "variant": "source", **row} for row in rows], tmp_path / "volumes.csv")
    with open(tmp_path / "volumes.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert table[0] == {
        "case": "a", "site": "x", "variant": "source", "class": "organ", "voxels": "500", "volume_ml": "1.500000"
    }  # fmt: skip
    assert [row["volume_ml"] for row in table[1:]] == ["0.000000", "0.300000"]


def test_areas_are_in_pixels_and_in_square_millimetres_where_pixels_have_a_size(tmp_path):
    labels = np.zeros((10, 10), np.uint8)
    labels[:5], labels[5:7, :5] = 1, 2
    names = {1: "disc", 2: "cup"}
    picture = case_volumes(labels, names, None, includes={1: (2,)})
    assert picture == [{"class": "disc", "area_px": 60}, {"class": "cup", "area_px": 10}]
    single_slice = case_volumes(labels, names, (0.5, 2.0))
    assert [(row["area_px"], row["area_mm2"]) for row in single_slice] == [(50, 50.0), (10, 10.0)]
    case = {"case": "a", "site": "x", "variant": "source"}
    for rows, header, last in (
        (picture, "area_px", "10"),
        ([*single_slice, *picture], "area_px,area_mm2", "10,"),
    ):
        write_volumes([{**case, **row} for row in rows], tmp_path / "volumes.csv")
        lines = (tmp_path / "volumes.csv").read_text().splitlines()
        assert lines[0] == f"case,site,variant,class,{header}" and lines[-1] == f"a,x,source,cup,{last}"
