import nibabel as nib
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from grata.errors import GrataError
from grata.report import contact_sheet, overview_figure

BLUE, ORANGE, GREEN = (0x56, 0xB4, 0xE9), (0xE6, 0x9F, 0x00), (0x00, 0x9E, 0x73)
BELOW_LEGEND = 110


def volume(shape=(24, 30, 20)) -> np.ndarray:
    return np.random.default_rng(0).normal(100, 20, shape)


def box(shape=(24, 30, 20), start=8, stop=14, value=1) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[(slice(start, stop),) * len(shape)] = value
    return mask


def draw(path, image, outlines, spacing=(1.0, 1.0, 1.0), **options) -> np.ndarray:
    contact_sheet(image, outlines, path, "case 1", spacing, **options)
    return (imread(path)[..., :3] * 255).round().astype(int)


def coloured(pixels: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(pixels[BELOW_LEGEND:] - colour).max(axis=-1) <= 2).sum())


def test_equal_inputs_give_equal_bytes(tmp_path):
    outlines = {"source": box(), "adapted": box(start=9), "label": box(stop=15)}
    for name in ("one.png", "two.png"):
        draw(tmp_path / name, volume(), outlines)
    content = (tmp_path / "one.png").read_bytes()
    assert content == (tmp_path / "two.png").read_bytes()
    assert content.startswith(b"\x89PNG") and b"matplotlib" not in content.lower()
    assert imread(tmp_path / "one.png").shape[1] == 1800


def test_each_outline_appears_in_its_colour_when_it_has_something_to_show(tmp_path):
    everything = {"source": box(), "adapted": box(start=10, stop=16), "label": box(start=5, stop=11)}
    colours = {"source": ORANGE, "adapted": BLUE, "label": GREEN}
    pixels = draw(tmp_path / "all.png", volume(), everything)
    assert all(coloured(pixels, colour) > 100 for colour in colours.values())
    for missing, colour in colours.items():
        outlines = everything | {missing: np.zeros_like(box())}
        assert coloured(draw(tmp_path / "less.png", volume(), outlines), colour) == 0


def test_a_picture_is_shown_in_its_own_colours(tmp_path):
    image = np.zeros((40, 60, 3))
    image[..., 0], image[..., 1] = 200.0, 100.0
    pixels = draw(tmp_path / "colour.png", image, {"adapted": box((40, 60))}, (1.0, 1.0))
    left = pixels[BELOW_LEGEND:-60, : pixels.shape[1] // 4].reshape(-1, 3)
    colours, counts = np.unique(left, axis=0, return_counts=True)
    assert np.abs(colours[counts.argmax()] - (255, 128, 0)).max() <= 1
    assert coloured(pixels, BLUE) > 100


def test_outline_lies_on_the_edge_of_the_mask(tmp_path):
    image = np.zeros((40, 40))
    image[7:34, 4:35] = 1
    pixels = draw(tmp_path / "edge.png", image, {"adapted": (image > 0).astype(int)}, (1.0, 1.0))
    blue = np.abs(pixels - BLUE).max(axis=-1) <= 2
    blue[:BELOW_LEGEND] = False
    # The left panel is the bare image: its bright pixels say where the right one's outline is wanted.
    half = pixels.shape[1] // 2
    assert not blue[:, :half].any()
    bright = (pixels[BELOW_LEGEND:-60, :half] > 250).all(axis=-1)
    wanted = [np.flatnonzero(bright.any(axis=axis))[[0, -1]] for axis in (1, 0)]
    found = [np.flatnonzero(blue[BELOW_LEGEND:, half:].any(axis=axis))[[0, -1]] for axis in (1, 0)]
    assert np.abs(np.subtract(found, wanted)).max() < 20


def test_disagreement_is_filled_only_where_there_is_any(tmp_path):
    same = draw(tmp_path / "same.png", np.zeros((24, 30, 20)), {"source": box(), "adapted": box()})
    other = draw(tmp_path / "other.png", np.zeros((24, 30, 20)), {"source": box(), "adapted": box(value=2)})
    difference = (same != other).any(axis=-1)[BELOW_LEGEND:-60]
    assert difference.sum() > 10_000
    reddish = other[BELOW_LEGEND:-60][difference]
    assert (reddish[:, 0] > reddish[:, 1]).mean() > 0.9


def test_orientation_of_the_file_does_not_change_the_picture(tmp_path):
    outlines = {"source": box(), "adapted": box(start=9)}
    image = volume()
    expected = draw(tmp_path / "pls.png", image, outlines, (1.0, 2.0, 3.0), axcodes="PLS")
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("PLS"), nib.orientations.axcodes2ornt("SRA"))
    turned = [nib.orientations.apply_orientation(values, turn) for values in (image, *outlines.values())]
    named = dict(zip(outlines, turned[1:], strict=True))
    pixels = draw(tmp_path / "sra.png", turned[0], named, (3.0, 2.0, 1.0), axcodes="SRA")
    assert pixels.shape == expected.shape
    # Captions count along the axes of the file, all else is the same.
    assert (pixels != expected).any(axis=-1).mean() < 0.01
    mirrored = draw(tmp_path / "slp.png", turned[0], named, (3.0, 2.0, 1.0), axcodes="SLA")
    assert (mirrored != expected).any(axis=-1).mean() > 0.5


def test_a_stack_whose_header_has_lost_its_thickness_is_shown_slice_by_slice(tmp_path):
    image = np.zeros((96, 96, 6))
    image[24:72, 24:72] = 1
    outline = (image > 0).astype(np.uint8)
    pixels = draw(tmp_path / "stack.png", image, {"adapted": outline}, (1.0, 1.0, 1.0), axcodes="LPS")
    # the whole slice bare and with its outline, then six cropped ones: in each a white square
    white = (pixels[BELOW_LEGEND:-60] > 250).all(axis=-1)
    filled = white.any(axis=1)
    starts, stops = (np.flatnonzero(np.diff(np.pad(filled.astype(int), 1)) == step) for step in (1, -1))
    rows = [(start, stop) for start, stop in zip(starts, stops, strict=True) if stop - start > 20]
    assert len(rows) == 2
    for (start, stop), squares in zip(rows, (2, 6), strict=True):
        line = white[(start + stop) // 2]
        edges = np.flatnonzero(np.diff(np.pad(line.astype(int), 1)))
        widths = np.diff(edges)[::2]
        assert len(widths) == squares and np.allclose(widths, stop - start, rtol=0.1)


def test_panels_keep_the_anatomical_aspect(tmp_path):
    thin = draw(tmp_path / "thin.png", volume((20, 20)), {}, (1.0, 1.0))
    tall = draw(tmp_path / "tall.png", volume((20, 20)), {}, (1.0, 2.0))
    image_height = [(pixels[BELOW_LEGEND:] > 200).all(axis=-1).any(axis=1)[:-60].sum() for pixels in (thin, tall)]
    image_width = [(pixels[BELOW_LEGEND:-60] > 200).all(axis=-1).any(axis=0).sum() for pixels in (thin, tall)]
    assert image_width[0] / image_height[0] == pytest.approx(1, abs=0.1)
    assert image_width[1] / image_height[1] == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize(
    ("image", "outlines", "spacing"),
    [
        pytest.param(volume(), {}, (1, 1, 1), id="no outlines"),
        pytest.param(volume(), {"source": box() * 0, "adapted": box() * 0}, (1, 1, 1), id="nothing found"),
        pytest.param(np.full((24, 30, 20), 7.0), {"source": box()}, (1, 1, 1), id="constant image"),
        pytest.param(np.full((24, 30, 20), np.nan), {"source": box()}, (1, 1, 1), id="not a number"),
        pytest.param(volume((64, 64, 3)), {"source": box((64, 64, 3), 1, 2)}, (0.5, 0.5, 10), id="thick slices"),
        pytest.param(volume((24, 30, 1)), {"source": box((24, 30, 1), 0, 9)}, (1, 1, 5), id="one slice"),
        pytest.param(volume((24, 30)), {"source": box((24, 30), 0, 30)}, (1, 1), id="2D, to the edge"),
        pytest.param(
            np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8),
            {"source": box((40, 50)), "baseline": box((40, 50), 9)},
            (1, 1),
            id="colour, other name",
        ),
        pytest.param(torch.ones(8, 8, 8), {"adapted": torch.ones(8, 8, 8, dtype=torch.uint8)}, (1, 1, 1), id="tensors"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_odd_cases_still_make_a_page(tmp_path, image, outlines, spacing):
    pixels = draw(tmp_path / "odd.png", image, outlines, spacing)
    assert pixels.shape[1] == 1800 and 200 < pixels.shape[0] < 4000


def test_a_title_is_taken_literally(tmp_path):
    contact_sheet(volume(), {}, tmp_path / "t.png", "$\\frac{1" + "long " * 60, (1, 1, 1))
    assert imread(tmp_path / "t.png").shape[1] == 1800


@pytest.mark.parametrize(
    ("image", "outlines", "spacing", "options", "message"),
    [
        (volume(), {"source": box((24, 30, 21))}, (1, 1, 1), {}, "source"),
        (volume(), {}, (1,), {}, "spacing"),
        (volume((4, 4, 4, 3)), {}, (1, 1, 1), {}, r"\(4, 4, 4, 3\)"),
        (volume((4, 4, 2)), {}, (1, 1), {}, r"\(4, 4, 2\)"),
        (volume(), {}, (1, 1, 1), {"axcodes": "RAX"}, "axcodes"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, image, outlines, spacing, options, message):
    with pytest.raises(GrataError, match=message):
        contact_sheet(image, outlines, tmp_path / "x.png", "case 1", spacing, **options)
    assert not list(tmp_path.iterdir())


def scores(variants=("source", "grata"), sites=("A",), cases=4) -> list[dict]:
    rng = np.random.default_rng(0)
    return [
        {"case": f"c{case}", "site": site, "variant": variant, "class": name, "dice": dice, "hd95": 1.0, "assd": 0.5}
        for site in sites
        for case in range(cases)
        for variant in variants
        for name, dice in (("anterior", rng.uniform(0.6, 0.9)), ("posterior", float("nan") if case == 1 else 0.5))
    ]


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(scores(), id="two variants"),
        pytest.param(scores(variants=("source",)), id="source only"),
        pytest.param(scores(variants=("source", "ptbn", "grata"), sites=("A", "B")), id="three variants, two sites"),
        pytest.param(scores(cases=1), id="one case"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_overview_figure(tmp_path, rows):
    for name in ("one.png", "two.png"):
        overview_figure(rows, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert imread(tmp_path / "one.png").shape[1] >= 800


def test_overview_figure_needs_scores(tmp_path):
    with pytest.raises(GrataError, match="no scores"):
        overview_figure([], tmp_path / "o.png")
