"""Open images of unknown origin within bounds on what reading and decoding them may cost, and
describe files that are not read.

The bounds count bytes, pixels and reads, so every machine accepts the same files. Only the last
resort is a bound on processor time, for what the other bounds do not cover.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import Counter
from functools import cache
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from PIL import Image

from rmadapter.errors import UserError

ALLOW = "--allow-outside (outside=True)"
# Formats that Pillow lists but cannot draw by itself (EPS and WMF would even start another
# program), and formats that may contain an image of another format and size than they declare, or
# are decompressed in one go.
NO_IMAGES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF", "BLP", "FITS", "ICNS", "IPTC"}
URL = re.compile(r"[a-z][a-z0-9+.]+://", re.IGNORECASE)
LONGEST = 100  # most times as long as wide
BYTES = 300_000_000  # most in a file
PHOTO = 24_000_000  # pixels; larger images are reduced while converted to RGB
MEMORY = 4 * PHOTO * (4 + 4)  # bytes: four times what such a photo takes, decoded and as RGB
# bytes while decoding, measured; 4 for other formats
PER_PIXEL = {"AVIF": 22, "HEIF": 16, "JPEG2000": 25, "QOI": 10, "WEBP": 17}
SECONDS = 20  # of processor time
READS = 4_000_000  # most per file; some decoders read byte by byte
SCANS = 2_000_000_000  # most pixels times scans of a JPEG: 83 scans at 24 megapixels; 10 are usual
# larger EXIF blocks are ignored, in bytes; a JPEG holds up to 65,000, or twice that as text
EXIF = 150_000
HEIC = (".heic", ".heics", ".heif", ".heifs", ".hif")
RAW = (
    ".3fr", ".arw", ".cr2", ".cr3", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".nef",
    ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
)  # fmt: skip


@cache
def formats() -> dict[str, str]:
    """Return extension -> format of all images that Pillow can read here, including HEIC if
    pillow-heif is installed."""
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    known = Image.registered_extensions()  # loads Pillow's plugins, which fills Image.OPEN
    readable = Image.OPEN.keys() - NO_IMAGES
    return {ending: name for ending, name in known.items() if name in readable}


def check_inside(name: str, where: str, outside: bool = False) -> None:
    """Raise UserError if a listed path leaves the folder of its list, unless `outside` is set.

    Otherwise a list from someone else could put any image of this machine into a report.
    """
    path = PurePath(name)
    if not outside and (path.anchor or ".." in path.parts):
        raise UserError(f"{where}: {name!r:.80} lies outside the data's folder; {ALLOW} allows it")


def listed_image(table: Path, where: str, name: str, outside: bool = False) -> Path:
    """Return the path of an image named in a table, relative to the table's folder. Raises
    UserError, naming `where`, for an empty path, a NUL, a web address, and as `check_inside`."""
    if not name or "\0" in name:
        raise UserError(f"{where}: the path {'holds a NUL' if name else 'is empty'}")
    if URL.match(name):
        raise UserError(f"{where}: {name!r:.200} is a web address; fetch the images first")
    check_inside(name, where, outside)
    return table.parent / name


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
    if size > BYTES:
        raise ValueError(f"{size:,} bytes; an image file may have at most {BYTES:,}")
    image = Image.open(_Metered(file, size), formats=sorted(set(formats().values())))
    check_size(image)
    need = _cost(image) + 4 * image.width * image.height // shrink(image) ** 2
    if need > MEMORY:
        what = f"{image.format} of {_sides(image)} pixels takes {need / 1e6:,.0f} MB to decode"
        raise ValueError(f"{what}, of {MEMORY / 1e6:,.0f} allowed")
    return image


def check_size(image: Image.Image) -> None:
    """Raise DecompressionBombError above Pillow's limit (Pillow allows twice that), ValueError for
    thin lines."""
    pixels, limit = image.width * image.height, Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels > limit:
        text = f"Image size ({pixels} pixels) exceeds limit of {limit} pixels"
        raise Image.DecompressionBombError(text)
    if max(image.size) > LONGEST * min(image.size):
        raise ValueError(f"{_sides(image)} pixels: more than {LONGEST} times as long as wide")


def shrink(image: Image.Image) -> int:
    """Return the whole factor by which an image's sides are reduced: 1 up to 24 megapixels."""
    factor = 1
    while image.width * image.height > PHOTO * factor**2:
        factor += 1
    return factor


def _sides(image: Image.Image) -> str:
    return f"{image.width} x {image.height}"


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
    return pixels * PER_PIXEL.get(image.format or "", 4)


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
    if count * image.width * image.height > SCANS:
        most = SCANS // (image.width * image.height)
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
        self._until = time.thread_time() + SECONDS
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
        if self._reads > READS or (timed and time.thread_time() > self._until):
            raise ValueError("takes too long to decode")
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def advice(name: str) -> str:
    """Return how to make images with the suffix of `name` readable, or "". `name` may be the suffix
    alone."""
    suffix = os.path.splitext(f"x{name}" if name.startswith(".") else name)[1].lower()
    if suffix in RAW:
        return f"{suffix} is a camera's RAW format: convert it to JPEG first"
    if suffix in HEIC and suffix not in formats():
        return f"pip install 'rmadapter[heic]' to read {suffix}"
    return ""


def ignored_note(ignored: Counter[str]) -> str:
    """Return a note such as "5 files ignored: .heic 3, .txt 2; pip install 'rmadapter[heic]' to
    read .heic", or "".

    ignored: number of files by suffix or by other reason.
    """
    count = ignored.total()
    if not count:
        return ""
    kinds = sorted(ignored, key=lambda kind: (-ignored[kind], kind))
    numbers = ", ".join(f"{kind} {ignored[kind]}" for kind in kinds)
    hints = dict.fromkeys(advice(kind) for kind in kinds if kind.startswith("."))
    note = f"{count} file{'s' * (count > 1)} ignored: {numbers}"
    return "; ".join([note, *filter(None, hints)])
