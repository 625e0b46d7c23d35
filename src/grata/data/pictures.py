"""Pictures: 2D images in colour or grey, as cameras write them (PNG, JPEG, TIFF, BMP)."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from matplotlib import color_sequences
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..errors import GrataError
from ..files import absence, atomic_write
from .sizes import LARGEST_PICTURE, check_picture_size

__all__ = ["is_label_picture", "is_picture", "picture_size", "read_label_picture", "read_picture", "save_label_picture"]

_EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})
# Older data sets have label maps as GIF; a GIF that is not a label map is a drawing.
_LABEL_EXTENSIONS = _EXTENSIONS | {".gif"}
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF")
_COLOURS = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr"})
_GREYS = frozenset({"1", "L", "LA"})
# EXIF orientations that exchange rows and columns.
_TURNED = frozenset({5, 6, 7, 8})


def is_picture(path: str | os.PathLike[str]) -> bool:
    """Return whether a file's name ends in ``.png``, ``.jpg``, ``.jpeg``, ``.tif``, ``.tiff`` or ``.bmp``."""
    return Path(path).suffix.lower() in _EXTENSIONS


def is_label_picture(path: str | os.PathLike[str]) -> bool:
    """Return whether a file's name ends like a picture's or in ``.gif``, which is taken for label maps only."""
    return Path(path).suffix.lower() in _LABEL_EXTENSIONS


def picture_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return the number of rows and columns of a picture after its EXIF orientation, without decoding it.

    Raises:
        GrataError: see :func:`read_picture`, as far as the beginning of the file shows it.
    """
    with _opened(path) as image:
        columns, rows = image.size
        # Pillow gives the size of a TIFF after its orientation.
        turned = image.format != "TIFF" and _orientation(image) in _TURNED
    return (columns, rows) if turned else (rows, columns)


def read_picture(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a picture and apply its EXIF orientation.

    Colours of any kind, also those of a palette, become RGB. A grey picture, also one with a grey palette, stays grey.
    Transparent parts become black, like the surroundings of the field of view of a fundus camera. Colour profiles are
    not applied.

    Returns:
        The float32 array, (rows, columns) for grey and (rows, columns, 3) for colour, in 0..255. Grey values of 16 or
        32 bits keep their stored range. Pillow reads only the upper 8 bits of colours of 16 bits.

    Raises:
        GrataError: the file cannot be read completely, is not a picture, has several pages, or has more than 67
            megapixels.
    """
    with _opened(path) as image:
        return np.array(_plain(_upright(image), path), dtype=np.float32)


def read_label_picture(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a label map from a picture: its grey values, or the indices into its palette.

    Returns:
        The float32 array, (rows, columns), after the EXIF orientation.

    Raises:
        GrataError: see :func:`read_picture`; or the picture is in colour or partly transparent.
    """
    with _opened(path) as image:
        bands = image.getbands()
        values = np.asarray(_upright(image))
    if values.ndim == 3:
        opaque = bands[-1] != "A" or bool((values[..., -1] == 255).all())
        colours = values[..., :-1] if bands[-1] == "A" else values
        if not opaque or (colours != colours[..., :1]).any() or bands[0] not in ("L", "R"):
            raise GrataError(
                f"Label picture '{path}' is {'in colour' if opaque else 'partly transparent'}. Give one whose pixels "
                "are the label values: a grey picture, or one with a palette."
            )
        values = colours[..., 0]
    return values.astype(np.float32)


def save_label_picture(labels: np.ndarray, path: str | os.PathLike[str]) -> None:
    """Write a label map as a PNG with a palette, whole or not at all.

    The pixel values are the label values; the palette shows each in a colour of its own.

    Args:
        labels: label map, uint8, (rows, columns); 0 is background and shown black.
        path: file to write.

    Raises:
        GrataError: the file cannot be written.
    """
    # The strong colour of each pair comes first: the strong ones differ most from each other.
    colours = color_sequences["tab20"]
    shown = [(0.0, 0.0, 0.0), *islice(cycle([*colours[::2], *colours[1::2]]), 255)]
    image = Image.fromarray(labels)
    image.putpalette(np.rint(np.multiply(shown, 255)).astype(np.uint8).tobytes())
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG")


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """Open a picture; errors, also those of decoding it inside the block, become plain messages."""
    try:
        if not os.path.getsize(path):
            raise GrataError(f"Picture '{path}' is empty (0 bytes). Copy or export it again.")
        with warnings.catch_warnings():
            # Pillow warns of large pictures, which the limit below covers, and of odd metadata, which are not read.
            warnings.simplefilter("ignore")
            # With a path instead of a file, Pillow maps it into memory and scrambles an uncompressed, turned TIFF.
            with open(path, "rb") as file, Image.open(file, formats=_FORMATS) as image:
                check_picture_size(f"Picture '{path}'", image.size)
                _check_frames(image, path)
                yield image
    except GrataError:
        raise
    except FileNotFoundError as error:
        raise GrataError(f"Picture '{path}' {absence(path)}. Put it back, or leave it out.") from error
    except Image.DecompressionBombError as error:
        raise GrataError(
            f"Picture '{path}' has more than {LARGEST_PICTURE / 1e6:.0f} megapixels by its header, which would fill "
            "the memory. Export it smaller, or leave it out."
        ) from error
    except UnidentifiedImageError as error:
        raise GrataError(
            f"Picture '{path}' cannot be read: it is damaged, or not a PNG, JPEG, TIFF or BMP in spite of its name. "
            "Copy or export it again."
        ) from error
    # A damaged file makes Pillow raise one of a dozen exceptions that have no common base.
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise GrataError(f"Picture '{path}' cannot be read: {error.strerror}. Check its permissions.") from error
        raise GrataError(
            f"Picture '{path}' cannot be read completely: it is truncated or damaged. Copy or export it again."
        ) from error


def _upright(image: Image.Image) -> Image.Image:
    """Return a picture after its EXIF orientation, as :func:`picture_size` takes it."""
    # Asked for before the pixels are decoded, it stays what it is.
    _orientation(image)
    return ImageOps.exif_transpose(image)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; of a PNG, what stands before its pixels."""
    # PNG has a method of its own, which decodes the pixels to look behind them.
    return int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))


def _check_frames(image: Image.Image, path: str | os.PathLike[str]) -> None:
    frames = getattr(image, "n_frames", 1)
    # An MPO is a JPEG whose further frames are previews or the view of the other eye.
    if frames > 1 and image.format != "MPO":
        raise GrataError(f"Picture '{path}' holds {frames} pages or frames. Save the one to use as a file of its own.")
    if not all(image.size):
        raise GrataError(f"Picture '{path}' has no pixels. Copy or export it again.")


def _plain(image: Image.Image, path: str | os.PathLike[str]) -> Image.Image:
    """Convert a picture to grey values or RGB."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return image
    if image.mode not in _COLOURS:
        raise GrataError(
            f"Picture '{path}' has pixels of a kind ({image.mode}) that cannot be read. Save it as RGB or grey."
        )
    mode = image.mode
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
    image = image.convert("RGB")
    if mode in _GREYS or (mode.startswith("P") and not np.ptp(np.asarray(image), axis=-1).any()):
        return image.getchannel(0)
    return image
