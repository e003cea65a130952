"""Load any image as upright 8-bit RGB, or raise a UserError that names the file and the reason."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

from rmadapter.data.decode_limits import (
    EXIF,
    RAW,
    advice,
    check_size,
    open_header,
    open_image,
    shrink,
)
from rmadapter.errors import UserError
from rmadapter.support.files import plain_file

ImageSource: TypeAlias = "str | Path | Image.Image | np.ndarray"
Box: TypeAlias = tuple[int, int, int, int]

STRIP = 1 << 22  # pixels converted to RGB at once
ORIENTATION = 0x0112  # EXIF tag
_Turn = Image.Transpose
TURNS = {  # EXIF orientation -> the transposition that makes the image upright
    2: _Turn.FLIP_LEFT_RIGHT, 3: _Turn.ROTATE_180, 4: _Turn.FLIP_TOP_BOTTOM, 5: _Turn.TRANSPOSE,
    6: _Turn.ROTATE_270, 7: _Turn.TRANSVERSE, 8: _Turn.ROTATE_90,
}  # fmt: skip


def load_image(source: ImageSource) -> Image.Image:
    """Load an image as RGB: upright according to EXIF, first frame, transparency on white, 16 bits
    scaled to 8.

    Images over 24 megapixels are reduced by a whole factor, so that no file takes more than four
    times the memory of a photo of that size. Raises UserError, naming the file, if it is missing,
    empty, truncated, no image, larger than PIL.Image.MAX_IMAGE_PIXELS, a thin line, or a bomb, and
    for arrays of other types or shapes than ImageSet lists.
    """
    if isinstance(source, np.ndarray):
        return _rgb(_from_array(source))
    if isinstance(source, Image.Image):
        with reading("the image given"):
            return _rgb(source)
    if not isinstance(source, (str, os.PathLike)):
        kind = type(source).__name__
        raise UserError(f"an image must be a path, a PIL image or a NumPy array, not {kind}")
    with reading(str(source)), plain_file(source) as file:
        return read_image(file, str(source))


def read_image(file: BinaryIO, name: str) -> Image.Image:
    """Decode an image like `load_image`, from an open file or bytes in memory. name: its name in
    messages."""
    _refuse_raw(name)
    with reading(name):
        return _rgb(open_image(file))


def load_hashed(path: str | Path) -> tuple[Image.Image, bytes]:
    """Load an image file, and return the SHA-256 of its bytes, too. Raises as `load_image`."""
    with reading(str(path)), plain_file(path) as file:
        digest = file_content(file)
        return read_image(file, str(path)), digest


def image_error(path: Path, *, header: bool = False) -> str:
    """Return why an image file cannot be loaded, or "".

    header: read the header only, which finds what is no image, too large or a bomb, but not a
    damaged or missing rest. Otherwise what passes can be loaded by `load_image`.
    """
    if os.path.isdir(path):
        return f"{path}: no image in this folder"
    try:
        if not header:
            load_image(path)
            return ""
        with reading(str(path)), plain_file(path) as file:
            _refuse_raw(str(path))
            open_header(file)
    except UserError as error:
        return str(error)
    return ""


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Convert errors of reading an image into a UserError that names it."""
    try:
        yield
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{name}: {error}; make it smaller or leave it out") from None
    except UnidentifiedImageError:
        hint = advice(name)
        more = f"; {hint}" if hint else ""
        raise UserError(f"{name}: not an image in a supported format{more}") from None
    except Exception as error:  # on broken files Pillow's readers raise nearly anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"{name}: not a readable image ({reason})") from error


def content(source: ImageSource) -> bytes:
    """Return the SHA-256 of a file's bytes, or of the pixels of an image in memory."""
    if isinstance(source, (str, Path)):
        with reading(str(source)), plain_file(source) as file:
            return file_content(file)
    # of a palette image the pixels are no colours
    values = np.asarray(load_image(source) if isinstance(source, Image.Image) else source)
    return hashlib.sha256(f"{values.shape} {values.dtype} ".encode() + values.tobytes()).digest()


def file_content(file: BinaryIO) -> bytes:
    """Return the SHA-256 of the rest of an open file."""
    total = hashlib.sha256()
    while block := file.read(1 << 20):
        total.update(block)
    return total.digest()


def _refuse_raw(name: str) -> None:
    if name.lower().endswith(RAW):  # Pillow would take it for a small TIFF
        raise UserError(f"{name}: {advice(name)}")


def _rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB in strips, since the steps may take many times the memory of the result."""
    image.load()
    check_size(image)  # again: an icon may contain another image than it declares
    factor = shrink(image)
    turn = _transposition(image)
    result = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    if image.mode == "RGB" and factor == 1 and not image.has_transparency_data:
        result.paste(image)
    else:
        rows = max(STRIP // (image.width * factor), 1) * factor
        tops = range(0, image.height, rows)
        boxes = [(0, top, image.width, min(top + rows, image.height)) for top in tops]
        white = _white(image, boxes)
        for box in boxes:
            strip = _flat(image.crop(box), white)
            result.paste(strip.reduce(factor) if factor > 1 else strip, (0, box[1] // factor))
    del image  # frees memory before the transposition
    return result if turn is None else result.transpose(turn)


def _white(image: Image.Image, boxes: Sequence[Box]) -> float:
    """Return the value of white: if pixels are not bytes, the first usual maximum that fits all,
    else the largest pixel.

    Raises ValueError for pixels that are not finite numbers.
    """
    if image.mode.startswith("I;16"):
        return 65535
    if image.mode not in ("I", "F"):
        return 255
    # Pillow keeps 8 and 16 bits in 32-bit integers, too.
    scales = (255, 65535) if image.mode == "I" else (1, 255, 65535)
    highest = [np.asarray(image.crop(box)).max() for box in boxes]  # NaN counts as the largest
    lowest = [np.asarray(image.crop(box)).min() for box in boxes]
    if not np.isfinite([*highest, *lowest]).all():
        raise ValueError("pixels that are not finite numbers")
    return next((scale for scale in scales if max(highest) <= scale), float(max(highest)))


def _flat(image: Image.Image, white: float) -> Image.Image:
    """Convert to 8-bit RGB on white, without turning or reducing."""
    if image.mode == "I" or image.mode == "F" or image.mode.startswith("I;16"):
        image = _eight_bit(np.asarray(image), white)
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, "white")
        ground.alpha_composite(image.convert("RGBA"))
        image = ground
    return image.convert("RGB")


def _eight_bit(values: np.ndarray, white: float) -> Image.Image:
    """Map 0..white to 0..255."""
    scaled = np.clip(values.astype(np.float64) / white, 0, 1) * 255 + 0.5
    return Image.fromarray(scaled.astype(np.uint8))


def _transposition(image: Image.Image) -> Image.Transpose | None:
    blocks = ("exif", "Raw profile type exif")
    try:
        if any(len(image.info.get(block, b"")) > EXIF for block in blocks):
            return None
        return TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a broken EXIF block says nothing about the pixels, which are fine
        return None


def _from_array(values: np.ndarray) -> Image.Image:
    shape = values.shape
    if not values.size or not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))):
        raise UserError(f"image array of shape {list(shape)}: give [H, W], [H, W, 3] or [H, W, 4]")
    if np.issubdtype(values.dtype, np.floating):
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= 1):  # also true for NaN
            raise UserError(f"float image array from {low:g} to {high:g}: scale it to 0..1")
        return _eight_bit(values, 1)
    if values.dtype != np.uint8:
        raise UserError(
            f"image array of type {values.dtype}: give uint8 in 0..255, or float in 0..1"
        )
    return Image.fromarray(np.ascontiguousarray(values))
