"""Images with faults, beside good ones that must be read all the same."""

from __future__ import annotations

import bz2
import gzip
import io
import struct
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import nibabel
import numpy as np
from PIL import Image

from grata.data import ScanReader, discover, write_dicom_seg, write_nifti, write_png
from grata.errors import GrataError

from .dicom import NAME, SHAPE, broken_series, encoded, enhanced, series
from .mutate import damage, odd_integer, odd_text, zeros
from .watch import Input, Target, lacked_memory

__all__ = ["SCANS", "good_nifti", "read_case"]

_AFFINE = np.array([[-1.0, 0, 0, 3], [0, 1.5, 0, 4], [0, 0, 2, 5], [0, 0, 0, 1]])
_VALUES = np.random.default_rng(0).integers(1, 99, SHAPE).astype(np.float32)
_UNCHANGED = "unchanged"
"""File beside the scans that says that a scan which is read must have the values of the good one."""

_SEGMENTS = [
    {
        "value": 1,
        "label": "Structure",
        "category": ["123037004", "SCT", "Anatomical Structure"],
        "type": ["818981001", "SCT", "Abdomen"],
    }
]


def _nifti(values: np.ndarray, kind: Any = nibabel.Nifti1Image) -> bytes:
    image = kind(values, _AFFINE)
    image.set_qform(_AFFINE, code=1)
    image.set_sform(_AFFINE, code=1)
    image.header.set_xyzt_units("mm", "sec")
    return image.to_bytes()


@cache
def good_nifti() -> bytes:
    """Return a good NIfTI file."""
    return _nifti(_VALUES)


def read_case(case: Mapping[str, Any], folder: Path) -> np.ndarray | None:
    """Read a case as a run does and write a segmentation of it; return its values, or None where it is refused.

    Raises:
        AssertionError: what was read is no image of finite geometry.
    """
    reader = ScanReader()
    try:
        array, meta = reader.get_data(reader.read(case["image"]))
        assert array.dtype == np.float32 and array.size, f"{array.dtype} {array.shape}"
        affine = np.asarray(meta["affine"])
        assert affine.shape == (4, 4) and np.isfinite(affine).all() and np.linalg.det(affine), f"affine {affine}"
        if "label" in case:
            label = ScanReader(label=True)
            label.get_data(label.read(case["label"]))
        _write(case, np.zeros(meta["spatial_shape"], np.uint8), folder)
    except GrataError as error:
        if lacked_memory(error):
            raise
        assert str(error).strip() and NAME not in str(error), f"message: {error}"
        return None
    return array


def _write(case: Mapping[str, Any], labels: np.ndarray, folder: Path) -> None:
    if case["format"] == "picture":
        write_png(labels, case, folder / "out.png")
    else:
        write_nifti(labels, case, folder / "out.nii.gz")
    if case["format"] == "dicom":
        write_dicom_seg(labels, case, _SEGMENTS, folder / "out.seg.dcm")


def _entrance(good: np.ndarray, spatial_dims: int = 3) -> Callable[[Path], bool]:
    """Return the entrance of a folder ``scans``, in which ``good`` lies in a folder of that name."""

    def enter(folder: Path) -> bool:
        root = folder / "scans"
        try:
            found = discover(root, spatial_dims=spatial_dims)
        except GrataError as error:
            raise AssertionError(f"one file ended the search: {error}") from error
        told = [*found.notes, *found.paths.values(), *(f"{fault.case} {fault.message}" for fault in found.faults)]
        assert not any(NAME.lower() in text.lower() for text in told), f"told: {told}"
        accepted = seen = False
        for case in found.cases:
            first = case["image"] if isinstance(case["image"], str) else case["image"][0]
            is_good = Path(first).is_relative_to(root / "good")
            array = read_case(case, folder)
            if is_good:
                seen = array is not None and np.array_equal(array, good)
            else:
                accepted |= array is not None
                if array is not None and (folder / _UNCHANGED).exists():
                    assert np.array_equal(array, good), "other values were read"
        assert seen, "the good scan was not read"
        return accepted

    return enter


# NIfTI

_FLOATS = (0, -0.0, 1, -1, 1e-30, 1e30, float("nan"), float("inf"), float("-inf"), 1e-9, 0.5)


def _change_header(data: bytes, rng: Random, kind: Any) -> tuple[bytes, str]:
    """Set a field of a header to a value that it may not be made for."""
    fields = kind.header_class.template_dtype
    header = np.frombuffer(data[: fields.itemsize], fields).copy()
    name = rng.choice([*fields.names, *("dim", "pixdim", "scl_slope", "scl_inter", "vox_offset", "datatype") * 3])
    field = header[name].reshape(-1)
    index = rng.randrange(field.size)
    if field.dtype.kind == "S":
        field[index] = rng.choice((b"", b"\xff\xff", b"n+1", b"ni1", b"x" * field.dtype.itemsize))
    elif field.dtype.kind == "f":
        field[index] = rng.choice((*_FLOATS, odd_integer(rng)))
    else:
        value = rng.choice((0, 1, -1, 2, 3, 16, 64, 128, 300, 2000, 32767, odd_integer(rng)))
        bits = 8 * field.dtype.itemsize
        field[index] = np.array(value % 2**bits, f"u{bits // 8}").astype(field.dtype, casting="unsafe")
    # a field of several numbers may be a view no more
    header[name] = field.reshape(header[name].shape)
    return header.tobytes() + data[fields.itemsize :], f"{name}[{index}] is {field[index]!r}"


def _break_nifti(rng: Random) -> tuple[bytes, str]:
    kind = rng.choice((nibabel.Nifti1Image, nibabel.Nifti1Image, nibabel.Nifti2Image))
    shape = rng.choice((SHAPE, SHAPE, (*SHAPE, 1), (*SHAPE, 2), (6, 5), (6, 5, 1)))
    values = _VALUES.ravel()[: int(np.prod(shape))] if np.prod(shape) <= _VALUES.size else np.tile(_VALUES.ravel(), 2)
    data = _nifti(values.reshape(shape).astype(rng.choice(("f4", "i2", "u1", "f8"))), kind)
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data, what = damage(data, rng) if rng.random() < 0.2 or len(data) < 540 else _change_header(data, rng, kind)
        done.append(what)
    return data, ", ".join(done)


def _gzip_bomb(data: bytes) -> bytes:
    # members of a gzip file follow each other; these zeros are fewer than the header claims
    member = b"\x1f\x8b\x08" + bytes(6) + b"\xff" + zeros(4)
    return gzip.compress(data, mtime=0) + member + bytes(8)


def _make_nifti(rng: Random) -> Input:
    data, done = _break_nifti(rng) if rng.random() < 0.8 else (good_nifti(), "good")
    name = "bad.nii"
    if rng.random() < 0.5:
        data, name = gzip.compress(data, mtime=0), "bad.nii.gz"
        if rng.random() < 0.4:
            data, what = damage(data, rng)
            done += f", gzip {what}"
        elif rng.random() < 0.1:
            data, done = _gzip_bomb(_huge()), "too few zeros"
    files: dict[str, Any] = {"scans/good/good.nii": good_nifti(), f"scans/{name}": data}
    if done.startswith("good"):
        files[_UNCHANGED] = b""
    if rng.random() < 0.1:
        files = {f"scans/{name}": _nifti(_VALUES), "scans/good/good.nii": good_nifti(), "scans/bad_seg.nii": data}
        if name.endswith(".gz"):
            files[f"scans/{name}"] = gzip.compress(_nifti(_VALUES), mtime=0)
    return Input(files, f"{name}: {done}")


def _huge() -> bytes:
    """Return a header of a volume of a gigabyte."""
    header = nibabel.Nifti1Image(_VALUES, _AFFINE).header
    header.set_data_shape((1024, 1024, 256))
    header.set_sform(_AFFINE, code=1)
    return header.binaryblock + bytes(4)


# DICOM


def _make_dicom(rng: Random) -> Input:
    files, done = broken_series(rng)
    # names with and without an extension, and a UID's
    form = rng.choice(("IM{:04d}.dcm", "IM{:04d}", "1.2.40.{}", f"{NAME}{{}}.dcm"))
    made: dict[str, Any] = {f"scans/bad/{form.format(k)}": data for k, data in enumerate(files)}
    made |= {f"scans/good/{k}.dcm": data for k, data in enumerate(encoded(series("1.2.50")))}
    return Input(made, done)


def _good_series() -> np.ndarray:
    slices = [np.arange(100 * k, 100 * k + SHAPE[0] * SHAPE[1]).reshape(SHAPE[1], SHAPE[0]).T for k in range(SHAPE[2])]
    return np.stack(slices, -1).astype(np.float32)


# Pictures

_PIXELS = np.random.default_rng(1).integers(0, 256, (12, 9, 3)).astype(np.uint8)
_FORMATS = {"PNG": "png", "JPEG": "jpg", "TIFF": "tif", "BMP": "bmp", "GIF": "gif"}


@cache
def _picture(kind: str, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(_PIXELS).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _break_png(rng: Random) -> tuple[bytes, str]:
    """Return a PNG with an odd chunk, whose checksums are right."""
    header = [12, 9, 8, 2, 0, 0, 0]
    place = rng.randrange(7)
    sizes = (0, 1, 9, 255, 4000, 13000, 40000, 2**31 - 1, 2**32 - 1)
    header[place] = rng.choice(sizes if place < 2 else (0, 1, 2, 3, 4, 6, 7, 16, 255))
    if rng.random() < 0.2:
        # on either side of the largest picture, which takes more memory than an input may
        header[:4] = [rng.choice((4000, 17000)), rng.choice((4000, 17000)), rng.choice((8, 16)), rng.choice((0, 2, 6))]
    odd = rng.choice((b"eXIf", b"tRNS", b"PLTE", b"iCCP", b"zTXt", b"acTL", b"gAMA", b"pHYs", b"xxxx", b"XXXX"))
    content = rng.choice((b"", bytes(3), rng.randbytes(30), b"a\0\0" + b"\x78\x9c" + zeros(4), b"MM\0*\0\0\0\x08\0\1"))
    raw = b"".join(b"\0" + row.tobytes() for row in _PIXELS)
    pixels = zlib.compress(raw) if rng.random() < 0.8 else b"\x78\x9c" + zeros(rng.choice((1, 40)))
    chunks = [_chunk(odd, content), _chunk(b"IDAT", pixels)]
    if rng.random() < 0.3:
        chunks.reverse()
    parts = [_chunk(b"IHDR", struct.pack(">IIBBBBB", *header)), *chunks, _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts), f"header {header}, {odd!r}, {len(pixels)} bytes of pixels"


def _break_tiff(rng: Random) -> tuple[bytes, str]:
    """Return a TIFF with an odd entry in its directory."""
    data = bytearray(_picture("TIFF"))
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    at = start + 2 + 12 * rng.randrange(count)
    place, size = rng.choice(((0, 2), (2, 2), (4, 4), (8, 4), (8, 4), (8, 4)))
    value = odd_integer(rng) % 2 ** (8 * size)
    data[at + place : at + place + size] = value.to_bytes(size, "little")
    return bytes(data), f"entry at {at}+{place} is {value}"


def _break_numbers(kind: str, begin: int, end: int) -> Callable[[Random], tuple[bytes, str]]:
    """Return a maker of pictures with an odd number in their header."""

    def make(rng: Random) -> tuple[bytes, str]:
        data, at, size = bytearray(_picture(kind)), rng.randrange(begin, end), rng.choice((1, 2, 4))
        value = odd_integer(rng) % 2 ** (8 * size)
        data[at : at + size] = value.to_bytes(size, rng.choice(("little", "big")))
        return bytes(data), f"{kind} at {at} is {value}"

    return make


def _break_any(rng: Random) -> tuple[bytes, str]:
    kind = rng.choice(tuple(_FORMATS))
    data, done = damage(_picture(kind, rng.choice(("RGB", "L"))), rng)
    return data, f"{kind} {done}"


def _turned(rng: Random) -> tuple[bytes, str]:
    value = odd_integer(rng) % 2**16
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">HHHIHH", rng.choice((1, 1, 60000)), 0x0112, 3, 1, value, 0)
    exif += rng.choice((bytes(4), b"", b"\0\0\0\x08"))
    data = _picture("JPEG")
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:], f"JPEG, orientation {value}"


_BREAKS: tuple[tuple[Callable[[Random], tuple[bytes, str]], str], ...] = (
    *((_break_png, "png"), (_break_png, "png"), (_break_tiff, "tif"), (_break_numbers("BMP", 2, 54), "bmp")),
    *((_break_numbers("JPEG", 2, 200), "jpg"), (_turned, "jpg"), (_break_any, ""), (_break_any, "")),
)


def _make_picture(rng: Random) -> Input:
    make, ending = rng.choice(_BREAKS)
    data, done = make(rng)
    # a wrong name now and then
    ending = ending if ending and rng.random() < 0.9 else rng.choice(("png", "jpg", "tif", "bmp"))
    name, files = f"scans/bad.{ending}", {"scans/good/good.png": _picture("PNG")}
    if rng.random() < 0.2:
        files |= {"scans/bad.png": _picture("PNG"), f"scans/bad_mask.{ending}": data}
    else:
        files[name] = data
    return Input(dict(files), f"{ending}: {done}")


# Formats of ITK

ItkMaker = Callable[[Random | None], tuple[dict[str, bytes], str]]
"""Makes files of one image, good ones without a random generator."""


def _mha(rng: Random | None) -> tuple[dict[str, bytes], str]:
    lines = {
        "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False", "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "3 4 5",
        "ElementSpacing": "1 1.5 2", "DimSize": " ".join(map(str, SHAPE)), "ElementType": "MET_FLOAT",
        "ElementDataFile": "LOCAL",
    }  # fmt: skip
    done = _change_lines(lines, rng, ("MET_OTHER", "LIST", "../../x.raw", "-1 5 4", "60000 60000 60000"))
    text = "".join(f"{key} = {value}\n" for key, value in lines.items())
    return {"bad.mha": text.encode(errors="surrogateescape") + _VALUES.tobytes("F")}, done


def _nrrd(rng: Random | None) -> tuple[dict[str, bytes], str]:
    lines = {
        "type": "float", "dimension": "3", "space": "left-posterior-superior", "sizes": " ".join(map(str, SHAPE)),
        "space directions": "(1,0,0) (0,1.5,0) (0,0,2)", "kinds": "domain domain domain", "endian": "little",
        "encoding": "raw", "space origin": "(3,4,5)",
    }  # fmt: skip
    odd = ("gzip", "bzip2", "ascii", "none (0,1,0) (0,0,1)", "(nan,0,0) (0,1,0) (0,0,1)", "60000 60000 60000", "block")
    done = _change_lines(lines, rng, odd)
    text = "NRRD0004\n" + "".join(f"{key}: {value}\n" for key, value in lines.items()) + "\n"
    return {"bad.nrrd": text.encode(errors="surrogateescape") + _VALUES.tobytes("F")}, done


def _pair(rng: Random | None) -> tuple[dict[str, bytes], str]:
    image = nibabel.Nifti1Pair(_VALUES, _AFFINE)
    image.set_qform(_AFFINE, code=1)
    image.header.set_xyzt_units("mm")
    files = image.make_file_map({"header": io.BytesIO(), "image": io.BytesIO()})
    # The header says nothing of the scaling until it is written.
    image.to_file_map(files)
    header, pixels = (files[part].fileobj.getvalue() for part in ("header", "image"))
    if rng is None:
        return {"bad.hdr": header, "bad.img": pixels}, ""
    if rng.random() < 0.7:
        header, done = _change_header(header, rng, nibabel.Nifti1Pair)
    else:
        pixels, done = damage(pixels, rng)
    if rng.random() < 0.3:
        return {"bad.hdr": header, "bad.img.gz": gzip.compress(pixels, mtime=0)}, f"gzip, {done}"
    return {"bad.hdr": header, "bad.img": pixels}, done


def _change_lines(lines: dict[str, str], rng: Random | None, odd: tuple[str, ...]) -> str:
    if rng is None:
        return ""
    key = rng.choice(list(lines))
    if rng.random() < 0.2:
        del lines[key]
        return f"without {key}"
    lines[key] = rng.choice((*odd, odd_text(rng), str(odd_integer(rng)), f"{lines[key]} 1", lines[key][:-1]))
    return f"{key} is {lines[key][:40]!r}"


def _make_itk(of: ItkMaker) -> Callable[[Random], Input]:
    def make(rng: Random) -> Input:
        files, done = of(rng)
        if rng.random() < 0.3:
            name = rng.choice(list(files))
            files[name], what = damage(files[name], rng)
            done += f", {what}"
        good = {"scans/good/good.nii": good_nifti()}
        return Input({**good, **{f"scans/{name}": data for name, data in files.items()}}, done)

    return make


def _unread(rng: Random) -> Input:
    """Return files that no scan lies in, in names that might hold one."""
    contents: tuple[bytes | str | None, ...] = (
        *(b"", b"text", bytes(400), rng.randbytes(400), bz2.compress(good_nifti()), None, "nowhere", "."),
        *(good_nifti(), b"PK\3\4" + bytes(60), _picture("PNG"), encoded(series())[0]),
    )
    names = ("a.nii", "a.nii.gz", "a.dcm", "a", "a.nii.bz2", "a.zip", "a.mgz", "a.png", ".a.nii", "DICOMDIR", "a.7")
    files: dict[str, Any] = {f"scans/{name}": rng.choice(contents) for name in rng.sample(names, 3)}
    files["scans/" + rng.choice(("\udcff.nii", "a\nb.nii", "#x.nii", "x" * 200 + ".nii"))] = rng.choice(contents)
    shown = {name[6:]: content if isinstance(content, str) else (content or b"")[:6] for name, content in files.items()}
    return Input(files | {"scans/good/good.nii": good_nifti()}, str(shown))


def _beside_nifti(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {"scans/good/good.nii": good_nifti(), **{f"scans/{name}": data for name, data in files.items()}}


def _good_dicom() -> dict[str, bytes]:
    good = {f"scans/good/{k}.dcm": data for k, data in enumerate(encoded(series("1.2.50")))}
    others = (*encoded(series()), *encoded(enhanced()))
    return good | {f"scans/{k // SHAPE[2]}/{k}": data for k, data in enumerate(others)}


def _good_pictures() -> dict[str, bytes]:
    others = {f"scans/{kind}.{ending}": _picture(kind) for kind, ending in _FORMATS.items()}
    return {"scans/good/good.png": _picture("PNG"), **others}


SCANS = (
    Target("nifti", _make_nifti, _entrance(_VALUES), lambda: _beside_nifti({"bad.nii": good_nifti()}), 30),
    Target("dicom", _make_dicom, _entrance(_good_series()), _good_dicom, 32),
    Target("picture", _make_picture, _entrance(_PIXELS.astype(np.float32), 2), _good_pictures, 58),
    Target("folder", _unread, _entrance(_VALUES), lambda: _beside_nifti({"a.nii": good_nifti()}), 10),
    *(
        Target(name, _make_itk(of), _entrance(_VALUES), lambda of=of: _beside_nifti(of(None)[0]), 15)
        for name, of in (("mha", _mha), ("nrrd", _nrrd), ("pair", _pair))
    ),
)
