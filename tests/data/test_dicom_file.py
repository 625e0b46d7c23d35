import io
import os
import struct
import tracemalloc
import warnings
import zlib

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate, generate_frames
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from grata.bank import scanner_tags
from grata.data import ScanReader, discover, write_dicom_seg
from grata.data.dicom_file import read_header
from grata.errors import GrataError

SEGMENTS = [
    {"value": 1, "label": "Hippocampus", "category": ["91723000", "SCT", "Anatomical Structure"],
     "type": ["5366008", "SCT", "Hippocampus"]}
]  # fmt: skip


def without_preamble(dataset, syntax):
    """Return the bytes of a data set alone, as old archives keep it."""
    if not syntax.is_little_endian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    buffer = pydicom.filebase.DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = syntax.is_little_endian, syntax.is_implicit_VR
    write_dataset(buffer, dataset)
    return buffer.getvalue()


def is_read_and_written(folder, scans):
    """Check that the one case of a folder has the voxels of the series, and that its DICOM SEG refers to it."""
    found = discover(folder)
    assert not found.faults
    (case,) = found.cases
    array, meta = ScanReader().get_data(case["image"])
    np.testing.assert_array_equal(array, scans.voxels().transpose(2, 1, 0))
    np.testing.assert_allclose(meta["affine"], scans.affine("oblique"), atol=1e-4)
    write_dicom_seg(np.ones((10, 8, 6), np.uint8), case, SEGMENTS, folder / ".seg.dcm")
    segmentation = pydicom.dcmread(folder / ".seg.dcm")
    referenced = segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert len(referenced) == 6
    return segmentation


@pytest.mark.parametrize("name", ["IM{:03d}", "slice{}.dcm", "1.2.3.{}"])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_files_without_preamble_are_read_whatever_their_names(tmp_path, scans, syntax, name):
    for number, dataset in enumerate(scans.series("oblique")):
        (tmp_path / name.format(number)).write_bytes(without_preamble(dataset, syntax))
    is_read_and_written(tmp_path, scans)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize("preamble", [True, False])
def test_deflated_files_and_files_that_lack_the_preamble_alone_are_read(tmp_path, scans, syntax, preamble):
    for number, dataset in enumerate(scans.series("oblique")):
        dataset.file_meta.TransferSyntaxUID = syntax
        path = tmp_path / f"IM{number}"
        dataset.save_as(path, enforce_file_format=True)
        path.write_bytes(path.read_bytes()[0 if preamble else 132 :])
    is_read_and_written(tmp_path, scans)


def test_what_is_not_dicom_is_not_taken_for_it(tmp_path):
    random = np.random.default_rng(0)
    beginnings = [
        b"\x08\x00", b"\x02\x00", b"\x00\x08", b"\x08\x00\x05\x00", b"\x08\x00\x00\x00\x00\x00\x00\x00",
        b"\x08\x00\x16\x00\x00\x00", b"\x02\x00\x00\x00", b"DICM", b"II*\x00", b"{\"a\": 1}", b"\x7f\xe0",
    ]  # fmt: skip
    for number, beginning in enumerate(beginnings):
        (tmp_path / f"file{number}.bin").write_bytes(beginning + random.bytes(3000))
        (tmp_path / f"file{number}").write_bytes(beginning + bytes(3000))
        assert read_header(tmp_path / f"file{number}.bin") is None
        assert read_header(tmp_path / f"file{number}") is None


def set_none(datasets):
    for dataset in datasets:
        del dataset.FrameOfReferenceUID


def set_empty(datasets):
    for dataset in datasets:
        dataset.FrameOfReferenceUID = ""


@pytest.mark.parametrize("change", [set_none, set_empty])
def test_a_frame_of_reference_is_derived_from_the_series(tmp_path, scans, change):
    uids = []
    for name in ("one", "one", "two"):
        datasets = scans.series("oblique", name)
        change(datasets)
        folder = tmp_path / str(len(uids))
        scans.save(datasets, folder)
        uids.append(is_read_and_written(folder, scans).FrameOfReferenceUID)
    assert uids[0] == uids[1] != uids[2] and pydicom.uid.UID(uids[0]).is_valid


def test_a_frame_of_reference_of_an_enhanced_object_is_derived(tmp_path, scans):
    dataset = scans.enhanced()
    del dataset.FrameOfReferenceUID
    scans.save([dataset], tmp_path)
    (case,) = discover(tmp_path).cases
    assert ScanReader().get_data(case["image"])[0].shape == (10, 8, 6)
    write_dicom_seg(np.ones((10, 8, 6), np.uint8), case, SEGMENTS, tmp_path / ".seg.dcm")
    assert pydicom.dcmread(tmp_path / ".seg.dcm").FrameOfReferenceUID


@pytest.mark.parametrize(
    "empty",
    [
        {"ModalityLUTSequence": []},
        {"ModalityLUTSequence": [pydicom.Dataset()], "VOILUTSequence": [pydicom.Dataset(), pydicom.Dataset()]},
        {"VOILUTSequence": [], "RealWorldValueMappingSequence": []},
        {"RescaleSlope": None, "RescaleIntercept": None, "RescaleType": None},
    ],
)
def test_what_is_empty_means_nothing(tmp_path, scans, empty):
    datasets = scans.series("oblique")
    for dataset in datasets:
        for keyword, value in empty.items():
            setattr(dataset, keyword, value)
    scans.save(datasets, tmp_path)
    is_read_and_written(tmp_path, scans)


def packed(dataset, before=b"", behind=0):
    """Return a deflated file with elements before the pixel data, and zeros in an element behind them."""
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    pixels = dataset.PixelData
    del dataset.PixelData
    meta = io.BytesIO()
    write_file_meta_info(meta, dataset.file_meta, enforce_standard=False)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    pieces = [
        without_preamble(dataset, ExplicitVRLittleEndian),
        before,
        element(0x7FE0, 0x0010, b"OW", len(pixels)),
        pixels,
    ]
    if behind:
        pieces += [element(0x7FE1, 0x1010, b"OB", behind), *[bytes(2**20)] * (behind // 2**20)]
    return bytes(128) + b"DICM" + meta.getvalue() + b"".join(map(packer.compress, pieces)) + packer.flush()


def element(group, number, vr, length):
    return struct.pack("<HH2sHI", group, number, vr, 0, length)


def peak(function):
    """Return what a function returns and the most memory (MiB) that it held."""
    tracemalloc.start()
    try:
        return function(), tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


def bomb_before_the_pixels(dataset):
    return packed(dataset, before=element(0x7FDF, 0x1010, b"OB", 2**25) + bytes(2**25))


def bomb_behind_the_pixels(dataset):
    return packed(dataset, behind=2**25)


def claimed_pixels(dataset):
    dataset.Rows = dataset.Columns = 50000
    return packed(dataset)


@pytest.mark.parametrize("make", [bomb_before_the_pixels, bomb_behind_the_pixels, claimed_pixels])
def test_a_deflated_file_is_inflated_no_further_than_its_header_announces(tmp_path, scans, monkeypatch, make):
    monkeypatch.setattr("grata.data.dicom_file._LARGEST_HEADER", 2**22)
    for number, dataset in enumerate(scans.series()):
        (tmp_path / f"{number}.dcm").write_bytes(make(dataset) if number == 2 else packed(dataset))
    found, memory = peak(lambda: discover(tmp_path))
    assert memory < 24
    if make is bomb_behind_the_pixels:
        (case,) = found.cases
        # what stands there is not needed
        (array, _), memory = peak(lambda: ScanReader().get_data(case["image"]))
        assert array.any() and memory < 24
    else:
        assert found.faults and not found.cases


def rle(dataset):
    dataset.compress(RLELossless)


def jpeg_2000(dataset):
    dataset.compress(JPEG2000Lossless)


def jpeg_ls(dataset):
    dataset.compress(JPEGLSLossless)


@pytest.mark.parametrize("compress", [rle, jpeg_2000, jpeg_ls, lambda dataset: None])
def test_more_pixels_than_the_file_can_hold_are_refused_before_they_are_decoded(tmp_path, scans, compress):
    datasets = scans.series(size=(40, 50))
    for dataset in datasets:
        compress(dataset)
        dataset.Rows, dataset.Columns = 30000, 40000
    scans.save(datasets, tmp_path)
    found, memory = peak(lambda: discover(tmp_path))
    assert not found.cases and memory < 50
    assert "announces" in found.faults[0].message and "bytes of pixel data" in found.faults[0].message


@pytest.mark.parametrize("compress", [jpeg_2000, jpeg_ls])
def test_a_frame_of_another_size_than_its_header_announces_is_not_decoded(tmp_path, scans, compress):
    datasets = scans.series(size=(40, 50))
    for dataset in datasets:
        compress(dataset)
    large = scans.series(size=(400, 500))[3]
    compress(large)
    datasets[3].PixelData = large.PixelData
    scans.save(datasets, tmp_path)
    (case,) = discover(tmp_path).cases
    with pytest.raises(GrataError, match="a compressed frame has 400 × 500 pixels of 1 components"):
        ScanReader().get_data(case["image"])


def test_a_constant_image_may_take_next_to_nothing(tmp_path, scans):
    for syntax in (RLELossless, JPEG2000Lossless, JPEGLSLossless):
        datasets = scans.series(size=(1024, 1024), slices=2)
        for dataset in datasets:
            dataset.PixelData = bytes(2 * 1024 * 1024)
            dataset.compress(syntax)
        scans.save(datasets, tmp_path / syntax)
        (case,) = discover(tmp_path / syntax).cases
        assert not ScanReader().get_data(case["image"])[0].any()


@pytest.mark.parametrize("changes", [
    {b"IS\2\0001 ": b"IS\2\0J!", b"20170503": b"SECRETIV"},
    {b"101112": b"SECRET", b"19610824": b"SECRETXX", b"CS\2\0F ": b"CS\2\0?!"},
    {b"DS\4\0002.5 ": b"DS\4\0SECR", b"ACC998877 ": b"SECRET\\\x1b!!"},
])  # fmt: skip
def test_no_value_of_a_header_reaches_the_log(tmp_path, scans, caplog, recwarn, changes):
    datasets = scans.series("oblique")
    with warnings.catch_warnings(action="ignore"):
        for dataset in datasets:
            dataset.StudyID = dataset.StationName = "SECRET" * 5
        paths = scans.save(datasets, tmp_path)
    caplog.clear()
    for path in paths:
        content = path.read_bytes()
        for value, other in changes.items():
            content = content.replace(value, other)
        path.write_bytes(content)
    (case,) = discover(tmp_path).cases
    ScanReader().get_data(case["image"])
    write_dicom_seg(np.ones((10, 8, 6), np.uint8), case, SEGMENTS, tmp_path / "seg.dcm")
    with pytest.raises(GrataError, match="no DICOM image has the attributes"):
        discover(tmp_path, select="EchoTime=1")
    scanner_tags({"filename_or_obj": paths[0]}, ["StationName", "SliceThickness", "AccessionNumber"])
    assert not caplog.records and not recwarn.list


RUN = b"\x81\0"


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([RUN * 200_000, RUN * 200_000], "holds more, but its header announces 80 pixels"),
        ([b"\xb1\0", RUN], "holds more"),
        ([b"\xb1\0", b"\xc1\0"], "holds 64 bytes, but its header announces 80"),
        ([b"\xb1\0"] * 15, "other segments than one for each byte"),
        ([b"\xb1\0"], "other segments than one for each byte"),
    ],
)
def test_run_lengths_are_counted_before_they_are_inflated(tmp_path, scans, segments, message):
    scans.save(run_lengths(scans, [[b"\xb1\0"] * 2, segments]), tmp_path)
    (case,) = discover(tmp_path).cases

    def read():
        with pytest.raises(GrataError, match=message):
            ScanReader().get_data(case["image"])

    assert peak(read)[1] < 4


@pytest.mark.parametrize("padding", [b"", b"\0", b"\x80", b"\0\0", RUN[:1]])
def test_what_pads_run_lengths_is_not_counted(tmp_path, scans, padding):
    scans.save(run_lengths(scans, [[b"\xb1\5" + padding] * 2] * 2), tmp_path)
    (case,) = discover(tmp_path).cases
    assert (ScanReader().get_data(case["image"])[0] == 5 * 257).all()


def test_run_lengths_of_every_frame_are_counted(tmp_path, scans):
    dataset = scans.enhanced()
    dataset.compress(RLELossless)
    frames = list(generate_frames(dataset.PixelData, number_of_frames=6))
    dataset.PixelData = encapsulate([*frames[:5], rle_frame([RUN * 20_000] * 2)])
    scans.save([dataset], tmp_path)
    (case,) = discover(tmp_path).cases
    with pytest.raises(GrataError, match="holds more, but its header announces 80 pixels"):
        ScanReader().get_data(case["image"])


def rle_frame(segments):
    """Return a frame of RLE with these segments, packed."""
    starts = 64 + np.cumsum([0, *map(len, segments)])[:-1]
    return struct.pack("<16I", len(segments), *starts, *[0] * (15 - len(segments))) + b"".join(segments)


def run_lengths(scans, frames):
    """Return slices of 8 x 10 pixels of 16 bits that are stored with these segments."""
    datasets = scans.series(slices=len(frames))
    for dataset, segments in zip(datasets, frames, strict=True):
        dataset.compress(RLELossless)
        dataset.PixelData = encapsulate([rle_frame(segments)])
    return datasets


@pytest.mark.parametrize("kept", [140, 400, 700])
def test_a_file_without_preamble_that_is_cut_makes_the_series_incomplete(tmp_path, scans, kept):
    for number, dataset in enumerate(scans.series()):
        content = without_preamble(dataset, ExplicitVRLittleEndian)
        (tmp_path / f"IM{number}").write_bytes(content[:kept] if number == 5 else content)
    found = discover(tmp_path)
    assert not found.cases and len(found.faults) == 1


def test_an_error_of_pydicom_is_not_called_one_of_the_disk(tmp_path, scans, monkeypatch):
    (path,) = scans.save(scans.series(slices=1), tmp_path)

    def refuse(*args, **kwargs):
        raise OSError("No tag to read at file position 81994")

    monkeypatch.setattr(pydicom, "dcmread", refuse)
    assert "header is damaged" in discover(tmp_path).faults[0].message
    monkeypatch.setattr(pydicom, "dcmread", lambda *args, **kwargs: os.close(-1))
    assert "cannot be opened (Bad file descriptor)" in discover(tmp_path).faults[0].message


@pytest.mark.parametrize("error", [RecursionError, MemoryError, AssertionError, KeyError])
def test_whatever_a_library_raises_for_a_file_stays_with_it(tmp_path, scans, monkeypatch, error):
    scans.save(scans.series("axial", "good"), tmp_path / "a")
    scans.save(scans.series("axial", "bad"), tmp_path / "b")
    read = pydicom.dcmread

    def refuse(file, *args, **kwargs):
        if "/b/" in file.name:
            raise error
        return read(file, *args, **kwargs)

    monkeypatch.setattr(pydicom, "dcmread", refuse)
    found = discover(tmp_path)
    assert len(found.cases) == 1 and len(found.faults) == 6


def nested(depth, ended):
    """Return a sequence of ``depth`` levels, with their lengths or with marks of their ends."""
    inner = pydicom.Dataset()
    for _ in range(depth):
        outer = pydicom.Dataset()
        outer.ReferencedImageSequence = [inner]
        outer["ReferencedImageSequence"].is_undefined_length = inner.is_undefined_length_sequence_item = ended
        inner = outer
    return outer["ReferencedImageSequence"]


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("depth", [32, 33, 120])
def test_sequences_are_followed_to_a_bounded_depth(tmp_path, scans, syntax, ended, depth):
    datasets = scans.series("oblique")
    datasets[2].add(nested(depth, ended))
    for number, dataset in enumerate(datasets):
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(tmp_path / f"IM{number}", implicit_vr=syntax.is_implicit_VR, little_endian=True)
    if depth <= 32:
        is_read_and_written(tmp_path, scans)
        return
    found = discover(tmp_path)
    assert not found.cases
    assert any("its sequences are nested more than 32 deep" in fault.message for fault in found.faults)
