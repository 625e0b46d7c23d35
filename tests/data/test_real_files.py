"""Mistakes of real data sets: one file's fault is its own, and what is not read is said once."""

import io
import os
import resource
import shutil
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

import grata.data.dicom_cases as dicom_cases
import grata.data.discovery as discovery
from grata.data import ScanReader, discover
from grata.data.pictures import picture_size
from grata.errors import GrataError


@pytest.mark.parametrize(
    "error", [KeyError(np.uint8(5)), MemoryError(), ZeroDivisionError("x"), RecursionError("deep"), OSError(5, "Input")]
)
def test_whatever_a_library_raises_for_a_file_is_its_own_fault(tmp_path, scans, monkeypatch, error):
    checked = {"check_volume_file": discovery.check_volume_file, "picture_size": discovery.picture_size}

    def spoilt(name):
        def check(path, *arguments):
            if "bad" in path.name:
                raise error
            return checked[name](path, *arguments)

        return check

    for name in checked:
        monkeypatch.setattr(discovery, name, spoilt(name))
    for stem in ("good", "bad"):
        scans.nifti(tmp_path / f"{stem}.nii.gz", (9, 8, 1))
        Image.new("RGB", (8, 9)).save(tmp_path / f"{stem}2.png")
    found = discover(tmp_path, spatial_dims=2)
    assert [case["case"] for case in found.cases] == ["good", "good2"]
    assert [fault.case for fault in found.faults] == ["bad", "bad2"]
    for fault in found.faults:
        assert "bad" in fault.message and "cannot be used" in fault.message and type(error).__name__ in fault.message


def test_whatever_a_library_raises_for_a_series_is_its_own_fault_and_names_no_patient(tmp_path, scans, monkeypatch):
    for name in ("good", "bad"):
        scans.save(scans.series(series=name), tmp_path / name)
    geometry = dicom_cases.series_geometry

    def spoilt(ordered):
        if "bad" in ordered[0].path:
            raise KeyError(f"Mustermann, Erika in {tmp_path}/Mustermann/x.dcm")
        return geometry(ordered)

    monkeypatch.setattr(dicom_cases, "series_geometry", spoilt)
    found = discover(tmp_path)
    (fault,) = found.faults
    assert len(found.cases) == 1
    assert "in 'bad'" in fault.message and "KeyError" in fault.message
    assert not any(word in fault.message.lower() for word in (*scans.patient, str(tmp_path)))


def test_kinds_that_are_not_read_are_said_once(tmp_path, scans):
    scans.nifti(tmp_path / "a.nii.gz")
    for name in ("b.nii.bz2", "c.mgz", "d.PAR", "d.REC", "e.tar.gz"):
        (tmp_path / name).write_bytes(b"something")
    (tmp_path / "deep").mkdir()
    zipfile.ZipFile(tmp_path / "deep" / "f.zip", "w").close()
    Image.new("L", (8, 9)).save(tmp_path / "deep" / "g.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "lone.img").write_bytes(b"something")
    Image.new("L", (8, 9)).save(tmp_path / "h.gif")
    scans.save(scans.series(), tmp_path / "dicom")
    for path in sorted((tmp_path / "dicom").iterdir()):
        path.rename(path.with_suffix(".img"))
    found = discover(tmp_path)
    assert len(found.cases) == 2
    assert not found.faults
    assert found.notes == [
        "9 files of kinds that are not read: 1 .img, 1 .mgz, 1 .nii.bz2, 1 .par, 1 .rec, 1 .tar.gz, 1 .zip, 2 "
        "pictures. Convert what you need to NIfTI."
    ]
    shutil.rmtree(tmp_path / "dicom")
    for name in ("a.nii.gz", "deep/g.png", "h.gif", "lone.img"):
        os.unlink(tmp_path / name)
    with pytest.raises(
        GrataError, match=r"holds no scan that can be used\. 6 files of kinds that are not read: 1 \.mgz"
    ):
        discover(tmp_path)


def test_packed_files_and_rarer_formats_are_named(tmp_path, scans):
    scans.nifti(tmp_path / "a.nii.gz")
    names = ("b.nii.Z", "c.dcm.gz", "d+orig.BRIK.gz", "e+orig.HEAD", "f+orig.BRIK", "g.mif", "h.minc", "i.mat", "j.gz")
    for name in names:
        (tmp_path / name).write_bytes(b"something")
    assert discover(tmp_path).notes == [
        "9 files of kinds that are not read: 1 .brik, 1 .brik.gz, 1 .dcm.gz, 1 .gz, 1 .head, 1 .mat, 1 .mif, 1 .minc, "
        "1 .nii.z. Convert what you need to NIfTI."
    ]


def test_a_gif_that_is_no_label_is_named_among_pictures(tmp_path):
    for name in ("a.png", "a_mask.gif", "b.gif", "c.GIF"):
        Image.new("L", (8, 9)).save(tmp_path / name)
    found = discover(tmp_path, spatial_dims=2)
    assert [case["label"] for case in found.cases] == [str(tmp_path / "a_mask.gif")]
    assert found.notes == ["2 files of kinds that are not read: 2 .gif. Convert what you need to PNG."]


def test_links_that_lead_nowhere_are_faults_where_they_are_named_as_scans(tmp_path, scans):
    scans.save(scans.series(), tmp_path / "dicom")
    scans.nifti(tmp_path / "good.nii.gz")
    for name in ("a.nii.gz", "b.mha", "c.hdr", "dicom/readme.txt", "dicom/link.pdf"):
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.nii").symlink_to("loop.nii")
    found = discover(tmp_path)
    assert len(found.cases) == 2
    assert [fault.case for fault in found.faults] == ["a", "b", "c", "loop"]
    assert found.notes == ["2 links lead to a file that does not exist."]
    os.symlink("nowhere", tmp_path / "dicom" / "IM9999.dcm")
    assert any("incomplete" in fault.message for fault in discover(tmp_path).faults)


def test_a_name_that_is_too_long_is_its_cases_fault(tmp_path, scans):
    for folder in ("x" * 120, "y" * 130):
        scans.nifti(tmp_path / folder / f"{'n' * 120}.nii.gz")
    scans.nifti(tmp_path / f"{'ä' * 120}.nii.gz")
    scans.nifti(tmp_path / "good.nii.gz")
    found = discover(tmp_path)
    assert [case["case"] for case in found.cases] == ["good"]
    assert len(found.faults) == 3
    assert all("a name of more than 233 bytes" in fault.message for fault in found.faults)
    for cell in ("z" * 300 + ".nii.gz", "good.nii.gz," + "z" * 300 + ".nii.gz"):
        (tmp_path / "list.csv").write_text(f"image,mask\n{cell}{'' if ',' in cell else ','}\n")
        (fault,) = discover(tmp_path, cases_file="list.csv").faults
        assert "does not exist" in fault.message


def test_places_are_known_and_not_shown(tmp_path, scans):
    scans.save(scans.series(), tmp_path / "Mustermann" / "dicom")
    scans.nifti(tmp_path / "scan.nii.gz")
    (tmp_path / "Mustermann" / "bad.nii").write_bytes(b"")
    (tmp_path / "Müller").mkdir()
    (tmp_path / "Müller" / "broken.dcm").write_bytes(b"x")
    found = discover(tmp_path)
    assert found.places.keys() == {case["case"] for case in found.cases} | {fault.case for fault in found.faults}
    assert set(found.places.values()) >= {
        str(tmp_path / "scan.nii.gz"), str(tmp_path / "Mustermann" / "bad.nii"), str(tmp_path / "Müller" / "broken.dcm")
    }  # fmt: skip
    assert "ustermann" not in repr(found.paths) + repr(found.faults) and "Müller" not in repr(found.faults)


def png(path, columns, rows, before=(), after=()):
    """Write a PNG of one colour, row by row, with chunks before and behind its pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(9)
    row = bytes(3 * columns + 1)
    pixels = b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()
    parts = [(b"IHDR", struct.pack(">2I5B", columns, rows, 8, 2, 0, 0, 0)), *before, (b"IDAT", pixels), *after]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in (*parts, (b"IEND", b""))))


def exif(orientation):
    found = Image.Exif()
    found[0x0112] = orientation
    return found.tobytes()[6:]


def test_pictures_are_not_decoded_for_their_size(tmp_path, monkeypatch):
    png(tmp_path / "plain.png", 40, 30)
    png(tmp_path / "before.png", 40, 30, before=[(b"eXIf", exif(6))])
    png(tmp_path / "after.png", 40, 30, after=[(b"eXIf", exif(6)), (b"tEXt", b"Comment\0" + b"x" * 99)])
    Image.new("RGB", (40, 30)).save(tmp_path / "a.tif")
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=exif(6))
    Image.new("P", (40, 30)).save(tmp_path / "palette.png", transparency=0)
    loaded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", loaded.append)
    sizes = {path.name: picture_size(path) for path in tmp_path.iterdir()}
    monkeypatch.undo()
    assert not loaded
    assert sizes["before.png"] == (40, 30) and sizes["plain.png"] == (30, 40)
    for path in tmp_path.iterdir():
        assert ScanReader().get_data([str(path)])[0].shape[:2] == sizes[path.name]


@pytest.mark.parametrize("size", [(13000, 13000), (70000, 1000), (2**31 - 1, 1)])
def test_pictures_that_would_fill_the_memory_are_refused(tmp_path, size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    png(tmp_path / "a.png", 8, 9)
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[16:24] = struct.pack(">2I", *size)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    for name in ("b.png", "c.jpg"):
        (tmp_path / name).write_bytes(content)
    os.unlink(tmp_path / "a.png")
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "BMP")
    bitmap = bytearray(buffer.getvalue())
    bitmap[18:26] = struct.pack("<2i", *size)
    (tmp_path / "d.bmp").write_bytes(bitmap)
    Image.new("RGB", (8, 9)).save(tmp_path / "good.png")
    found = discover(tmp_path, spatial_dims=2)
    assert [case["case"] for case in found.cases] == ["good"]
    assert [fault.case for fault in found.faults] == ["b", "c", "d"]
    assert all("megapixels" in fault.message or "cannot be read" in fault.message for fault in found.faults)
    for name in ("b.png", "c.jpg", "d.bmp"):
        with pytest.raises(GrataError):
            ScanReader().get_data([str(tmp_path / name)])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 2**10
