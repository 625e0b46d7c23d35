"""MetaImage and NRRD, the formats of ITK: names, header checks, reading, and writing.

ITK itself is not asked to read them: it takes a voxel size of 1 mm where the header gives none, does not notice damage
of a compressed MetaImage, and writes paths to the terminal.
"""

import gzip
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import BinaryIO, cast

import numpy as np

from ..errors import GrataError
from ..files import absence, atomic_write, plainly_named
from .geometry import ORIENTATION_TOLERANCE
from .sizes import check_volume_size, read_to_end

__all__ = ["ITK_ENDINGS", "ItkFile", "check_whole_itk", "is_itk", "load_itk", "read_itk", "save_itk"]

ITK_ENDINGS = (".mha", ".mhd", ".nrrd", ".nhdr")
"""How the names of MetaImage and NRRD files end, or of their headers."""

_LONGEST_HEADER = 2**20

_META_TYPES = {
    "CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4", "LONG": "i4", "ULONG": "u4",
    "LONG_LONG": "i8", "ULONG_LONG": "u8", "FLOAT": "f4", "DOUBLE": "f8",
}  # fmt: skip
_NRRD_TYPES = {
    "i1": "signed char, int8, int8_t", "u1": "uchar, unsigned char, uint8, uint8_t",
    "i2": "short, short int, signed short, signed short int, int16, int16_t",
    "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
    "i4": "int, signed int, int32, int32_t", "u4": "uint, unsigned int, uint32, uint32_t",
    "i8": "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t",
    "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t", "f4": "float", "f8": "double",
}  # fmt: skip
_NRRD_CODES = {name: code for code, names in _NRRD_TYPES.items() for name in names.split(", ")}
# Signs that turn a space into RAS.
_NRRD_SPACES = {
    "ras": (1, 1, 1), "right-anterior-superior": (1, 1, 1), "las": (-1, 1, 1), "left-anterior-superior": (-1, 1, 1),
    "lps": (-1, -1, 1), "left-posterior-superior": (-1, -1, 1),
}  # fmt: skip


@dataclass(frozen=True)
class ItkFile:
    """What the header of a MetaImage or NRRD file says.

    Attributes:
        shape: sizes of the three axes, the fastest first.
        channels: number of values of a voxel.
        channels_last: whether the values of a voxel lie as far apart as possible, instead of beside each other.
        dtype: type of the values, as stored.
        affine: RAS affine, (4, 4), mm.
        file: file of the voxels, which may be the header's.
        offset: where they begin; -1: they end with the file.
        encoding: ``raw``, ``zlib`` or ``gzip``.
    """

    shape: tuple[int, int, int]
    channels: int
    channels_last: bool
    dtype: np.dtype
    affine: np.ndarray
    file: Path
    offset: int
    encoding: str

    @property
    def size(self) -> int:
        """Number of bytes of the voxels."""
        return int(np.prod([*self.shape, self.channels], dtype=object)) * self.dtype.itemsize


class _HeaderError(ValueError):
    """A header that cannot be used; the message says why and what to do without naming the file."""


class _AxesError(_HeaderError):
    """A header with another number of axes than three."""


def is_itk(path: str | os.PathLike[str]) -> bool:
    """Return whether a file's name ends in ``.mha``, ``.mhd``, ``.nrrd`` or ``.nhdr``."""
    return os.fspath(path).lower().endswith(ITK_ENDINGS)


def load_itk(path: str | os.PathLike[str]) -> ItkFile:
    """Read and check the header of a MetaImage or NRRD file; its voxels are read later.

    Raises:
        GrataError: the file is empty, damaged, or not readable by the user; its voxels lie in a file that is missing or
            outside the header's folder; or its header does not give the position of every voxel without a guess, is of
            a kind that cannot be read, or claims more than the file can hold.
    """
    path = Path(path)
    name = _named(path)
    try:
        if not os.path.getsize(path):
            raise GrataError(f"{name} is empty (0 bytes). Copy or export it again.")
        with open(path, "rb") as file:
            found = (_meta if path.suffix.lower() in (".mha", ".mhd") else _nrrd)(path, file)
        if not found.file.is_file():
            raise _HeaderError(f"'{found.file.name}' with its voxels is missing. Put it beside the header")
        stored = found.file.stat().st_size
        shape = (*found.shape, found.channels) if found.channels > 1 else found.shape
        check_volume_size(name, shape, found.dtype.itemsize, stored, found.encoding != "raw", max(found.offset, 0))
    except GrataError:
        raise
    except FileNotFoundError as error:
        raise GrataError(f"{name} {absence(path)}. Put it back, or leave it out.") from error
    except _HeaderError as error:
        raise GrataError(f"{name} cannot be used: {error}.") from error
    except OSError as error:
        raise GrataError(f"{name} cannot be read: {error.strerror}. Check its permissions.") from error
    # A damaged header may hold anything in the place of a number.
    except Exception as error:
        raise GrataError(f"{name} has a header that is damaged or truncated. Copy or export it again.") from error
    return found


def read_itk(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read the voxels and the RAS affine of a MetaImage or NRRD file.

    Returns:
        The float32 array as stored, (H, W, D) or with channels last, and the (4, 4) affine in mm.

    Raises:
        GrataError: see :func:`load_itk`; or the voxels cannot be read completely.
    """
    header = load_itk(path)
    values = np.frombuffer(_content(path, header), header.dtype)
    if header.channels == 1:
        array = values.reshape(header.shape, order="F")
    elif header.channels_last:
        array = values.reshape((*header.shape, header.channels), order="F")
    else:
        array = np.moveaxis(values.reshape((header.channels, *header.shape), order="F"), 0, -1)
    return array.astype(np.float32), header.affine.copy()


def check_whole_itk(path: str | os.PathLike[str]) -> None:
    """Check that a MetaImage or NRRD file is whole, and that nothing of its voxels' sizes is a guess.

    It is for a file that another library reads, to which one with another number of axes is left.

    Raises:
        GrataError: see :func:`read_itk`.
    """
    try:
        header = load_itk(path)
    except GrataError as error:
        if isinstance(error.__cause__, _AxesError):
            return
        raise
    _content(path, header)


def _content(path: str | os.PathLike[str], header: ItkFile) -> bytes:
    """Return the bytes of the voxels."""
    try:
        with open(header.file, "rb") as file:
            content = _READERS[header.encoding](file, header)
        if len(content) != header.size:
            raise ValueError("too few bytes")
    # zlib.error is not an OSError.
    except Exception as error:
        raise GrataError(
            f"{_named(path)}: its voxels cannot be read. It is truncated or damaged. Copy or export it again."
        ) from error
    return content


def save_itk(labels: np.ndarray, affine: np.ndarray, path: str | os.PathLike[str]) -> None:
    """Write a label map as MetaImage or NRRD, compressed, whole or not at all.

    Args:
        labels: label map, uint8, (H, W, D).
        affine: RAS affine in mm, (4, 4).
        path: file to write, ``.mha`` or ``.nrrd``.

    Raises:
        GrataError: the file cannot be written.
    """
    import itk

    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = itk.image_from_array(np.ascontiguousarray(labels.T))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(lps[:3, :3] / spacing)))
    with atomic_write(path) as temporary:
        try:
            with plainly_named([temporary.parent]) as (folder,):
                itk.imwrite(image, str(folder / temporary.name), compression=True)
            whole = (read_itk(temporary)[0] == labels).all()
        # ITK does not say what the disk refused.
        except (RuntimeError, GrataError) as error:
            raise OSError(f"'{Path(path).name}' was not written completely") from error
        if not whole:
            raise OSError(f"'{Path(path).name}' was not written completely")


def _named(path: str | os.PathLike[str]) -> str:
    kind = "NRRD" if os.fspath(path).lower().endswith((".nrrd", ".nhdr")) else "MetaImage"
    return f"{kind} file '{path}'"


def _meta(path: Path, file: BinaryIO) -> ItkFile:
    fields = _meta_fields(file)
    big = _is_true(fields, "binarydatabyteordermsb") or _is_true(fields, "elementbyteordermsb")
    code = _META_TYPES.get(_first(fields, "ElementType").upper().removeprefix("MET_"))
    data_file = _first(fields, "ElementDataFile")
    attached = data_file.upper() == "LOCAL"
    return ItkFile(
        shape=_shape(_first(fields, "DimSize").split()),
        channels=int(fields.get("elementnumberofchannels", "1")),
        channels_last=False,
        dtype=_dtype(code, fields["elementtype"], ">" if big else "<"),
        affine=_meta_affine(fields),
        file=path if attached else _beside(path, data_file),
        offset=file.tell() if attached else int(fields.get("headersize", "0")),
        encoding="zlib" if _is_true(fields, "compresseddata") else "raw",
    )


def _meta_fields(file: BinaryIO) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in _lines(file):
        key, separator, value = (part.strip() for part in line.partition("="))
        if separator:
            _add(fields, key.lower(), value)
        if key.lower() == "elementdatafile":
            break
    if fields.get("ndims") != "3":
        raise _AxesError(f"it has {fields.get('ndims', 'no')} axes (NDims). Save it as a volume of three axes")
    if fields.get("distanceunits", "mm").lower() not in ("mm", "?"):
        raise _HeaderError(f"it is measured in {fields['distanceunits']}, not in mm. Convert it")
    if not _is_true(fields, "binarydata", default="true"):
        raise _HeaderError("its voxels are stored as text. Save it in binary form")
    return fields


def _meta_affine(fields: Mapping[str, str]) -> np.ndarray:
    matrix = np.reshape(_numbers(_first(fields, "TransformMatrix", "Rotation", "Orientation"), 9), (3, 3)).T
    spacing = _numbers(_first(fields, "ElementSpacing"), 3)
    if not np.allclose(np.linalg.norm(matrix, axis=0), 1, atol=ORIENTATION_TOLERANCE):
        raise _HeaderError("its TransformMatrix is no rotation. Export it again")
    return _affine(matrix * spacing, _numbers(_first(fields, "Offset", "Position", "Origin"), 3), (-1, -1, 1))


def _is_true(fields: Mapping[str, str], key: str, default: str = "false") -> bool:
    return fields.get(key, default).lower() in ("true", "1")


def _nrrd(path: Path, file: BinaryIO) -> ItkFile:
    fields = _nrrd_fields(file)
    sizes, apart, affine = _nrrd_grid(fields)
    channels = int(sizes.pop(apart[0])) if apart else 1
    encoding, skipped = _nrrd_encoding(fields)
    code = _NRRD_CODES.get(_first(fields, "type").lower())
    # A byte has no order.
    endian = _first(fields, "endian").lower() if code not in (None, "i1", "u1") else "little"
    data_file = fields.get("datafile")
    attached = 0 if data_file else file.tell()
    return ItkFile(
        shape=_shape(sizes),
        channels=channels,
        channels_last=apart == [3],
        dtype=_dtype(code, fields["type"], ">" if endian == "big" else "<"),
        affine=affine,
        file=_beside(path, data_file) if data_file else path,
        offset=skipped if skipped < 0 else attached + skipped,
        encoding=encoding,
    )


def _nrrd_grid(fields: Mapping[str, str]) -> tuple[list[str], list[int], np.ndarray]:
    """Return the sizes of all axes, the axis that holds the values of a voxel, if there is one, and the RAS affine."""
    vectors = re.findall(r"none|\([^)]*\)", _first(fields, "space directions"))
    sizes = _first(fields, "sizes").split()
    apart = [axis for axis, vector in enumerate(vectors) if vector == "none"]
    if len(sizes) != len(vectors) or apart not in ([], [0], [3]) or len(vectors) != 3 + len(apart):
        raise _AxesError(f"it has {len(sizes)} axes, not three in space. Save it as a volume of three axes")
    return sizes, apart, _nrrd_affine(fields, [vector for vector in vectors if vector != "none"])


def _nrrd_fields(file: BinaryIO) -> dict[str, str]:
    lines = _lines(file)
    if not re.match(r"NRRD000\d", next(lines, "")):
        raise _HeaderError("it is not NRRD by its content. Copy or export it again")
    fields: dict[str, str] = {}
    for line in lines:
        if not line.strip():
            break
        key, separator, value = (part.strip() for part in line.partition(":"))
        # After := anybody's own keys stand.
        if separator and not line.startswith("#") and not value.startswith("="):
            # Spaces within the names of these fields are optional.
            _add(fields, key.lower().replace(" ", ""), value)
    return fields


def _nrrd_encoding(fields: Mapping[str, str]) -> tuple[str, int]:
    """Return how the voxels are stored, and how many bytes to skip before them."""
    encoding = {"raw": "raw", "gzip": "gzip", "gz": "gzip"}.get(_first(fields, "encoding").lower())
    skipped, lines = int(fields.get("byteskip", "0")), int(fields.get("lineskip", "0"))
    if encoding is None or lines or (skipped and encoding == "gzip"):
        raise _HeaderError(f"its voxels are stored in a form ({fields['encoding']}) that is not read. Save it again")
    return encoding, skipped


def _nrrd_affine(fields: Mapping[str, str], vectors: Sequence[str]) -> np.ndarray:
    signs = _NRRD_SPACES.get(_first(fields, "space").lower())
    if signs is None:
        raise _HeaderError(f"left and right would be a guess in its space ({fields['space']}). Save it in RAS or LPS")
    if set(re.findall(r'"([^"]*)"', fields.get("spaceunits", ""))) - {"mm", "millimeter", "millimeters", ""}:
        raise _HeaderError(f"it is measured in {fields['spaceunits']}, not in mm. Convert it")
    *axes, origin = (
        _numbers(vector.strip("()").replace(",", " "), 3) for vector in (*vectors, _first(fields, "space origin"))
    )
    return _affine(np.array(axes).T, origin, signs)


def _lines(file: BinaryIO) -> Iterator[str]:
    """Yield the lines of a header, which is followed by the voxels."""
    while file.tell() < _LONGEST_HEADER and (line := file.readline(_LONGEST_HEADER)):
        yield line.decode("latin-1").rstrip("\r\n")


def _add(fields: dict[str, str], key: str, value: str) -> None:
    if fields.setdefault(key, value) != value:
        raise _HeaderError(f"its header gives {key} twice. Export it again")


def _first(fields: Mapping[str, str], *keys: str) -> str:
    """Return the field of one of these names; nothing is put in its place where there is none."""
    for key in keys:
        if value := fields.get(key.lower().replace(" ", "")):
            return value
    raise _HeaderError(f"its header has no {keys[0]}, which would be a guess. Export it again")


def _numbers(text: str, count: int) -> np.ndarray:
    numbers = np.array([float(number) for number in text.split()])
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise _HeaderError(f"its header gives '{text[:80]}' where {count} finite numbers are needed. Export it again")
    return numbers


def _shape(sizes: Sequence[str]) -> tuple[int, int, int]:
    first, second, third = map(int, sizes)
    if min(first, second, third) < 1:
        raise _HeaderError("an axis has no voxels. Export it again")
    return first, second, third


def _dtype(code: str | None, name: str, order: str) -> np.dtype:
    if code is None:
        raise _HeaderError(f"its voxels are of a type ({name}) that is not read. Convert it to grey values")
    return np.dtype(f"{order}{code}")


def _affine(axes: np.ndarray, origin: np.ndarray, signs: tuple[int, int, int]) -> np.ndarray:
    spacing = np.linalg.norm(axes, axis=0)
    if (spacing < 1e-6).any():
        raise _HeaderError("its voxel size is zero along an axis. Export it again")
    cosines = axes / spacing
    if not np.allclose(cosines.T @ cosines, np.eye(3), atol=2 * ORIENTATION_TOLERANCE):
        raise _HeaderError("its axes are not perpendicular to each other. Resample it")
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes, origin
    return np.diag([*signs, 1]) @ affine


def _beside(path: Path, name: str) -> Path:
    """Return the file of the voxels, in the header's folder or below: a header must not lead elsewhere."""
    inner = PureWindowsPath(name)
    if inner.anchor or ".." in inner.parts or "%" in name or name.split(maxsplit=1)[0].upper() == "LIST":
        raise _HeaderError("its voxels are not in one file beside the header. Save it again, as one file")
    return path.parent / inner.as_posix()


def _read_raw(file: BinaryIO, header: ItkFile) -> bytes:
    file.seek(*((-header.size, os.SEEK_END) if header.offset < 0 else (header.offset, os.SEEK_SET)))
    return file.read(header.size)


def _read_zlib(file: BinaryIO, header: ItkFile) -> bytes:
    file.seek(max(header.offset, 0))
    stream = zlib.decompressobj()
    # The check sum is compared only where there is place for more.
    content = stream.decompress(file.read(), header.size + 1)
    if not stream.eof:
        raise ValueError("truncated")
    return content


def _read_gzip(file: BinaryIO, header: ItkFile) -> bytes:
    file.seek(max(header.offset, 0))
    with gzip.GzipFile(fileobj=file) as stream:
        content = stream.read(header.size)
        read_to_end(cast(BinaryIO, stream))
    return content


_READERS: dict[str, Callable[[BinaryIO, ItkFile], bytes]] = {"raw": _read_raw, "zlib": _read_zlib, "gzip": _read_gzip}
