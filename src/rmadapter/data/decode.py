"""Loads any image as upright 8-bit RGB, or raises a UserError that says why it cannot."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
from PIL import Image

from rmadapter.data.decode_limits import EXIF, check_size, open_image, shrink
from rmadapter.data.ignored import RAW, advice
from rmadapter.errors import UserError
from rmadapter.support.files import plain_file

ImageSource: TypeAlias = "str | Path | Image.Image | np.ndarray"

STRIP = 1 << 22  # pixels converted to RGB at once
_Turn = Image.Transpose
TURNS = {  # EXIF orientation -> the transposition that makes it upright
    2: _Turn.FLIP_LEFT_RIGHT, 3: _Turn.ROTATE_180, 4: _Turn.FLIP_TOP_BOTTOM, 5: _Turn.TRANSPOSE,
    6: _Turn.ROTATE_270, 7: _Turn.TRANSVERSE, 8: _Turn.ROTATE_90,
}  # fmt: skip


def load_image(source: ImageSource) -> Image.Image:
    """Load an image as RGB: upright according to EXIF, first frame, transparency on white, 16 bits
    scaled to 8.

    Images over 24 megapixels are reduced by a whole factor, so no file takes more than four times
    the memory of a photo of that size. Raises UserError, naming the file, if it is missing, empty,
    truncated, no image, larger than PIL.Image.MAX_IMAGE_PIXELS, a thin line, or a bomb, and for
    arrays of other types or shapes than ImageSet lists.
    """
    if isinstance(source, np.ndarray):
        return _rgb(_from_array(source))
    if isinstance(source, Image.Image):
        with reading("the image given"):
            return _rgb(source)
    if not isinstance(source, (str, os.PathLike)):
        raise UserError(
            f"an image must be a path, a PIL image or a NumPy array, not {type(source).__name__}"
        )
    with reading(str(source)), plain_file(source) as file:
        return read_image(file, str(source))


def read_image(file: BinaryIO, name: str) -> Image.Image:
    """Like `load_image`, from an open file or bytes in memory. name: for messages."""
    if name.lower().endswith(RAW):  # Pillow would take it for a small TIFF
        raise UserError(f"{name}: {advice(name)}")
    with reading(name):
        return _rgb(open_image(file))


@contextmanager
def reading(name: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{name}: {error}; make it smaller or leave it out") from None
    except Image.UnidentifiedImageError:
        more = f"; {hint}" if (hint := advice(name)) else ""
        raise UserError(f"{name}: not an image in a supported format{more}") from None
    except Exception as error:  # on broken files Pillow's readers raise nearly anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"{name}: not a readable image ({reason})") from error


def _rgb(image: Image.Image) -> Image.Image:
    """Convert in strips, since the steps from stored pixels to RGB may take many times the memory."""
    image.load()
    check_size(image)  # again: an icon may contain another image than it declares
    factor, turn = shrink(image), _turn(image)
    found = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    if image.mode == "RGB" and factor == 1 and not image.has_transparency_data:
        found.paste(image)
    else:
        rows = max(STRIP // (image.width * factor), 1) * factor
        boxes = [
            (0, top, image.width, min(top + rows, image.height))
            for top in range(0, image.height, rows)
        ]
        full = _full(image, boxes)
        for box in boxes:
            strip = _flat(image.crop(box), full)
            found.paste(strip.reduce(factor) if factor > 1 else strip, (0, box[1] // factor))
    del image  # frees memory before the transposition
    return found if turn is None else found.transpose(turn)


def _full(image: Image.Image, boxes: Sequence[tuple[int, int, int, int]]) -> float:
    """The value of white: if pixels are not bytes, the first usual maximum that fits all, else the
    largest pixel.

    Raises ValueError for pixels that are not finite numbers.
    """
    if image.mode.startswith("I;16"):
        return 65535
    if image.mode not in ("I", "F"):
        return 255
    # Pillow keeps 8 and 16 bits in 32-bit integers, too.
    scales = (255, 65535) if image.mode == "I" else (1, 255, 65535)
    tops = [np.asarray(image.crop(box)).max() for box in boxes]  # NaN counts as the largest
    lows = [np.asarray(image.crop(box)).min() for box in boxes]
    if not np.isfinite([*tops, *lows]).all():
        raise ValueError("pixels that are not finite numbers")
    return next((scale for scale in scales if max(tops) <= scale), float(max(tops)))


def _flat(image: Image.Image, full: float) -> Image.Image:
    """Convert to 8-bit RGB on white, without turning or reducing."""
    if image.mode == "I" or image.mode == "F" or image.mode.startswith("I;16"):
        image = _eight_bit(np.asarray(image), full)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    return image.convert("RGB")


def _eight_bit(values: np.ndarray, full: float) -> Image.Image:
    """Map 0..full to 0..255."""
    return Image.fromarray(
        (np.clip(values.astype(np.float64) / full, 0, 1) * 255 + 0.5).astype(np.uint8)
    )


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        if any(
            len(image.info.get(block, b"")) > EXIF for block in ("exif", "Raw profile type exif")
        ):
            return None
        return TURNS.get(image.getexif().get(0x0112))  # type: ignore[arg-type]
    except Exception:  # a broken EXIF block says nothing about the pixels, which are fine
        return None


def _from_array(values: np.ndarray) -> Image.Image:
    if (
        not values.size
        or values.ndim not in (2, 3)
        or (values.ndim == 3 and values.shape[2] not in (3, 4))
    ):
        raise UserError(
            f"image array of shape {list(values.shape)}: give [H, W], [H, W, 3] or [H, W, 4]"
        )
    if np.issubdtype(values.dtype, np.floating):
        if not (values.min() >= 0 and values.max() <= 1):  # also true for NaN
            raise UserError(
                f"float image array from {values.min():g} to {values.max():g}: scale it to 0..1"
            )
        return _eight_bit(values, 1)
    if values.dtype != np.uint8:
        raise UserError(
            f"image array of type {values.dtype}: give uint8 in 0..255 or float in 0..1"
        )
    return Image.fromarray(np.ascontiguousarray(values))


def complaint(path: Path) -> str:
    """What is wrong with a file, or "". Decodes it as `load_image` does, so whatever passes can be
    loaded."""
    if os.path.isdir(path):
        return f"{path}: no image in this folder"
    try:
        load_image(path)
    except UserError as error:
        return str(error)
    return ""


def content(source: ImageSource) -> bytes:
    """SHA-256 of a file's bytes, or of the pixels of an image in memory."""
    if isinstance(source, (str, Path)):
        total = hashlib.sha256()
        with reading(str(source)), plain_file(source) as file:
            while block := file.read(1 << 20):
                total.update(block)
        return total.digest()
    values = np.asarray(
        load_image(source) if isinstance(source, Image.Image) else source
    )  # a palette's are no colours
    return hashlib.sha256(f"{values.shape} {values.dtype} ".encode() + values.tobytes()).digest()
