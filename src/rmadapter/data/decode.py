"""Load any image as upright 8-bit RGB, or raise a UserError that names the file and the reason.

Images may be of unknown origin: bounds limit what reading and decoding may cost.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

import numpy as np
from PIL import Image, UnidentifiedImageError

from rmadapter.errors import UserError
from rmadapter.support.files import plain_file

ImageSource: TypeAlias = "str | Path | Image.Image | np.ndarray"
Box: TypeAlias = tuple[int, int, int, int]

# Formats that Pillow lists but cannot draw by itself (EPS and WMF would even start another
# program), and formats that may contain an image of another format and size than they declare, or
# are decompressed in one go.
UNREAD_FORMATS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF", "BLP", "FITS", "ICNS", "IPTC"}
MAX_ASPECT_RATIO = 100
MAX_FILE_BYTES = 300_000_000
PHOTO_PIXELS = 24_000_000  # larger images are reduced while converted to RGB
# four times what such a photo takes, decoded and as RGB
MAX_DECODING_BYTES = 4 * PHOTO_PIXELS * (4 + 4)
# while decoding, measured; 4 for other formats
BYTES_PER_PIXEL = {"AVIF": 22, "HEIF": 16, "JPEG2000": 25, "QOI": 10, "WEBP": 17}
MAX_SECONDS = 20  # of processor time
MAX_READS = 4_000_000  # per file; some decoders read byte by byte
# pixels times scans of a JPEG: 83 scans at 24 megapixels; 10 are usual
MAX_SCANNED_PIXELS = 2_000_000_000
# larger EXIF blocks are ignored; a JPEG holds up to 65,000, or twice that as text
MAX_EXIF_BYTES = 150_000
HEIC_SUFFIXES = (".heic", ".heics", ".heif", ".heifs", ".hif")
RAW_SUFFIXES = (
    ".3fr", ".arw", ".cr2", ".cr3", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".nef",
    ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
)  # fmt: skip
STRIP_PIXELS = 1 << 22  # pixels converted to RGB at once
ORIENTATION_TAG = 0x0112  # of EXIF
TURNS = {  # EXIF orientation -> the transposition that makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@cache
def image_formats() -> dict[str, str]:
    """Return extension -> format of all images that Pillow can read here, including HEIC unless
    pillow-heif was removed."""
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    known = Image.registered_extensions()  # loads Pillow's plugins, which fills Image.OPEN
    readable = Image.OPEN.keys() - UNREAD_FORMATS
    return {ending: name for ending, name in known.items() if name in readable}


def plain_image(image: object) -> ImageSource:
    """Return a torch tensor [3, H, W], [1, H, W] or [H, W] as an array, and any other image as it
    is."""
    if not hasattr(image, "detach"):
        return cast(ImageSource, image)
    tensor = image.detach().cpu()
    array: np.ndarray = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    if array.ndim == 3 and len(array) in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    return array[..., 0] if array.shape[2:] == (1,) else array


def load_image(source: ImageSource) -> Image.Image:
    """Load an image as RGB: upright according to EXIF, first frame, transparency on white, 16 bits
    scaled to 8.

    Images over 24 megapixels are reduced by a whole factor, so that no file takes more than four
    times the memory of a photo of that size.

    Args:
        source: A path, a PIL image or an array.

    Raises:
        UserError: The file, which the message names, is missing, empty, truncated, no image, larger
            than PIL.Image.MAX_IMAGE_PIXELS, a thin line, or a bomb; or an array has another type or
            shape than `ImageSet` lists.
    """
    if isinstance(source, np.ndarray):
        return _rgb(_from_array(source))
    if isinstance(source, Image.Image):
        with reading("the image given"):
            return _rgb(source)
    if not isinstance(source, (str, os.PathLike)):
        kind = type(source).__name__
        raise UserError(f"an image must be a path, a PIL image or a NumPy array, not {kind}")
    with _opened(source) as file:
        return read_image(file, str(source))


@contextmanager
def _opened(path: str | Path) -> Iterator[BinaryIO]:
    """Open an image file; errors within the block become a UserError that names it."""
    if os.path.isdir(path):
        raise UserError(f"{path}: no image in this folder")
    with reading(str(path)), plain_file(path) as file:
        yield file


def read_image(file: BinaryIO, name: str) -> Image.Image:
    """Decode an image like `load_image`.

    Args:
        file: An open file, or bytes in memory.
        name: Its name in messages.

    Raises:
        UserError: As for `load_image`.
    """
    _refuse_raw(name)
    with reading(name):
        return _rgb(open_image(file))


def decode_upload(data: bytes, name: str, max_bytes: int = 0) -> Image.Image | None:
    """Decode an image in memory like `load_image`.

    Args:
        data: The bytes of its file.
        name: Its name in messages.
        max_bytes: Memory that decoding may take; 0 for no limit but that of `load_image`.

    Returns:
        The image; None if decoding takes more than `max_bytes`.

    Raises:
        UserError: As for `load_image`.
    """
    if max_bytes:
        with contextlib.suppress(Exception):  # `read_image` says what is wrong
            if decoding_cost(open_header(io.BytesIO(data))) > max_bytes:
                return None
    return read_image(io.BytesIO(data), name)


def load_hashed(path: str | Path) -> tuple[Image.Image, bytes]:
    """Load an image file, and return the SHA-256 of its bytes, too. Raises as `load_image`."""
    with _opened(path) as file:
        digest = file_content(file)
        return read_image(file, str(path)), digest


def image_error(path: Path, *, header: bool = False) -> str:
    """Return why an image file cannot be loaded, or "".

    Args:
        path: The file.
        header: Whether to read the header only, which finds what is no image, too large or a bomb,
            but not a damaged or missing rest. Otherwise what passes can be loaded by `load_image`.
    """
    try:
        if header:
            image_size(path)
        else:
            load_image(path)
    except UserError as error:
        return str(error)
    return ""


def image_size(path: Path) -> tuple[int, int]:
    """Return width and height as the header says, before the image is turned by its EXIF tag.

    Raises:
        UserError: As for `load_image`, except for what only decoding finds.
    """
    with _opened(path) as file:
        _refuse_raw(str(path))
        return open_header(file).size


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
        with _opened(source) as file:
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
    if name.lower().endswith(RAW_SUFFIXES):  # Pillow would take it for a small TIFF
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
        rows = max(STRIP_PIXELS // (image.width * factor), 1) * factor
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
        if any(len(image.info.get(block, b"")) > MAX_EXIF_BYTES for block in blocks):
            return None
        return TURNS.get(image.getexif().get(ORIENTATION_TAG, 1))
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


# Bounds
#
# They count bytes, pixels and reads, so every machine accepts the same files. Only the last resort
# is a bound on processor time, for what the other bounds do not cover.


def open_image(file: BinaryIO) -> Image.Image:
    """Open an image to be decoded. Raises as `open_header`, and for a JPEG of too many scans.

    JPEGs over 24 megapixels will be decoded at reduced size.
    """
    image = open_header(file)
    if image.format in ("JPEG", "MPO"):
        _check_scans(file, image)
        factor = shrink(image)
        image.draft(image.mode, (image.width // factor, image.height // factor))
    return image


def open_header(file: BinaryIO) -> Image.Image:
    """Read the header of an image, and refuse the image if decoding would cost too much. Raises
    ValueError, and whatever Pillow raises."""
    size = file.seek(0, os.SEEK_END)  # works for bytes in memory, too
    file.seek(0)
    if not size:
        raise ValueError("the file is empty, 0 bytes")
    if size > MAX_FILE_BYTES:
        raise ValueError(f"{size:,} bytes; an image file may have at most {MAX_FILE_BYTES:,}")
    image = Image.open(_Metered(file, size), formats=sorted(set(image_formats().values())))
    check_size(image)
    need = decoding_cost(image)
    if need > MAX_DECODING_BYTES:
        raise ValueError(
            f"{image.format} of {_sides(image)} pixels takes {need / 1e6:,.0f} MB to decode, of "
            f"{MAX_DECODING_BYTES / 1e6:,.0f} allowed"
        )
    return image


def check_size(image: Image.Image) -> None:
    """Raise DecompressionBombError above Pillow's limit (Pillow allows twice that), ValueError for
    thin lines."""
    pixels, limit = image.width * image.height, Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels > limit:
        text = f"Image size ({pixels} pixels) exceeds limit of {limit} pixels"
        raise Image.DecompressionBombError(text)
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise ValueError(
            f"{_sides(image)} pixels: more than {MAX_ASPECT_RATIO} times as long as wide"
        )


def shrink(image: Image.Image) -> int:
    """Return the whole factor by which an image's sides are reduced: 1 up to 24 megapixels."""
    factor = 1
    while image.width * image.height > PHOTO_PIXELS * factor**2:
        factor += 1
    return factor


def _sides(image: Image.Image) -> str:
    return f"{image.width} x {image.height}"


def decoding_cost(image: Image.Image) -> int:
    """Return the bytes that decoding an opened image to RGB takes, as measured for its format."""
    return _cost(image) + 4 * image.width * image.height // shrink(image) ** 2


def _cost(image: Image.Image) -> int:
    """Return the bytes that decoding takes, not counting the resulting RGB image."""
    pixels = image.width * image.height
    layers = getattr(image, "layer", None)
    if layers:  # a JPEG of several scans keeps all coefficients, 2 bytes each
        sizes = [across * down for _, across, down, _ in layers]
        return int(pixels * (2 * sum(sizes) / max(*sizes, 1) + 4 / shrink(image) ** 2))
    tags = getattr(image, "tag_v2", None)
    if tags:  # a TIFF is unpacked by strip or tile, which may be the whole image
        bits = tags.get(258, (1,))
        depth = sum(bits) * (tags.get(277, 1) if len(bits) == 1 else 1)
        strip = min(tags.get(278, image.height), image.height) * image.width
        return int(4 * pixels + max(strip, tags.get(322, 0) * tags.get(323, 0)) * depth // 8)
    return pixels * BYTES_PER_PIXEL.get(image.format or "", 4)


def _check_scans(file: BinaryIO, image: Image.Image) -> None:
    """Bound the scans of a JPEG. In a progressive one each visits all pixels, but may be only a few
    bytes long."""
    position = file.tell()
    count = 0
    last = b""
    file.seek(0)
    while block := file.read(1 << 20):
        count += (last + block).count(b"\xff\xda")
        last = block[-1:]
    file.seek(position)
    if count * image.width * image.height > MAX_SCANNED_PIXELS:
        most = MAX_SCANNED_PIXELS // (image.width * image.height)
        raise ValueError(f"a JPEG of {_sides(image)} pixels in {count} scans, of {most} allowed")


class _Metered:
    """A file that raises ValueError if its decoder reads far more than the file holds, or takes too
    long.

    It can stop a decoder only when that reads. What a decoder reads at once it also decodes at
    once: then only the bounds of `open_image` apply.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._bytes = 3 * size + (1 << 24)
        self._until = time.thread_time() + MAX_SECONDS
        self._exif = 0
        self._reads = 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._bytes -= len(data)
        self._reads += 1
        self._exif += data.startswith(b"Exif\0\0")
        if self._bytes < 0:
            raise ValueError("its parts reuse the same bytes and are larger than the file")
        if self._exif > 1:  # Pillow would join them and read every entry
            raise ValueError("more than one block of EXIF")
        # getting the time is slower than reading a byte
        timed = len(data) > 4096 or self._reads % 1024 == 0
        if self._reads > MAX_READS or (timed and time.thread_time() > self._until):
            raise ValueError("takes too long to decode")
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def advice(name: str) -> str:
    """Return how to make images with the suffix of `name` readable, or "". `name` may be the suffix
    alone."""
    suffix = os.path.splitext(f"x{name}" if name.startswith(".") else name)[1].lower()
    if suffix in RAW_SUFFIXES:
        return f"{suffix} is a camera's RAW format: convert it to JPEG first"
    if suffix in HEIC_SUFFIXES and suffix not in image_formats():
        return f"pip install pillow-heif to read {suffix}"
    return ""
