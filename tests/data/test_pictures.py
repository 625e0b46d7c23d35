import os
import re
import shutil

import numpy as np
import pytest
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    CropForegroundd,
    Invertd,
    LoadImage,
    LoadImaged,
    MapLabelValued,
    Resized,
    ScaleIntensityd,
)
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from grata.data import CheckLabeld, CheckScand, ScanReader, discover, write_png
from grata.errors import GrataError

GREY = np.random.default_rng(0).integers(0, 256, (6, 9), np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (6, 9, 3), np.uint8)
LABELS = np.random.default_rng(2).integers(0, 3, (6, 9)).astype(np.uint8)


def save(path, values=COLOUR, orientation=None, **options):
    """Write a picture, of an array or an image, with an EXIF orientation where one is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = values if isinstance(values, Image.Image) else Image.fromarray(values)
    if orientation:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    image.save(path, **options)
    return path


def load(path, label=False):
    return LoadImage(reader=ScanReader(label=label), ensure_channel_first=True)(str(path))


def flat(folder, **options):
    return discover(folder, spatial_dims=2, **options)


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.tif", "a.TIFF", "a.bmp", "a.jpg", "a.JPEG"])
@pytest.mark.parametrize("values", [GREY, COLOUR], ids=["grey", "colour"])
def test_a_picture_is_found_and_read_rows_first(tmp_path, name, values):
    path = save(tmp_path / name, values)
    (case,) = flat(tmp_path, site="A").cases
    assert case == {"case": "a", "image": str(path), "site": "A", "format": "picture"}
    image = load(path)
    assert isinstance(image, MetaTensor) and image.shape == ((3, 6, 9) if values.ndim == 3 else (1, 6, 9))
    np.testing.assert_array_equal(image.affine, np.eye(4))
    expected = np.asarray(Image.open(path)) if "j" in name.lower() else values
    np.testing.assert_array_equal(image.numpy(), np.moveaxis(np.atleast_3d(expected), -1, 0))


def palette(colours):
    image = Image.fromarray(LABELS)
    image.putpalette(np.array(colours, np.uint8).tobytes())
    return image


def with_alpha(values, alpha):
    return Image.fromarray(np.dstack([values, np.full((6, 9), alpha, np.uint8)]))


RED, GREEN, WHITE = (200, 10, 20), (10, 220, 0), (250, 250, 250)


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        ("16 bit.png", GREY.astype(np.uint16) * 257, GREY * 257.0),
        ("16 bit.tif", GREY.astype(np.uint16) * 257, GREY * 257.0),
        ("32 bit.tif", GREY.astype(np.float32) / 7, GREY.astype(np.float32) / 7),
        ("1 bit.png", Image.fromarray(GREY > 99), (GREY > 99) * 255),
        ("1 bit.tif", Image.fromarray(GREY > 99), (GREY > 99) * 255),
        ("palette.png", palette([RED, GREEN, WHITE]), np.array([RED, GREEN, WHITE])[LABELS]),
        ("grey palette.png", palette([(7,) * 3, (9,) * 3, WHITE]), np.array([7, 9, 250])[LABELS]),
        ("opaque.png", with_alpha(COLOUR, 255), COLOUR),
        ("invisible.png", with_alpha(COLOUR, 0), COLOUR * 0),
        ("grey opaque.png", with_alpha(GREY, 255), GREY),
        ("grey invisible.png", with_alpha(GREY, 0), GREY * 0),
        ("ink.tif", Image.fromarray(np.dstack([255 - COLOUR, GREY * 0]), mode="CMYK"), COLOUR),
    ],
)
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
def test_every_kind_of_pixel_becomes_grey_or_rgb(tmp_path, name, image, expected):
    values = load(save(tmp_path / name, image)).numpy()
    np.testing.assert_allclose(values, np.moveaxis(np.atleast_3d(expected), -1, 0), rtol=1e-6)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_a_jpeg_of_another_colour_space_becomes_rgb(tmp_path, mode):
    even = Image.new("RGB", (16, 16), RED)
    image = load(save(tmp_path / "a.jpg", even.convert(mode), quality=100))
    np.testing.assert_allclose(image.numpy(), np.broadcast_to(np.reshape(RED, (3, 1, 1)), (3, 16, 16)), atol=3)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_image_and_label_and_counts_for_their_size(tmp_path, name, orientation):
    turn = {
        1: lambda v: v, 2: lambda v: v[:, ::-1], 3: lambda v: v[::-1, ::-1], 4: lambda v: v[::-1],
        5: lambda v: v.T, 6: lambda v: v[::-1].T, 7: lambda v: v[::-1, ::-1].T, 8: lambda v: v[:, ::-1].T,
    }[orientation]  # fmt: skip
    stored = np.kron(LABELS, np.full((8, 8), 100, np.uint8))
    save(tmp_path / "images" / name, stored, orientation)
    save(tmp_path / "labels" / "a.png", turn(LABELS.repeat(8, 0).repeat(8, 1)))
    (case,) = flat(tmp_path).cases
    np.testing.assert_allclose(load(case["image"])[0], turn(stored), atol=12)
    np.testing.assert_array_equal(load(case["label"], label=True)[0] * 100, turn(stored))
    write_png(turn(LABELS.repeat(8, 0).repeat(8, 1)), case, tmp_path / "out.png")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("a.png", LABELS),
        ("a.png", palette([RED, GREEN, WHITE])),
        ("a.gif", palette([RED, GREEN, WHITE])),
        ("a.bmp", LABELS),
        ("a.tif", LABELS.astype(np.uint16)),
        ("a.png", np.dstack([LABELS] * 3)),
        ("a.png", with_alpha(np.dstack([LABELS] * 3), 255)),
        ("a.png", with_alpha(LABELS, 255)),
    ],
)
def test_a_label_picture_gives_its_values(tmp_path, name, values):
    label = load(save(tmp_path / name, values), label=True)
    np.testing.assert_array_equal(label.numpy(), LABELS[None])


def test_a_label_picture_of_one_bit_holds_zero_and_one(tmp_path):
    label = load(save(tmp_path / "a.png", Image.fromarray(LABELS > 0)), label=True)
    np.testing.assert_array_equal(label.numpy(), LABELS[None] > 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [(COLOUR, "in colour"), (with_alpha(LABELS, 128), "partly transparent"), (with_alpha(COLOUR, 255), "in colour")],
)
def test_a_label_picture_must_have_one_value_a_pixel(tmp_path, values, message):
    with pytest.raises(GrataError, match=rf"a\.png' is {message}"):
        load(save(tmp_path / "a.png", values), label=True)


def test_values_of_labels_are_mapped_by_monai(tmp_path):
    save(tmp_path / "images" / "a.jpg")
    save(tmp_path / "masks" / "a.png", np.array([255, 128, 0], np.uint8)[LABELS])
    (case,) = flat(tmp_path).cases
    load_label = Compose(
        [
            LoadImaged("label", reader=ScanReader, label=True, ensure_channel_first=True),
            MapLabelValued("label", [0, 128, 255], [2, 1, 0]),
            CheckLabeld("label", values=[1, 2]),
        ]
    )
    np.testing.assert_array_equal(load_label(case)["label"].numpy(), LABELS[None])


def test_predictions_come_back_to_the_size_of_the_picture(tmp_path):
    scene = np.zeros((40, 64, 3), np.uint8)
    scene[10:30, 8:56] = np.random.default_rng(0).integers(60, 250, (20, 48, 3))
    save(tmp_path / "a.png", scene)
    (case,) = flat(tmp_path).cases
    preprocessing = Compose(
        [
            LoadImaged("image", reader=ScanReader, ensure_channel_first=True),
            CheckScand("image", channels=3, spatial_dims=2),
            CropForegroundd("image", source_key="image", allow_smaller=True),
            Resized("image", (32, 32), mode="bilinear"),
            ScaleIntensityd("image", minv=0.0, maxv=1.0),
        ]
    )
    item = preprocessing(case)
    assert item["image"].shape == (3, 32, 32) and item["image"].min() == 0 and item["image"].max() == 1
    item["pred"] = MetaTensor(item["image"][:1] * 0 + 1)
    inverted = Invertd("pred", preprocessing, orig_keys="image", nearest_interp=False)(item)["pred"]
    prediction = inverted[0].round().numpy().astype(np.uint8)
    expected = (scene.max(axis=-1) > 0).astype(np.uint8)
    np.testing.assert_array_equal(prediction, expected)
    write_png(prediction, case, tmp_path / "out.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out.png")), expected)


def test_a_written_label_map_shows_colours_holds_its_values_and_nothing_of_the_picture(tmp_path):
    text = PngInfo()
    text.add_text("Patient", "Erika Mustermann")
    save(tmp_path / "in" / "a.png", COLOUR, pnginfo=text)
    (case,) = flat(tmp_path / "in").cases
    for name in ("one.png", "two.png"):
        write_png(LABELS, case, tmp_path / name)
    content = (tmp_path / "one.png").read_bytes()
    assert content == (tmp_path / "two.png").read_bytes() and b"Erika" not in content
    image = Image.open(tmp_path / "one.png")
    assert image.mode == "P" and image.size == (9, 6) and not image.info
    np.testing.assert_array_equal(np.asarray(image), LABELS)
    shown = np.asarray(image.convert("RGB"), int)
    assert not shown[LABELS == 0].any() and np.ptp(shown[LABELS > 0], axis=-1).min() > 100
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) == 3
    np.testing.assert_array_equal(load(tmp_path / "one.png", label=True)[0].numpy(), LABELS)


def test_what_cannot_be_written_is_refused(tmp_path):
    save(tmp_path / "a.png")
    (case,) = flat(tmp_path).cases
    with pytest.raises(ValueError, match="shape"):
        write_png(LABELS.T, case, tmp_path / "out.png")
    with pytest.raises(ValueError, match="integers"):
        write_png(LABELS / 2, case, tmp_path / "out.png")
    (tmp_path / "a.png").unlink()
    with pytest.raises(GrataError, match="does not exist"):
        write_png(LABELS, case, tmp_path / "out.png")
    assert not list(tmp_path.iterdir())


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("no picture")


def several_pages(path):
    Image.fromarray(COLOUR).save(path, format="TIFF", save_all=True, append_images=[Image.fromarray(COLOUR)] * 2)


def bomb(path):
    Image.new("1", (20_000, 20_000)).save(path, format="PNG")


def cut_header(path):
    save(path)
    path.write_bytes(path.read_bytes()[:20])


def kind_of_pixels(path):
    Image.new("LAB", (5, 5)).save(path, format="TIFF")


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("bad.png", empty, r"empty \(0 bytes\)"),
        ("bad.png", text, "not a PNG, JPEG, TIFF or BMP in spite of its name"),
        ("bad.tif", several_pages, "3 pages"),
        ("bad.png", bomb, "more than 67 megapixels"),
        ("bad.jpg", cut_header, "damaged"),
        ("bad.png", cut_header, "damaged"),
    ],
)
def test_a_faulty_picture_is_a_fault_and_the_others_stay(tmp_path, name, spoil, message):
    spoil(tmp_path / name)
    save(tmp_path / "good.png")
    found = flat(tmp_path)
    assert [case["case"] for case in found.cases] == ["good"]
    (fault,) = found.faults
    assert fault.case == "bad"
    assert re.search(message, fault.message), fault.message
    assert f"'{name}'" in fault.message and str(tmp_path) not in fault.message


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp"])
def test_a_truncated_picture_is_reported_when_it_is_read(tmp_path, name):
    path = save(tmp_path / name, np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(GrataError, match=rf"{name}' cannot be read.*(Copy or export it again)"):
        load(path)


def test_pixels_of_an_unknown_kind_are_refused(tmp_path):
    kind_of_pixels(tmp_path / "a.tif")
    with pytest.raises(GrataError, match=r"a\.tif' has pixels of a kind \(LAB\)"):
        load(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("values", "channels", "message"),
    [
        (GREY, 3, r"grey \(1 channel\).*needs colour \(3\)"),
        (COLOUR, 1, r"in colour \(3 channels\).*needs grey values \(1\)"),
    ],
)
def test_grey_is_not_taken_for_colour_nor_colour_for_grey(tmp_path, values, channels, message):
    image = load(save(tmp_path / "a.png", values))
    with pytest.raises(GrataError, match=rf"a\.png' is {message}"):
        CheckScand("image", channels=channels, spatial_dims=2)({"image": image})


def test_a_bundle_for_volumes_ignores_pictures_and_says_so_when_there_is_nothing_else(tmp_path, scans):
    save(tmp_path / "a.png")
    with pytest.raises(GrataError, match=r"dataset_dir: .*holds pictures \(1\).*needs volumes"):
        discover(tmp_path)
    scans.nifti(tmp_path / "b.nii.gz")
    assert [case["case"] for case in discover(tmp_path).cases] == ["b"]


def test_a_bundle_for_pictures_does_not_ask_for_more_slices(tmp_path, scans):
    scans.save(scans.series(slices=1), tmp_path)
    (fault,) = flat(tmp_path).faults
    assert "needs 2D images. Convert it to PNG or NIfTI" in fault.message


def test_a_bundle_for_pictures_says_what_it_did_not_find(tmp_path):
    with pytest.raises(GrataError, match="no picture, no NIfTI file and no DICOM image"):
        flat(tmp_path)


def test_pictures_and_slices_share_one_list_of_ids(tmp_path, scans):
    for name in ("a.png", "x/a.png", "b.png", "b.jpg"):
        save(tmp_path / name)
    scans.nifti(tmp_path / "c.nii.gz", (9, 8, 1))
    save(tmp_path / "c.png")
    cases = flat(tmp_path).cases
    assert len({case["case"] for case in cases}) == len(cases) == 6
    assert {case["format"] for case in cases} == {"nifti", "picture"}


def test_a_slice_is_read_in_two_dimensions(tmp_path, scans):
    for shape in ((9, 8), (9, 8, 1)):
        assert load(scans.nifti(tmp_path / "a.nii.gz", shape)).shape == (1, 9, 8)
    assert load(scans.nifti(tmp_path / "a.nii.gz", (9, 8, 1, 2))).shape == (2, 9, 8)
    scans.nifti(tmp_path / "across" / "a.nii.gz", (9, 1, 8))
    (fault,) = flat(tmp_path / "across").faults
    assert "across its second axis" in fault.message


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/a.jpg", "labels/a.png"),
        ("images/a.png", "labels/a_mask.gif"),
        ("images/a.png", "masks/a.tif"),
        ("image/a.png", "mask/a.png"),
        ("Image/a.png", "Mask/a.bmp"),
        ("image/a.png", "masks/a.png"),
        ("imagesTr/a.png", "labelsTr/a.png"),
        ("site/image/sub/a.png", "site/mask/sub/a.png"),
        ("p/a.jpg", "p/a_seg.png"),
        ("p/a.jpg", "p/a_label.gif"),
        ("p/a.jpg", "p/a-mask.tif"),
    ],
)
def test_labels_are_matched_by_name_whatever_their_extension(tmp_path, image, label):
    save(tmp_path / image)
    save(tmp_path / label, LABELS)
    (case,) = flat(tmp_path).cases
    assert case["image"] == str(tmp_path / image) and case["label"] == str(tmp_path / label)


def test_labels_dir_holds_labels_of_both_formats(tmp_path, scans):
    save(tmp_path / "scans" / "a.jpg")
    scans.nifti(tmp_path / "scans" / "b.nii.gz", (9, 8))
    for name in ("a", "b"):
        save(tmp_path / "truth" / f"{name}.png", LABELS)
        scans.nifti(tmp_path / "truth" / f"{name}.nii.gz", (9, 8))
    cases = flat(tmp_path / "scans", labels_dir=tmp_path / "truth").cases
    assert [os.path.basename(case["label"]) for case in cases] == ["a.png", "b.nii.gz"]
    shutil.rmtree(tmp_path / "truth")
    save(tmp_path / "truth" / "other.png", LABELS)
    (tmp_path / "scans" / "b.nii.gz").unlink()
    with pytest.raises(GrataError, match=r"labels_dir: .*for example 'a\.png'"):
        flat(tmp_path / "scans", labels_dir=tmp_path / "truth")


def test_a_label_of_another_size_is_a_fault(tmp_path):
    save(tmp_path / "images" / "a.jpg", COLOUR, orientation=6)
    save(tmp_path / "labels" / "a.png", LABELS)
    (fault,) = flat(tmp_path).faults
    assert "has 9 × 6 pixels, but its image 'images/a.jpg' has 6 × 9" in fault.message


@pytest.mark.parametrize("folder", [".", "site"])
def test_beside_a_folder_of_images_no_picture_is_taken(tmp_path, folder):
    for name in ("images/a.png", "fov/a.png", "fov/deep/b.png", "overview.png", "labels/a.png"):
        save(tmp_path / folder / name, LABELS)
    save(tmp_path / "elsewhere" / "c.png")
    expected = ["a"] if folder == "." else ["a", "c"]
    assert [case["case"] for case in flat(tmp_path).cases] == expected


def test_figures_and_segmentations_of_an_earlier_run_are_not_pictures(tmp_path):
    save(tmp_path / "a.png")
    for name in ("overview.png", "figures/a.png", "segmentations/a.png"):
        save(tmp_path / "output" / name)
    (tmp_path / "output" / "journal.jsonl").touch()
    assert [case["case"] for case in flat(tmp_path).cases] == ["a"]


def write(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return path


def test_lists_of_cases(tmp_path, scans):
    for name in ("A/image/x.png", "A/image/y.png", "B/image/x.jpg", "B/image/unlisted.png"):
        save(tmp_path / name)
        save(tmp_path / name.replace("image", "mask").replace("jpg", "png"), LABELS)
    scans.nifti(tmp_path / "C" / "z.nii.gz", (9, 8))
    scans.nifti(tmp_path / "C" / "other.nii.gz", (9, 8))
    write(tmp_path / "A.csv", ["Image,MASK", "A/image/x.png,A/mask/x.png", "A/image/y.png,", ""])
    other = write(
        tmp_path / "elsewhere.csv",
        ["grade,mask,image", r"3,B\mask\x.png,B\image\x.jpg", "1,C/other.nii.gz,C/z.nii.gz", ",,A/image/y.png"],
    )
    cases = flat(tmp_path, cases_file=["A.csv", str(other)]).cases
    found = {
        c["case"]: tuple(os.path.relpath(c[key], tmp_path) for key in ("image", "label") if key in c) for c in cases
    }
    assert found == {
        "A-image-x": ("A/image/x.png", "A/mask/x.png"),
        "y": ("A/image/y.png",),
        "B-image-x": ("B/image/x.jpg", "B/mask/x.png"),
        "z": ("C/z.nii.gz", "C/other.nii.gz"),
    }
    assert len(flat(tmp_path, cases_file="A.csv").cases) == 2


def test_a_list_gives_the_site_of_each_image(tmp_path):
    for name in ("a", "b", "c"):
        save(tmp_path / f"{name}.png")
    write(tmp_path / "list.csv", ["image,mask,Site", "a.png,,north", "b.png,,south", "c.png,,"])
    found = discover(tmp_path, cases_file="list.csv", spatial_dims=2, site="elsewhere").cases
    assert {case["case"]: case["site"] for case in found} == {"a": "north", "b": "south", "c": "elsewhere"}
    write(tmp_path / "other.csv", ["image,mask,site", "a.png,,south"])
    with pytest.raises(GrataError, match="a second time, with another site"):
        discover(tmp_path, cases_file=["list.csv", "other.csv"], spatial_dims=2)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["x,y.png"], "no column image and no column mask"),
        (["image", "a.png"], "no column mask"),
        (["image,mask"], "lists no image"),
        (["image,mask", ",a.png"], "line 2: the column image is empty"),
        (["image,mask", "../a.png,"], "line 2, image: '../a.png' is not in dataset_dir"),
        (["image,mask", "a.png,", "a.png,b.png"], "line 3: 'a.png' is listed a second time, with another mask"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(tmp_path, lines, message):
    save(tmp_path / "a.png")
    write(tmp_path / "list.csv", lines)
    with pytest.raises(GrataError, match=message):
        flat(tmp_path, cases_file="list.csv")


def test_a_list_that_is_missing_or_given_with_labels_dir_is_refused(tmp_path):
    with pytest.raises(GrataError, match=r"cases_file: '.*list\.csv' does not exist"):
        flat(tmp_path, cases_file="list.csv")
    with pytest.raises(GrataError, match="cases_file, labels_dir"):
        flat(tmp_path, cases_file="list.csv", labels_dir=tmp_path)
    with pytest.raises(GrataError, match=r"cases_file: must be the name of a CSV file, got 20240611 \(int\)"):
        flat(tmp_path, cases_file=20240611)


def test_what_a_list_names_wrongly_is_a_fault(tmp_path, scans):
    save(tmp_path / "good.png")
    save(tmp_path / "lonely.png")
    scans.nifti(tmp_path / "label.nii.gz", (9, 8))
    save(tmp_path / "other.png")
    (tmp_path / "notes.txt").write_text("no image")
    rows = ["gone.png,", "lonely.png,lost.png", "good.png,", "notes.txt,", "other.png,label.nii.gz"]
    write(tmp_path / "list.csv", ["image,mask", *rows])
    found = flat(tmp_path, cases_file="list.csv")
    assert [case["case"] for case in found.cases] == ["good"]
    messages = {fault.case: fault.message for fault in found.faults}
    assert "'gone.png' is in the list of cases but does not exist" in messages["gone"]
    assert "'lost.png' is in the list of cases but does not exist" in messages["lonely"]
    assert "the extension of neither a volume file nor a picture" in messages["notes"]
    assert "is not a picture" in messages["other"]
    (fault, *_) = discover(tmp_path, cases_file=write(tmp_path / "b.csv", ["image,mask", "good.png,"])).faults
    assert "a volume is needed" in fault.message
