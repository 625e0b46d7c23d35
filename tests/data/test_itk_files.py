"""MetaImage and NRRD: what ITK writes is read as ITK reads it, and what is not complete is refused."""

import gzip
import os
import resource
import sys
import zlib

import itk
import numpy as np
import pytest

from grata.data import ScanReader, discover, write_itk
from grata.data.itk_files import read_itk, save_itk
from grata.errors import GrataError

TURN = np.array([[0.36, 0.48, -0.8], [-0.8, 0.6, 0.0], [0.48, 0.64, 0.6]])
KINDS = {"UC": np.uint8, "SS": np.int16, "US": np.uint16, "F": np.float32, "D": np.float64}


def write(path, dtype=np.int16, shape=(9, 8, 7), direction=TURN, compression=False, seed=0):
    """Write an oblique volume with ITK, and return its values in the order of the axes."""
    values = np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)
    image = itk.image_from_array(np.ascontiguousarray(values.T))
    image.SetSpacing([0.5, 1.25, 2.5])
    image.SetOrigin([-30.0, -42.0, 17.0])
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(direction)))
    path.parent.mkdir(parents=True, exist_ok=True)
    itk.imwrite(image, str(path), compression=compression)
    return values


def points(image, indices):
    return [np.array(image.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1] for index in indices]


@pytest.mark.parametrize("ending", [".mha", ".mhd", ".nrrd", ".nhdr"])
def test_what_itk_writes_is_read_as_itk_reads_it(tmp_path, ending):
    for number, (kind, dtype) in enumerate(KINDS.items()):
        direction = TURN if number % 2 else np.diag([-1.0, -1.0, 1.0])[:, [1, 2, 0]]
        write(tmp_path / f"{kind}{ending}", dtype, direction=direction, compression=number < 3)
    found = discover(tmp_path)
    assert not found.faults
    assert not found.notes
    assert [case["case"] for case in found.cases] == sorted(KINDS)
    for case in found.cases:
        assert case["format"] == "itk"
        array, meta = ScanReader().get_data([case["image"]])
        reference = itk.imread(case["image"], itk.F)
        np.testing.assert_array_equal(array, itk.array_from_image(reference).T)
        for index, point in zip(indices := [(0, 0, 0), (8, 7, 6), (3, 0, 5)], points(reference, indices), strict=True):
            np.testing.assert_allclose((meta["affine"] @ [*index, 1.0])[:3], point, atol=1e-4)


def header(path, change):
    """Change the text of a header."""
    content = path.read_bytes()
    path.write_bytes(change(content))
    return path


@pytest.mark.parametrize(
    ("ending", "old", "new"),
    [
        (".nrrd", b"space: left-posterior-superior", b"space: right-anterior-superior"),
        (".nrrd", b"space: left-posterior-superior", b"space: LAS"),
        (".nrrd", b"encoding: raw", b"encoding: RAW\n# by hand\nwho:=me"),
        (".nhdr", b"kinds: domain", b"content: x\nkinds: domain"),
        (".mha", b"BinaryDataByteOrderMSB = False", b"Comment = a b\nElementByteOrderMSB = False"),
    ],
)
def test_other_spellings_are_read_as_itk_reads_them(tmp_path, ending, old, new):
    path = tmp_path / f"a{ending}"
    write(path)
    header(path, lambda content: content.replace(old, new))
    array, meta = ScanReader().get_data([str(path)])
    reference = itk.imread(str(path), itk.F)
    np.testing.assert_array_equal(array, itk.array_from_image(reference).T)
    np.testing.assert_allclose((meta["affine"] @ [8, 7, 6, 1.0])[:3], points(reference, [(8, 7, 6)])[0], atol=1e-4)


def test_channels_are_read_like_those_of_nifti(tmp_path):
    values = np.random.default_rng(0).integers(0, 99, (3, 9, 8, 7)).astype(np.uint8)
    for name in ("a.mha", "a.nrrd"):
        image = itk.image_from_array(
            np.ascontiguousarray(np.moveaxis(values, 0, -1).transpose(2, 1, 0, 3)), is_vector=True
        )
        itk.imwrite(image, str(tmp_path / name))
        array, _ = ScanReader().get_data([str(tmp_path / name)])
        np.testing.assert_array_equal(array, np.moveaxis(values, 0, -1))


WRONG = [
    (".mha", lambda c: c.replace(b"ElementSpacing = 0.5 1.25 2.5\n", b""), "no ElementSpacing"),
    (".mha", lambda c: c.replace(b"Offset = ", b"Offsets = "), "no Offset"),
    (".mhd", lambda c: c.replace(b"TransformMatrix", b"Transform"), "no TransformMatrix"),
    (".mhd", lambda c: c.replace(b"Matrix = ", b"Matrix = 1"), "no rotation|perpendicular"),
    (".mha", lambda c: c.replace(b"0.5 1.25 2.5", b"0 1.25 2.5"), "zero"),
    (".mha", lambda c: c.replace(b"0.5 1.25 2.5", b"nan 1.25 2.5"), "finite"),
    (".mha", lambda c: c.replace(b"NDims = 3", b"NDims = 99999999"), "axes"),
    (".mha", lambda c: c.replace(b"DimSize = 9 8 7", b"DimSize = 9 8 -7"), "no voxels"),
    (".mha", lambda c: c.replace(b"DimSize = 9 8 7", b"DimSize = 9000 8000 7000"), "cannot hold"),
    (".mha", lambda c: c.replace(b"DimSize = 9 8 7", b"DimSize = 9 eight 7"), "damaged"),
    (".mha", lambda c: c.replace(b"MET_SHORT", b"MET_SHORT_ARRAY"), "type"),
    (".mha", lambda c: c.replace(b"BinaryData = True", b"BinaryData = False"), "text"),
    (".mha", lambda c: c.replace(b"NDims", b"DistanceUnits = cm\nNDims"), "measured in cm"),
    (".mha", lambda c: c[:-100], "cannot hold"),
    (".mha", lambda c: c[:60], "no|axes"),
    (".mha", lambda c: b"", "empty"),
    (".mhd", lambda c: c.replace(b"a.raw", b"b.raw"), "missing"),
    (".mhd", lambda c: c.replace(b"a.raw", b"../a.raw"), "beside the header"),
    (".mhd", lambda c: c.replace(b"a.raw", b"/etc/passwd"), "beside the header"),
    (".mhd", lambda c: c.replace(b"a.raw", b"C:\\a.raw"), "beside the header"),
    (".mhd", lambda c: c.replace(b"a.raw", b"x/../../a.raw"), "beside the header"),
    (".mhd", lambda c: c.replace(b"a.raw", b"LIST\na.raw"), "beside the header"),
    (".mhd", lambda c: c.replace(b"a.raw", b"a%02d.raw 0 6 1"), "beside the header"),
    (".nhdr", lambda c: c.replace(b"data file: a.raw", b"data file: ../a.raw"), "beside the header"),
    (".nhdr", lambda c: c.replace(b"data file: a.raw", b"datafile: /a.raw"), "beside the header"),
    (".nhdr", lambda c: c.replace(b"data file: a.raw", b"data file: b.raw"), "missing"),
    (".nrrd", lambda c: c.replace(b"space: left-posterior-superior\n", b""), "no space"),
    (".nrrd", lambda c: c.replace(b"left-posterior-superior", b"scanner-xyz"), "guess"),
    (".nrrd", lambda c: c.replace(b"space origin", b"some origin"), "no space origin"),
    (".nrrd", lambda c: c.replace(b"space directions", b"directions"), "no space directions"),
    (".nrrd", lambda c: c.replace(b"NRRD0004", b"NRRD"), "not NRRD"),
    (".nrrd", lambda c: c.replace(b"encoding: raw", b"encoding: bzip2"), "form"),
    (".nrrd", lambda c: c.replace(b"encoding: raw", b"encoding: hex"), "form"),
    (".nrrd", lambda c: c.replace(b"sizes: 9 8 7", b"sizes: 9000 9000 9000"), "cannot hold"),
    (".nrrd", lambda c: c.replace(b"encoding: raw", b'space units: "cm" "cm" "cm"\nencoding: raw'), "measured in"),
    (".nrrd", lambda c: c.replace(b"type: short", b"type: block"), "type"),
    (".nrrd", lambda c: c.replace(b"endian: little\n", b""), "no endian"),
    (".nrrd", lambda c: c[:-10], "cannot hold"),
]  # fmt: skip


def test_a_header_that_is_not_complete_is_its_files_fault(tmp_path, capfd):
    for ending in (".mha", ".mhd", ".nrrd", ".nhdr"):
        write(tmp_path / f"source{ending}" / f"a{ending}")
    data = tmp_path / "data"
    for number, (ending, change, _) in enumerate(WRONG):
        source, folder = tmp_path / f"source{ending}", data / f"{number}"
        folder.mkdir(parents=True)
        for path in source.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        path = header(folder / f"a{ending}", change)
        path.rename(path.with_name(f"w{number}{ending}"))
    write(data / "good" / "good.mha")
    capfd.readouterr()
    found = discover(data)
    assert capfd.readouterr() == ("", "")
    assert [case["case"] for case in found.cases] == ["good"]
    messages = {fault.case: fault.message for fault in found.faults}
    for number, (ending, _, words) in enumerate(WRONG):
        message = messages.pop(f"w{number}")
        assert f"w{number}{ending}'" in message
        assert any(word in message for word in words.split("|")), message
    assert not messages


@pytest.mark.parametrize("ending", [".mha", ".mhd", ".nrrd", ".nhdr"])
def test_damage_and_truncation_are_noticed(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    values = write(path, shape=(20, 20, 20), compression=True)
    (stored,) = [found for found in tmp_path.iterdir() if found != path] or [path]
    whole = stored.read_bytes()
    np.testing.assert_array_equal(ScanReader().get_data([str(path)])[0], values)
    for place in (-2, -7, -60, -1000):
        stored.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + (whole[place + 1 :] if place + 1 else b""))
        with pytest.raises(GrataError, match=f"a{ending}.*(truncated|damaged)"):
            ScanReader().get_data([str(path)])
    for end in (-1, -9, -500):
        stored.write_bytes(whole[:end])
        with pytest.raises(GrataError, match=f"a{ending}.*(truncated|damaged)"):
            ScanReader().get_data([str(path)])


def test_what_unpacks_to_more_than_is_claimed_takes_no_memory(tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bomb = bytes(2**29)
    write(tmp_path / "a.mhd", compression=True)
    write(tmp_path / "b.nhdr", compression=True)
    packer = zlib.compressobj(9)
    (tmp_path / "a.zraw").write_bytes(b"".join(packer.compress(bomb[: 2**24]) for _ in range(32)) + packer.flush())
    header(tmp_path / "a.mhd", lambda c: c.replace(b"CompressedDataSize", b"Size"))
    (tmp_path / "b.raw.gz").write_bytes(gzip.compress(bomb[: 2**24], 9) * 32)
    for name in ("a.mhd", "b.nhdr"):
        header(tmp_path / name, lambda c: c.replace(b"9 8 7", b"20000 20000 2"))
        with pytest.raises(GrataError, match="cannot hold|voxels cannot be read"):
            ScanReader().get_data([str(tmp_path / name)])
    header(tmp_path / "a.mhd", lambda c: c.replace(b"20000 20000 2", b"9 8 7"))
    with pytest.raises(GrataError, match="damaged"):
        ScanReader().get_data([str(tmp_path / "a.mhd")])
    del bomb
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1300 * 2**10


def test_labels_may_be_of_another_format_than_their_images(tmp_path, scans):
    for number, (image, label) in enumerate([("a.mha", "a.nrrd"), ("b.nii.gz", "b.mha"), ("c.nhdr", "c_seg.mhd")]):
        affine = np.diag([-0.5, -1.25, 2.5, 1.0])
        affine[:3, 3] = 30, 42, 17
        for folder, name in (("images", image), ("labels", label)):
            path = tmp_path / folder / name
            if name.endswith(".nii.gz"):
                scans.nifti(path, (9, 8, 7), affine)
            else:
                write(path, direction=np.eye(3), seed=number)
    found = discover(tmp_path)
    assert not found.faults
    assert [case["label"].rsplit("/", 1)[-1] for case in found.cases] == ["a.nrrd", "b.mha", "c_seg.mhd"]
    write(tmp_path / "labels" / "a.nrrd", direction=np.eye(3), shape=(9, 8, 6))
    (fault,) = discover(tmp_path).faults
    assert "shape 9 × 8 × 6" in fault.message


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
@pytest.mark.parametrize("form", ["nifti", "itk", "dicom"])
def test_segmentations_are_written_where_itk_finds_them(tmp_path, scans, ending, form):
    if form == "dicom":
        scans.save(scans.series("oblique"), tmp_path / "in")
    elif form == "nifti":
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = np.diag([-1, -1, 1]) @ TURN * [0.5, 1.25, 2.5], (3, 4, 5)
        scans.nifti(tmp_path / "in" / "a.nii.gz", affine=affine)
    else:
        write(tmp_path / "in" / "a.nrrd")
    (case,) = discover(tmp_path / "in").cases
    files = case["image"] if isinstance(case["image"], list) else [case["image"]]
    array, meta = ScanReader().get_data(files)
    labels = np.random.default_rng(0).integers(0, 3, array.shape).astype(np.int16)
    path = tmp_path / f"out{ending}"
    write_itk(labels, case, path)
    again = path.read_bytes()
    write_itk(labels, case, path)
    assert path.read_bytes() == again
    assert [found.name for found in tmp_path.iterdir()] == ["in", path.name] or len(list(tmp_path.iterdir())) == 2
    image = itk.imread(str(path))
    np.testing.assert_array_equal(itk.array_from_image(image).T, labels)
    last = tuple(int(size) - 1 for size in labels.shape)
    for index, point in zip([(0, 0, 0), last], points(image, [(0, 0, 0), last]), strict=True):
        np.testing.assert_allclose((meta["affine"] @ [*index, 1.0])[:3], point, atol=1e-3)
    with pytest.raises(ValueError, match="shape"):
        write_itk(labels[:-1], case, path)


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(GrataError, match="Cannot write"):
        save_itk(np.zeros((3, 4, 5), np.uint8), np.eye(4), tmp_path / "missing" / "a.mha")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have Unicode names alone")
@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_names_that_are_not_text(tmp_path, ending):
    folder = tmp_path / os.fsdecode(b"odd_\xff")
    folder.mkdir()
    labels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    for name in ("a", os.fsdecode(b"\xe9")):
        save_itk(labels, np.eye(4), folder / f"{name}{ending}")
        assert (read_itk(folder / f"{name}{ending}")[0] == labels).all()
    assert len(os.listdir(folder)) == 2
