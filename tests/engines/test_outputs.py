from types import SimpleNamespace

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from grata.bundles import CleanRegionsd
from grata.data import discover
from grata.engines import OutputHandler
from grata.errors import GrataError
from grata.report import write_volumes

STRUCTURE, PART = ["91723000", "SCT", "Anatomical Structure"], ["5366008", "SCT", "Hippocampus"]
DISC = {"value": 1, "label": "Optic disc", "category": STRUCTURE, "type": PART, "includes": [2]}
CUP = {"value": 2, "label": "Optic cup", "category": STRUCTURE, "type": PART}


def nested(shape):
    """Return a disc (value 1) that contains a cup (value 2)."""
    labels = np.zeros(shape, np.uint8)
    labels[(slice(3, 11),) * len(shape)] = 1
    labels[(slice(5, 8),) * len(shape)] = 2
    return labels


def write(handler, case, label_maps, image, cleaning=dict):
    """Call the handler as an evaluator does, with one decollated item."""
    maps = {key: MetaTensor(torch.as_tensor(values.astype(np.float32))[None]) for key, values in label_maps.items()}
    maps = cleaning(maps)
    state = SimpleNamespace(batch=[{"case": case["case"], "original": image}], output=[maps])
    handler.write(SimpleNamespace(state=state))


@pytest.fixture
def picture_case(tmp_path):
    (tmp_path / "in" / "images").mkdir(parents=True)
    (tmp_path / "in" / "labels").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (14, 20, 3), np.uint8)).save(tmp_path / "in/images/a.png")
    Image.fromarray(nested((14, 20))).save(tmp_path / "in/labels/a.png")
    (case,) = discover(tmp_path / "in", spatial_dims=2).cases
    return case


def handler_for(case, folder, **options):
    return OutputHandler([case], folder, [DISC, CUP], "grata", **options)


def colour_image():
    return MetaTensor(torch.rand(3, 14, 20) * 255, affine=torch.eye(4))


def test_a_structure_that_cleaning_takes_away_is_said(tmp_path, picture_case, capsys):
    """The verdict is that of the segmentation before it."""
    cleaning = CleanRegionsd(["pred", "source_pred"], [DISC, CUP], smallest=20)
    source = np.zeros((14, 20), np.uint8)
    source[2, 2] = 1
    maps = {"pred": nested((14, 20)), "source_pred": source, "label": nested((14, 20))}
    write(handler_for(picture_case, tmp_path / "out"), picture_case, maps, colour_image(), cleaning)
    out = capsys.readouterr().out
    # the cup has 9 pixels; what the source network's loses is not written
    name = picture_case["case"]
    assert f"{name}: the cleaning of label maps left nothing of Optic cup: see keep_largest, smallest" in out
    assert "Optic disc" not in out
    assert set(np.unique(Image.open(tmp_path / "out/segmentations" / f"{name}.png"))) == {0, 1}


@pytest.mark.parametrize("scored", [None, ["Optic disc"]])
def test_a_picture_leaves_a_palette_png_a_figure_and_its_measures_in_pixels(tmp_path, picture_case, scored):
    handler = handler_for(picture_case, tmp_path / "out", scored=scored)
    label = nested((14, 20))
    source = np.where(label == 2, 1, label)
    write(handler, picture_case, {"pred": label, "source_pred": source, "label": label}, colour_image())
    files = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
    assert files == ["figures/a.png", "segmentations/a.png"]
    segmentation = Image.open(tmp_path / "out/segmentations/a.png")
    assert segmentation.mode == "P"
    np.testing.assert_array_equal(np.asarray(segmentation), label)

    assert [(row["variant"], row["class"], row["area_px"]) for row in handler.volumes["a"]] == [
        ("source", "Optic disc", 64),
        ("source", "Optic cup", 0),
        ("grata", "Optic disc", 64),
        ("grata", "Optic cup", 9),
    ]
    write_volumes(handler.volumes["a"], tmp_path / "volumes.csv")
    assert (tmp_path / "volumes.csv").read_text().splitlines()[0] == "case,site,variant,class,area_px"
    assert [(row["variant"], row["class"], row["dice"]) for row in handler.scores["a"]] == [
        row
        for row in (
            ("source", "Optic disc", 1.0),
            ("source", "Optic cup", 0.0),
            ("grata", "Optic disc", 1.0),
            ("grata", "Optic cup", 1.0),
        )
        if scored is None or row[1] in scored
    ]
    assert {row["unit"] for row in handler.scores["a"]} == {"px"}

    handler.remove("a")
    assert not list((tmp_path / "out").rglob("*.*")) and not handler.scores and not handler.volumes


@pytest.mark.parametrize("shape", [(14, 20), (14, 20, 1)])
def test_a_slice_leaves_nifti_of_its_own_shape_and_is_measured_in_millimetres(tmp_path, shape):
    affine = np.diag([-0.5, 2.0, 5.0, 1.0])
    scan = nibabel.Nifti1Image(np.random.default_rng(0).normal(size=shape).astype(np.float32), affine)
    (tmp_path / "in").mkdir()
    nibabel.save(scan, tmp_path / "in/a.nii.gz")
    nibabel.save(nibabel.Nifti1Image(nested((14, 20)).reshape(shape), affine), tmp_path / "in/a_seg.nii.gz")
    (case,) = discover(tmp_path / "in", spatial_dims=2).cases
    handler = handler_for(case, tmp_path / "out")
    image = MetaTensor(torch.rand(1, 14, 20), affine=torch.as_tensor(affine))
    write(handler, case, {"pred": np.roll(nested((14, 20)), 1, axis=0), "label": nested((14, 20))}, image)
    written = nibabel.load(tmp_path / "out/segmentations/a.nii.gz")
    assert written.shape == shape
    np.testing.assert_array_equal(written.affine, affine)
    assert (tmp_path / "out/figures/a.png").is_file()
    disc, cup = handler.volumes["a"]
    assert (disc["area_px"], disc["area_mm2"], cup["area_mm2"]) == (64, 64.0, 9.0)
    assert handler.scores["a"][0]["hd95"] == pytest.approx(0.5) and handler.scores["a"][0]["unit"] == "mm"


def series(folder):
    """Write a small series: 14 slices of 14 rows and 20 columns."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(14):
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.MRImageStorage, f"1.2.3.{index + 1}"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.4", "1.2.5", "1.2.6"
        dataset.Modality, dataset.Manufacturer = "MR", "Acme"
        dataset.SeriesNumber, dataset.InstanceNumber = 1, index + 1
        dataset.PatientName, dataset.PatientID = "A", "B"
        dataset.PixelSpacing, dataset.SliceThickness = [1, 1], 1
        dataset.ImageOrientationPatient, dataset.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, index]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
        dataset.Rows, dataset.Columns = 14, 20
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
        dataset.PixelData = rng.integers(0, 900, (14, 20)).astype(np.uint16).tobytes()
        dataset.save_as(folder / f"{index}.dcm", enforce_file_format=True)


def test_a_dicom_seg_holds_a_segment_with_all_that_it_includes(tmp_path):
    series(tmp_path / "in")
    (case,) = discover(tmp_path / "in").cases
    handler = handler_for(case, tmp_path / "out")
    labels = nested((20, 14, 14))
    write(handler, case, {"pred": labels}, MetaTensor(torch.rand(1, 20, 14, 14), affine=torch.eye(4)))
    segmentation = highdicom.seg.segread(tmp_path / "out/segmentations" / f"{case['case']}.seg.dcm")
    masks = segmentation.get_volume().array
    assert segmentation.SegmentsOverlap == "YES"
    sizes = [int((labels > 0).sum()), int((labels == 2).sum())]
    assert [int(mask.sum()) for mask in np.moveaxis(masks, -1, 0)] == sizes
    assert handler.volumes[case["case"]][0]["voxels"] == int((labels > 0).sum())


@pytest.mark.parametrize(
    ("segments", "scored", "message"),
    [
        ([{**DISC, "includes": [3]}, CUP], None, r"segments#0#includes: .* \(2\), got \[3\]"),
        ([{**DISC, "includes": [1]}, CUP], None, "segments#0#includes"),
        ([{**DISC, "includes": 2}, CUP], None, "segments#0#includes"),
        ([DISC, {**CUP, "contains": [1]}], None, "segments#1#contains: there is no such key. The keys are"),
        ([DISC, CUP], ["Optic nerve"], r"scored: .*\(Optic disc, Optic cup\), got \['Optic nerve'\]"),
        ([DISC, CUP], "Optic disc", "scored: must be a list"),
        ([DISC, CUP], [], "scored: must be a list"),
    ],
)
def test_segments_and_scored_are_checked(tmp_path, segments, scored, message):
    with pytest.raises(GrataError, match=message):
        OutputHandler([], tmp_path, segments, "grata", scored=scored)
