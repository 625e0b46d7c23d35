import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from monai.transforms import LoadImage, Orientation
from PIL import Image
from scipy.ndimage import binary_dilation, binary_erosion

from grata.data import ScanReader, discover
from grata.data.dicom import read_volume

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = ROOT / "bundles"
# Scripts import what they share from beside them.
sys.path.insert(0, str(ROOT / "scripts"))


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
    module.main()


def hashes_of(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def polyps(tmp_path_factory):
    """The script's own run: folders of the pictures and of the masks."""
    folder = tmp_path_factory.mktemp("polyps")
    script("make_polyp_phantoms").main(str(folder / "scans"), str(folder / "labels"))
    return folder / "scans", folder / "labels"


@pytest.fixture(scope="module")
def hearts(tmp_path_factory):
    """The script's own run: folders of the scans and of the label maps."""
    folder = tmp_path_factory.mktemp("hearts")
    script("make_cardiac_phantoms").main(str(folder / "scans"), str(folder / "labels"))
    return folder / "scans", folder / "labels"


def cine(scans):
    """Return the headers of the cine series by place and phase, and the paths in the same order."""
    instances = [(pydicom.dcmread(path), path) for path in (scans / "dicom" / "cine").glob("*.dcm")]
    instances.sort(key=lambda item: item[0].InstanceNumber)
    return [instances[first : first + 4] for first in range(0, len(instances), 4)]


def test_fetch_hippocampus_lays_out_by_stored_type(tmp_path, monkeypatch, capsys):
    task = tmp_path / "download" / "Task04_Hippocampus"
    properties = ("name", "description", "reference", "licence", "tensorImageSize")
    settings = dict.fromkeys(properties, "x") | {"modality": {"0": "MRI"}, "labels": {"0": "background"}}
    training = []
    for folder in ("imagesTr", "labelsTr"):
        (task / folder).mkdir(parents=True)
    for number, dtype in enumerate((np.float32, np.uint8, np.float32, np.uint8, np.float32, np.int16)):
        name = f"hippocampus_{number:03d}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(np.full((3, 3, 3), number, dtype), np.eye(4)), task / "imagesTr" / name)
        nibabel.save(nibabel.Nifti1Image(np.zeros((3, 3, 3), np.uint8), np.eye(4)), task / "labelsTr" / name)
        training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    settings |= {"training": training, "test": [], "numTraining": 6, "numTest": 0}
    (task / "dataset.json").write_text(json.dumps(settings))
    run(script("fetch_hippocampus"), monkeypatch, "--output_dir", tmp_path / "out", "--download_dir", task.parent)
    assert "source: 3 cases, target: 2 cases, left out: 1 cases" in capsys.readouterr().out
    for site, numbers in (("source", (0, 2, 4)), ("target", (1, 3))):
        cases = discover(tmp_path / "out" / site).cases
        assert [case["case"] for case in cases] == [f"hippocampus_{number:03d}" for number in numbers]
        assert all("label" in case for case in cases)


def test_sample_scans_of_the_bundle_can_be_used():
    found = discover(ROOT / "bundles" / "hippocampus_mri_segmentation" / "sample_scans")
    assert not found.faults
    assert sorted(case["format"] for case in found.cases) == ["dicom", "nifti", "nifti"]
    load, turn = LoadImage(reader=ScanReader, ensure_channel_first=True), Orientation("RAS", labels=None)
    images = {case["case"]: turn(load(case["image"])) for case in found.cases}
    (series,) = (image for name, image in images.items() if name.startswith("mr-"))
    np.testing.assert_array_equal(series, images["icbm152_right"])
    np.testing.assert_allclose(series.affine, images["icbm152_right"].affine)


def test_make_sample_scans_gives_the_same_bytes_again(tmp_path, monkeypatch):
    values = np.random.default_rng(0).integers(0, 255, (100, 60, 45)).astype(np.uint8)
    affine = np.diag([1.0, 1, 1, 1])
    affine[:3, 3] = -50, -50, -35
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "template.nii.gz")
    module = script("make_sample_scans")
    for name in ("a", "b"):
        run(module, monkeypatch, "--template", tmp_path / "template.nii.gz", "--output_dir", tmp_path / name)
    assert hashes_of(tmp_path / "a") == hashes_of(tmp_path / "b")
    assert len(hashes_of(tmp_path / "a")) == 2 + 51 + 1
    cases = discover(tmp_path / "a").cases
    image = LoadImage(reader=ScanReader)(cases[0]["image"])
    world = np.array([-20.0, -30, 0])
    index = tuple(np.rint(nibabel.affines.apply_affine(np.linalg.inv(image.affine), world)).astype(int))
    assert image[index] == values[tuple((world - affine[:3, 3]).astype(int))]


def test_template_must_be_found(monkeypatch):
    module = script("make_sample_scans")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="--template"):
        module.find_template()


def test_fundus_and_polyp_pictures_are_what_the_scripts_draw(tmp_path, polyps):
    script("make_fundus_phantoms").main(str(tmp_path))
    drawn = {path: BUNDLES / path.relative_to(tmp_path) for path in tmp_path.rglob("*.jpg")}
    drawn |= {
        path: BUNDLES / "polyp_endoscopy_segmentation" / "sample_scans" / path.name for path in polyps[0].iterdir()
    }
    assert len(drawn) == 6
    for path, shipped in drawn.items():
        # Another JPEG library may round differently.
        a, b = (np.asarray(Image.open(file)).astype(float) for file in (path, shipped))
        assert a.shape == b.shape and abs(a - b).mean() < 1, path.name


def test_polyp_phantoms_are_drawn_the_same_again_with_or_without_masks(tmp_path, polyps):
    script("make_polyp_phantoms").main(str(tmp_path))
    assert hashes_of(tmp_path) == hashes_of(polyps[0])


@pytest.mark.parametrize(("name", "size"), [("phantom_tower_a", (352, 352)), ("phantom_tower_b", (384, 320))])
def test_polyps_lie_in_the_lit_field_and_their_masks_on_them(polyps, name, size):
    file = polyps[0] / f"{name}.jpg"
    picture, label = Image.open(file), Image.open(polyps[1] / f"{name}.png")
    assert picture.mode == "RGB" and label.mode == "L" and picture.size == label.size == size
    assert file.stat().st_size < 80_000
    values, mask = np.asarray(picture).astype(float), np.asarray(label)
    assert set(np.unique(mask)) == {0, 255} and 0.03 < (mask > 0).mean() < 0.2
    red, darkest = values[..., 0], values.max(-1)[[0, -1]][:, [0, -1]]
    assert darkest.max() < 30, "the corners are not black"
    assert red[mask > 0].min() > 40
    # Right around its foot the wall is dark, so a mask that is moved or too large does not fit.
    inside, outside = binary_erosion(mask > 0, iterations=6), binary_dilation(mask > 0, iterations=6) & (mask == 0)
    assert np.median(red[inside]) > 1.1 * np.median(red[outside])


def test_cardiac_phantoms_are_drawn_the_same_again_and_are_those_of_the_bundle(tmp_path, hearts):
    script("make_cardiac_phantoms").main(str(tmp_path))
    assert hashes_of(tmp_path) == hashes_of(hearts[0])
    shipped = BUNDLES / "cardiac_cine_mri_segmentation" / "sample_scans"
    assert set(hashes_of(shipped)) == set(hashes_of(tmp_path))
    assert sum(path.stat().st_size for path in shipped.rglob("*") if path.is_file()) < 1_500_000
    for name in ("phantom_ED", "phantom_ES"):
        a, b = (nibabel.load(folder / "nifti" / f"{name}.nii.gz") for folder in (shipped, tmp_path))
        # Another numpy may round differently.
        np.testing.assert_allclose(a.get_fdata(), b.get_fdata(), atol=1)
        np.testing.assert_allclose(a.affine, b.affine)


def test_cardiac_phantoms_show_ventricles_that_contract(hearts):
    volumes = {}
    for name in ("phantom_ED", "phantom_ES"):
        image = nibabel.load(hearts[0] / "nifti" / f"{name}.nii.gz")
        label = nibabel.load(hearts[1] / f"{name}.nii.gz")
        assert image.shape == label.shape == (192, 192, 10) and image.get_data_dtype() == np.int16
        np.testing.assert_allclose(image.header.get_zooms(), (1.3, 1.3, 9))
        np.testing.assert_allclose(image.affine, label.affine)
        values, labels = image.get_fdata(), np.asarray(label.dataobj)
        assert set(np.unique(labels)) == {0, 1, 2, 3}
        # Blood is bright, also beside the papillary muscles and the trabeculae.
        signal = [np.median(values[labels == number]) for number in (1, 2, 3)]
        assert min(signal[0], signal[2]) > 2 * signal[1] > 0
        sizes = np.array([(labels == number).sum((0, 1)) for number in (1, 2, 3)])
        present = sizes.min(0) > 0
        np.testing.assert_array_equal(present, sizes.max(0) > 0)
        # From the apex to the base every part grows.
        assert (np.diff(sizes[0, present]) >= 0).all() and (np.diff(sizes[2, present]) >= 0).all()
        volumes[name] = sizes.sum(1)
    ejected = 1 - volumes["phantom_ES"] / volumes["phantom_ED"]
    assert 0.45 < ejected[0] < 0.75 and 0.35 < ejected[2] < 0.75
    assert abs(ejected[1]) < 0.1


def test_cine_phantom_is_one_series_with_every_phase_at_every_place(hearts):
    places = cine(hearts[0])
    headers = [header for place in places for header, _ in place]
    assert len(places) == 8 and len({header.SOPInstanceUID for header in headers}) == len(headers) == 32
    for name in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
        (value,) = {header[name].value for header in headers}
        assert pydicom.uid.UID(value).is_valid
    assert {str(header.PatientName) for header in headers} == {header.PatientID for header in headers} == {"PHANTOM"}
    for place in places:
        assert len({tuple(header.ImagePositionPatient) for header, _ in place}) == 1
    assert len({tuple(place[0][0].ImagePositionPatient) for place in places}) == 8
    times = np.array([[header.TriggerTime for header, _ in place] for place in places], float)
    assert (np.diff(times, axis=1) > 0).all()
    # Breath-holds differ, but by less than phases do.
    spread = np.ptp(times[:, 1:], axis=0)
    assert (spread > 0).all() and (spread < np.diff(times, axis=1).min()).all()
    files = [path.stat().st_size for path in (hearts[0] / "dicom" / "cine").iterdir()]
    assert max(files) < 30_000


def test_label_maps_of_the_cine_phantom_lie_where_its_phases_do(hearts):
    places, cavities = cine(hearts[0]), []
    for phase in range(4):
        volume = read_volume([place[phase][1] for place in places])
        label = nibabel.load(hearts[1] / f"cine_{phase + 1}.nii.gz")
        labels = np.asarray(label.dataobj)
        np.testing.assert_allclose(volume.get_affine("RAS"), label.affine, atol=1e-3)
        signal = [np.median(volume.array[labels == number]) for number in (1, 2, 3)]
        assert min(signal[0], signal[2]) > 2 * signal[1] > 0
        cavities.append((labels == 1).sum())
    assert np.argmax(cavities) == 0 and np.argmin(cavities) == 2
