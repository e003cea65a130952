"""Any image, from any source, becomes an upright RGB image of 8 bits, or one sentence that says why not."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from rmadapter.errors import UserError

ImageSource: TypeAlias = "str | Path | Image.Image | np.ndarray"

# Formats that Pillow lists and cannot draw by itself; EPS and WMF would even start another program.
NO_IMAGES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


def load_image(source: ImageSource) -> Image.Image:
    """An image as RGB: upright after its EXIF tag, first frame, transparency on white, 16 bit scaled to 8.

    Raises UserError that names the file when it is missing, empty, truncated, no image, or larger than
    PIL.Image.MAX_IMAGE_PIXELS, and for arrays of another type or shape than ImageSet lists.
    """
    if isinstance(source, np.ndarray):
        return _rgb(_from_array(source))
    if isinstance(source, Image.Image):
        with reading("the image given"):
            return _rgb(source)
    if not isinstance(source, (str, os.PathLike)):
        raise UserError(f"an image is a path, a PIL image or a NumPy array, not {type(source).__name__}")
    with reading(str(source)), open(source, "rb") as file:
        return _rgb(_open(file))


@contextmanager
def reading(name: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{name}: {error}; make it smaller or leave it out") from None
    except Image.UnidentifiedImageError:
        raise UserError(f"{name}: not an image of a kind that Pillow can read") from None
    except Exception as error:  # on broken files Pillow's readers raise nearly anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"{name}: not a readable image ({reason})") from error


@cache
def formats() -> dict[str, str]:
    """Extension -> format, for all images that Pillow can read here."""
    known = Image.registered_extensions()  # loads Pillow's plugins, which fills Image.OPEN
    return {ending: name for ending, name in known.items() if name in Image.OPEN and name not in NO_IMAGES}


def _open(file: BinaryIO) -> Image.Image:
    """Read the header alone. Pillow itself only warns up to twice its limit of pixels."""
    if not file.read(1):
        raise ValueError("the file is empty, 0 bytes")
    file.seek(0)
    image = Image.open(file, formats=sorted(set(formats().values())))
    pixels, limit = image.width * image.height, Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels > limit:
        raise Image.DecompressionBombError(f"Image size ({pixels} pixels) exceeds limit of {limit} pixels")
    return image


def _rgb(image: Image.Image) -> Image.Image:
    image.load()
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block says nothing about the pixels, which are fine
        image = image.copy()
    if image.mode.startswith("I;16"):
        image = _eight_bit(np.asarray(image), (65535,))
    elif image.mode == "I":  # 32-bit integers, in which Pillow also keeps 8 and 16 bits
        image = _eight_bit(np.asarray(image), (255, 65535))
    elif image.mode == "F":
        image = _eight_bit(np.asarray(image), (1, 255, 65535))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    return image.convert("RGB")


def _eight_bit(values: np.ndarray, scales: tuple[int, ...]) -> Image.Image:
    """Map 0..full to 0..255, where full is the first of `scales` that holds all values (else their maximum)."""
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("pixels that are not finite numbers")
    top = values.max()
    full = next((scale for scale in scales if top <= scale), top)
    return Image.fromarray((np.clip(values / full, 0, 1) * 255 + 0.5).astype(np.uint8))


def _from_array(values: np.ndarray) -> Image.Image:
    if not values.size or values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)):
        raise UserError(f"image array of shape {list(values.shape)}: give [H, W], [H, W, 3] or [H, W, 4]")
    if np.issubdtype(values.dtype, np.floating):
        if not (values.min() >= 0 and values.max() <= 1):  # also true for NaN
            raise UserError(f"float image array from {values.min():g} to {values.max():g}: scale it to 0..1")
        return _eight_bit(values, (1,))
    if values.dtype != np.uint8:
        raise UserError(f"image array of type {values.dtype}: give uint8 in 0..255 or float in 0..1")
    return Image.fromarray(np.ascontiguousarray(values))


def complaint(path: Path) -> str:
    """What is wrong with a file, or "". Cheap: checksums of a PNG, end mark of a JPEG; other formats are decoded."""
    if path.is_dir():
        return f"{path}: no image in this folder"
    try:
        with reading(str(path)), open(path, "rb") as file:
            image = _open(file)
            if image.format == "PNG":
                image.verify()
            elif image.format != "JPEG" or not _ends_as_jpeg(file):
                _rgb(image)
    except UserError as error:
        return str(error)
    return ""


def _ends_as_jpeg(file: BinaryIO) -> bool:
    file.seek(-2, os.SEEK_END)
    return file.read() == b"\xff\xd9"


def content(source: ImageSource) -> bytes:
    """SHA-256 of a file's bytes, or of pixels that are no file."""
    if isinstance(source, (str, Path)):
        with reading(str(source)):
            return hashlib.sha256(Path(source).read_bytes()).digest()
    values = np.asarray(source)
    return hashlib.sha256(f"{values.shape} {values.dtype} ".encode() + values.tobytes()).digest()
