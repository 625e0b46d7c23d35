"""Tables of a few rows, compared with values computed by hand."""

import math

import pytest

from grata.benchmark import load_config
from grata.benchmark.stream import MEASURED
from grata.benchmark.summary import summarise, write_summary

NAN, INF = math.nan, math.inf
ROWS = [
    # target, case, method, seed, Dice, ASSD, agreement; case 2 of south holds no disc, case 3 has no label
    ("north", "1", "source", 0, 0.50, 2.0, 0.1),
    ("north", "2", "source", 0, 0.70, INF, 0.3),
    ("north", "3", "source", 0, 0.90, 4.0, 0.2),
    ("south", "1", "source", 0, 0.40, 1.0, 0.5),
    ("south", "2", "source", 0, NAN, NAN, 0.6),
    ("south", "3", "source", 0, None, None, 0.4),
    ("north", "1", "grata", 0, 0.60, 1.0, 0.1),
    ("north", "1", "grata", 1, 0.80, 3.0, 0.3),
    ("north", "2", "grata", 0, 0.55, 1.0, 0.4),
    ("north", "2", "grata", 1, 0.65, INF, 0.4),
    ("north", "3", "grata", 0, 0.80, 3.0, 0.6),
    ("south", "1", "grata", 0, 0.60, 5.0, 0.5),
]


def row(target, case, method, seed, dice, distance=1.0, agreement=0.5, source="bundle", protocol="per-target", **more):
    scores = {} if dice is None else {"dice": dice, "assd": distance, "hd95": distance, "asd_pred_to_label": distance}
    scores |= {} if dice is None else {"ece": 0.1}
    return {
        "protocol": protocol,
        "source": source,
        "target": target,
        "method": method,
        "seed": seed,
        "case": case,
        "stream": "all",
        "round": 0,
        "position": 0,
        "error": "",
        "flags": "",
        "agreement": agreement,
        **{f"{metric}/{segment}": value for metric, value in scores.items() for segment in ("Disc", "mean")},
        "seconds": 3.0 if method == "grata" else 0.0,
        "seconds_predict": 1.0,
        "peak_memory_mib": 9.0,
        "cold": False,
        **more,
    }


@pytest.fixture
def configured(settings, write):
    def configure(**changes):
        del settings["methods"]["ptbn"]
        return load_config(write({**settings, **changes}))

    return configure


def by_name(config, rows):
    return summarise(config, rows).set_index(["source", "target", "method"]).sort_index()


@pytest.mark.parametrize("protocol", ["per-target", "continual"])
def test_means_differences_and_counts(configured, protocol):
    table = by_name(configured(protocol=protocol), [row(*values, protocol=protocol) for values in ROWS])
    source, grata = (table.loc[("bundle", "north", method)] for method in ("source", "grata"))
    assert source["dice/Disc"] == pytest.approx((0.5 + 0.7 + 0.9) / 3)
    # Seeds are averaged first: 0.7, 0.6, 0.8; the mean of the five rows would be 0.68.
    assert grata["dice/Disc"] == pytest.approx(0.7)
    # 1 of 27 resamples of three images holds one image three times, which is more than 2.5 %.
    assert (grata["dice/Disc:low"], grata["dice/Disc:high"]) == pytest.approx((0.6, 0.8))
    # Method minus reference, image by image: -0.2, 0.1, 0.1.
    assert source["difference"] == pytest.approx(0.0, abs=1e-12)
    assert source["difference:low"] == pytest.approx(-0.2) and source["difference:high"] == pytest.approx(0.1)
    assert math.isnan(grata["difference"]) and math.isnan(grata["p"]) and math.isnan(grata["p_holm"])
    # ranks 1 3 2 of the agreement, 1 2 3 of the Dice: 1 - 6 (0 + 1 + 1) / (3 (9 - 1))
    assert source["agreement_spearman"] == pytest.approx(0.5)
    # A distance that is infinite for one seed is infinite for the image.
    assert (source["undefined/Disc"], grata["undefined/Disc"]) == (1, 1)
    assert source["assd/Disc"] == pytest.approx(3.0) and grata["assd/Disc"] == pytest.approx((2.0 + 3.0) / 2)
    assert (grata["seconds"], source["seconds"], grata["ratio"]) == (4.0, 1.0, 4.0)

    south = table.loc[("bundle", "south", "source")]
    # A structure missing from both maps is not scored, and is not an infinite distance.
    assert (south["images"], south["unlabelled"], south["failed"], south["undefined/Disc"]) == (2, 1, 0, 0)
    assert south["dice/Disc"] == pytest.approx(0.4) and south["difference"] == pytest.approx(-0.2)

    together = table.loc[("bundle", "all", "source")]
    assert (together["images"], together["unlabelled"]) == (5, 1)
    means = {"per-target": (0.7 + 0.4) / 2, "continual": (0.5 + 0.7 + 0.9 + 0.4) / 4}
    assert together["dice/Disc"] == pytest.approx(means[protocol])
    differences = {"per-target": (0.0 - 0.2) / 2, "continual": (-0.2 + 0.1 + 0.1 - 0.2) / 4}
    assert together["difference"] == pytest.approx(differences[protocol])


def test_failed_images_are_counted_and_left_out_of_both_sides(configured):
    rows = [row(*values) for values in ROWS]
    rows[2] = {**rows[2], "error": "broken"}
    source = by_name(configured(), rows).loc[("bundle", "north", "source")]
    assert (source["images"], source["failed"]) == (2, 1)
    assert source["difference"] == pytest.approx((-0.2 + 0.1) / 2)


def test_p_values_are_corrected_for_the_methods_of_the_block(settings, write):
    low, high = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.12, 0.23, 0.34, 0.45, 0.56, 0.67]
    mixed = [0.13, 0.22, 0.33, 0.46, 0.55, 0.69]
    values = {"source": low, "ptbn": mixed, "grata": high}
    rows = [row("north", str(i), name, 0, dice) for name, dices in values.items() for i, dice in enumerate(dices)]
    table = by_name(load_config(write(settings)), rows).loc[("bundle", "north")]
    # All six differences on one side give 2 / 2⁶; differences on both sides give more.
    assert table.loc["source", "p"] == pytest.approx(2 / 64)
    assert table.loc["ptbn", "p"] > 0.5
    assert table.loc["source", "p_holm"] == pytest.approx(2 * 2 / 64)
    assert table.loc["ptbn", "p_holm"] == pytest.approx(table.loc["ptbn", "p"])


@pytest.mark.parametrize("protocol", ["per-target", "continual"])
def test_an_image_counts_once_for_all_sources_together(configured, protocol):
    """Ten pairs of source and image are five images: p is 2 / 2⁵, and differences between sources are not spread."""
    config = configured(sources={"east": {}, "west": {}}, protocol=protocol)
    rows = []
    for source, dice in (("east", 0.4), ("west", 0.6)):
        for i in range(5):
            # Another size in each source; on average 0.05, 0.06, ... better.
            better = 0.05 + i / 100 + (0.02 if source == "east" else -0.02)
            target = "north" if i < 3 else "south"
            rows.append(row(target, str(i), "source", 0, dice, agreement=i / 10, source=source, protocol=protocol))
            rows.append(row(target, str(i), "grata", 0, dice + better, source=source, protocol=protocol))
    table = by_name(config, rows)
    pooled = table.loc[("all", "all", "source")]
    assert pooled["images"] == 5
    assert (pooled["dice/Disc"], pooled["dice/Disc:low"], pooled["dice/Disc:high"]) == pytest.approx((0.5, 0.5, 0.5))
    assert pooled["p"] == pytest.approx(2 / 2**5)
    expected = {"per-target": -(0.06 + 0.085) / 2, "continual": -0.07}[protocol]
    assert pooled["difference"] == pytest.approx(expected)
    assert table.loc[("east", "all", "source"), "images"] == 5
    assert table.loc[("east", "all", "source"), "dice/Disc"] == pytest.approx(0.4)

    # An image that failed for one source is left out on both sides there; the other source still counts.
    rows[0] = {**rows[0], "error": "broken", "dice/Disc": 0.0, "dice/mean": 0.0}
    pooled = by_name(config, rows).loc[("all", "all", "source")]
    assert (pooled["images"], pooled["failed"]) == (5, 1)
    north = -(0.03 + 0.06 + 0.07) / 3
    south = -0.085
    expected = {"per-target": (north + south) / 2, "continual": (3 * north + 2 * south) / 5}[protocol]
    assert pooled["difference"] == pytest.approx(expected)


def test_rounds_are_averaged_in_the_tables_and_separate_in_their_own(configured, tmp_path):
    config = configured(protocol={"name": "recurring", "repeats": 2})
    dice = {("1", 0): 0.4, ("2", 0): 0.6, ("1", 1): 0.8, ("2", 1): 0.7}
    rows = [
        row("north", case, method, 0, value + extra, protocol="recurring", round=k)
        for (case, k), value in dice.items()
        for method, extra in (("source", 0.0), ("grata", 0.1))
    ]
    line = by_name(config, rows).loc[("bundle", "north", "source")]
    # 0.6 and 0.65
    assert line["images"] == 2 and line["dice/Disc"] == pytest.approx(0.625)
    assert line["dice/Disc:low"] == pytest.approx(0.6) and line["dice/Disc:high"] == pytest.approx(0.65)
    write_summary(config, rows, tmp_path, threads=1, minutes=1.0, missing=3)
    text = (tmp_path / "summary.md").read_text()
    assert "8 rows, 0 of them failed, 3 images not done" in text
    table = text.split("recurring: mean Dice by round")[1]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    assert cells[0] == ["source", "method", "round 1", "round 2"]
    assert cells[2:] == [["bundle", "source", "0.5000", "0.7500"], ["bundle", "grata", "0.6000", "0.8500"]]


def test_a_reused_result_does_not_count_in_the_cost(configured):
    config = configured(protocol={"name": "recurring", "repeats": 2})
    rows = [row("north", case, "source", 0, 0.5, protocol="recurring", round=0) for case in "12"]
    rows[0] |= {"seconds": 9.0, "cold": True}
    rows[1] |= {"seconds": 2.0, "peak_memory_mib": 7.0}
    again = [{key: value for key, value in r.items() if key not in MEASURED} | {"round": 1} for r in rows]
    line = by_name(config, [*rows, *again]).loc[("bundle", "north", "source")]
    assert (line["seconds_adapt"], line["seconds"], line["peak_memory_mib"]) == (2.0, 3.0, 9.0)
    # The only computed image was the first after a start.
    line = by_name(config, [rows[0], again[0]]).loc[("bundle", "north", "source")]
    assert line["seconds_adapt"] == 9.0


def test_a_summary_names_no_folder_of_this_machine(configured, tmp_path):
    places = {"dataset_dir": "/home/someone/scans", "cases_file": ["/home/someone/lists/a.csv", "b.csv"]}
    config = configured(
        bundle="/home/someone/bundles/fundus",
        sources={"ours": {"weights": "/home/someone/models/ours.pt"}},
        targets={"north": {**places, "labels_dir": "/home/someone/masks"}, "south": {"dataset_dir": "data/south"}},
    )
    rows = [row(*values, source="ours") for values in ROWS]
    write_summary(config, rows, tmp_path, threads=1, minutes=1.0, missing=0)
    for name in ("summary.md", "summary.tex", "summary.csv"):
        text = (tmp_path / name).read_text()
        assert "/home" not in text and "someone" not in text and str(tmp_path) not in text
    text = (tmp_path / "summary.md").read_text()
    shown = ("bundle: fundus", "dataset_dir: scans", "- a.csv", "labels_dir: masks", "weights: ours.pt", "data/south")
    assert [line for line in shown if line not in text] == []


def test_unlabelled_images_are_counted_where_there_are_any(configured, tmp_path):
    write_summary(configured(), [row(*values) for values in ROWS], tmp_path, threads=1, minutes=1.0, missing=0)
    north, south = ((tmp_path / "summary.md").read_text().split(f"bundle to {site}")[1] for site in ("north", "south"))
    assert "unlabelled" not in north.split("##")[0]
    assert "unlabelled" in south.split("##")[0]
