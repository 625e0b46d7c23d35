"""NIfTI headers of which nothing is guessed, damage that is noticed, sizes that are checked before anything is read."""

import gzip
import os
import resource
import struct

import nibabel
import numpy as np
import pytest

from grata.data import ScanReader, discover
from grata.errors import GrataError

AFFINE = np.diag([-1.0, 1.0, 2.0, 1.0])


def write(path, shape=(9, 8, 7), codes=(1, 1), order="<", **fields):
    """Write a NIfTI-1 file whose header has other values than those that nibabel would write."""
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_shape(shape)
    header.set_data_dtype(np.int16)
    header.set_qform(AFFINE, code=codes[0])
    header.set_sform(AFFINE, code=codes[1])
    header.set_slope_inter(1, 0)
    header.set_xyzt_units("mm")
    header["vox_offset"] = 352
    for name, value in fields.items():
        field, _, place = name.partition("__")
        if place:
            header[field][int(place)] = value
        else:
            header[field] = value
    values = np.random.default_rng(0).integers(0, 100, shape).astype(f"{order}i2")
    content = header.binaryblock + bytes(4) + values.tobytes("F")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return values


WRONG = {
    "unit": ({"xyzt_units": 5}, "unit of length"),
    "unit and time": ({"xyzt_units": 4 + 8}, "unit of length"),
    "metres": ({"xyzt_units": 1}, "measured in meter"),
    "no axes": ({"dim__0": 0}, "axes"),
    "no voxels": ({"dim__2": 0}, "no voxels"),
    "fewer than no voxels": ({"dim__3": -7}, "no voxels"),
    "offset": ({"vox_offset": 348}, "begin at byte 348"),
    "offset of a pair": ({"vox_offset": 0}, "begin at byte 0"),
    "offset not a number": ({"vox_offset": np.nan}, "vox_offset"),
    "offset in between": ({"vox_offset": 352.5}, "vox_offset"),
    "offset behind the end": ({"vox_offset": 2**20}, "cannot hold"),
    "slope": ({"scl_slope": np.inf}, "scaling"),
    "slope not a number": ({"scl_slope": np.nan}, "scaling"),
    "intercept": ({"scl_inter": -np.inf}, "scaling"),
    "space": ({"sform_code": 77}, "sform is unknown"),
    "voxel type": ({"datatype": 999}, "damaged"),
    "colours": ({"datatype": 128, "bitpix": 24}, "cannot hold|colours"),
    "magic": ({"magic": b"xyz"}, "not NIfTI"),
    "magic of a pair": ({"magic": b"ni1"}, "not NIfTI"),
    "too many voxels": ({"dim__1": 30000, "dim__2": 30000, "dim__3": 30000}, "cannot hold"),
    "pixdim with sform": ({"pixdim__3": 0}, "contradicts itself|pixdim"),
}  # fmt: skip
WRONG_QFORM = {
    "zero": ({"pixdim__1": 0, "pixdim__2": 0, "pixdim__3": 0}, "voxel size is 0 × 0 × 0 mm"),
    "one zero": ({"pixdim__3": 0}, "voxel size is 1 × 1 × 0 mm"),
    "negative": ({"pixdim__2": -1}, "voxel size"),
    "not a number": ({"pixdim__1": np.nan}, "voxel size"),
    "infinite": ({"pixdim__1": np.inf}, "voxel size"),
    "handedness": ({"pixdim__0": 3}, "handedness"),
    "handedness not a number": ({"pixdim__0": np.nan}, "handedness"),
    "quaternion": ({"quatern_b": 0.9, "quatern_c": 0.9}, "no rotation"),
    "offset": ({"qoffset_x": np.nan}, "non-finite"),
}


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_header_that_leaves_something_to_guess_is_its_files_fault(tmp_path, ending, capfd, caplog):
    for name, (fields, _) in WRONG.items():
        write(tmp_path / f"{name}{ending}", **fields)
    for name, (fields, _) in WRONG_QFORM.items():
        write(tmp_path / f"q {name}{ending}", codes=(1, 0), **fields)
    write(tmp_path / f"good{ending}")
    found = discover(tmp_path)
    assert [case["case"] for case in found.cases] == ["good"]
    messages = {fault.case: fault.message for fault in found.faults}
    expected = {name: words for name, (_, words) in WRONG.items()}
    expected |= {f"q {name}": words for name, (_, words) in WRONG_QFORM.items()}
    assert messages.keys() == expected.keys()
    for name, words in expected.items():
        assert f"'{name}{ending}'" in messages[name]
        if ending == ".nii" or "cannot hold" not in words:
            assert any(word in messages[name] for word in words.split("|")), (name, messages[name])
    assert capfd.readouterr() == ("", "")
    # Without pytest, these would go to the terminal, without the name of the file.
    assert not caplog.records


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((9, 8, 7, 1), {}),
        ((9, 8, 7, 1, 1), {}),
        ((9, 8, 7, 1, 1, 1, 1), {"codes": (1, 0)}),
        ((9, 8, 7), {"order": ">"}),
        ((9, 8, 7), {"scl_slope": 0}),
        ((9, 8, 7), {"codes": (1, 0), "pixdim__0": 0}),
        ((9, 8, 7), {"codes": (0, 1), "pixdim__0": 3}),
        ((9, 8, 7), {"xyzt_units": 0}),
        ((9, 8, 7), {"xyzt_units": 2 + 56}),
    ],
)
def test_what_is_complete_is_read(tmp_path, shape, options):
    values = write(tmp_path / "a.nii.gz", shape, **options)
    (case,) = discover(tmp_path).cases
    array, meta = ScanReader().get_data([case["image"]])
    np.testing.assert_array_equal(array, values.reshape(9, 8, 7))
    np.testing.assert_allclose(np.abs(meta["affine"]), np.abs(AFFINE))


def test_two_axes_need_no_third_voxel_size(tmp_path):
    write(tmp_path / "a.nii", (9, 8, 1), codes=(1, 0), pixdim__3=0)
    assert len(discover(tmp_path, spatial_dims=2).cases) == 1


def _flipped(content, place):
    content = bytearray(content)
    content[place] ^= 1
    return bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: _flipped(content, -2),  # length
        lambda content: _flipped(content, -6),  # check sum
        lambda content: _flipped(content, len(content) // 2),
        lambda content: content[:-3],
        lambda content: content[:-8],
        lambda content: content[: len(content) // 2],
        lambda content: content + b"something else",
        lambda content: gzip.compress(gzip.decompress(content)[:-10]),
    ],
)
def test_damage_of_a_compressed_file_is_noticed(tmp_path, damage):
    path = tmp_path / "a.nii.gz"
    write(path, (20, 20, 20))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(GrataError, match=r"a\.nii\.gz"):
        ScanReader().get_data([str(path)])


@pytest.mark.parametrize(
    ("name", "compressions", "words"),
    [
        ("a.nii.gz", 0, "is not compressed in spite of its name. Give it a name that does not end in .gz"),
        ("a.nii", 1, "is compressed in spite of its name. Give it a name that ends in .gz"),
        ("a.nii.gz", 2, "is damaged, truncated or not NIfTI"),
    ],
)
def test_a_name_that_does_not_fit_the_compression_is_named(tmp_path, name, compressions, words):
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 5, 6), np.float32), np.eye(4)), tmp_path / "whole.nii")
    content = (tmp_path / "whole.nii").read_bytes()
    for _ in range(compressions):
        content = gzip.compress(content)
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / name).write_bytes(content)
    (fault,) = discover(tmp_path / "named").faults
    assert words in fault.message


def test_a_compressed_file_of_several_parts_is_whole(tmp_path):
    path = tmp_path / "a.nii.gz"
    values = write(path, (20, 20, 20))
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(b"".join(gzip.compress(part) for part in (content[:500], content[500:9000], content[9000:])))
    np.testing.assert_array_equal(ScanReader().get_data([str(path)])[0], values)
    path.write_bytes(path.read_bytes() + bytes(512))
    np.testing.assert_array_equal(ScanReader().get_data([str(path)])[0], values)


def test_a_header_that_claims_more_than_the_file_holds_takes_no_memory(tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number, (size, ending, order) in enumerate(
        [(1800, ".nii.gz", "<"), (1800, ".nii", "<"), (32767, ".nii.gz", ">"), (32767, ".nii", "<")]
    ):
        write(tmp_path / f"{number}{ending}", order=order, dim__1=size, dim__2=size, dim__3=size)
    # An extension of 2 GiB, which nibabel would read with the header.
    content = bytearray(gzip.decompress((tmp_path / "0.nii.gz").read_bytes()))
    content[108:112], content[348:360] = struct.pack("<f", 2**31), struct.pack("<4b2i", 1, 0, 0, 0, 2**30, 6)
    (tmp_path / "9.nii.gz").write_bytes(gzip.compress(bytes(content)))
    paths = sorted(str(path) for path in tmp_path.iterdir())
    with pytest.raises(GrataError, match=r"no NIfTI|cases"):
        assert len(discover(tmp_path).faults) == len(paths)
        raise GrataError("cases")
    for path in paths:
        with pytest.raises(GrataError, match="cannot hold"):
            ScanReader().get_data([path])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 2**10


@pytest.mark.parametrize(("ends", "kind"), [
    ((".hdr", ".img"), nibabel.Nifti1Pair), ((".HDR", ".IMG"), nibabel.Nifti1Pair),
    ((".hdr.gz", ".img.gz"), nibabel.Nifti1Pair), ((".hdr", ".img"), nibabel.Nifti2Pair),
])  # fmt: skip
def test_pairs_are_read_and_their_labels_too(tmp_path, ends, kind):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    values = np.random.default_rng(0).integers(0, 100, (9, 8, 7)).astype(np.int16)
    for folder in ("images", "labels"):
        image = kind(values, AFFINE)
        image.set_qform(AFFINE, 1)
        nibabel.save(image, tmp_path / "scan.hdr")
        for lower, end in zip((".hdr", ".img"), ends, strict=True):
            content = (tmp_path / f"scan{lower}").read_bytes()
            (tmp_path / folder / f"scan{end}").write_bytes(gzip.compress(content) if end.endswith(".gz") else content)
            os.unlink(tmp_path / f"scan{lower}")
    (case,) = discover(tmp_path / "images").cases
    assert case["format"] == "nifti"
    assert case["label"].endswith(ends[0])
    array, meta = ScanReader().get_data([case["image"]])
    np.testing.assert_array_equal(array, values)
    np.testing.assert_allclose(meta["affine"], AFFINE)
    os.unlink(tmp_path / "images" / f"scan{ends[1]}")
    assert "is missing" in discover(tmp_path / "images").faults[0].message


def test_analyze_has_no_orientation_and_other_headers_are_of_kinds_that_are_not_read(tmp_path, scans):
    scans.nifti(tmp_path / "good.nii")
    nibabel.save(nibabel.AnalyzeImage(np.zeros((9, 8, 7), np.int16), AFFINE), tmp_path / "a.hdr")
    (tmp_path / "envi.hdr").write_text("ENVI\nsamples = 3\n")
    (tmp_path / "light.hdr").write_bytes(b"#?RADIANCE\n" + bytes(200))
    found = discover(tmp_path)
    assert [fault.case for fault in found.faults] == ["a"]
    assert "ANALYZE" in found.faults[0].message
    assert len(found.cases) == 1
