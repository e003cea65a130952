"""Opens an image of unknown origin: an ordinary file, read as far as it is worth, of a size that memory can hold.

Bounds count bytes and pixels, so that a file is accepted or refused on every machine alike. Only the last of them is
time, that of the processor, for whatever the others do not know.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from functools import cache
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from PIL import Image

from rmadapter.errors import UserError

ALLOW = "--allow-outside (outside=True)"
# Formats that Pillow lists and cannot draw by itself, where EPS and WMF would even start another program; and those
# that hold an image of any other format and size than they say, or are unpacked at one go.
NO_IMAGES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF", "BLP", "FITS", "ICNS", "IPTC"}
URL = re.compile(r"[a-z][a-z0-9+.]+://", re.IGNORECASE)
LONGEST = 100  # times as long as wide
BYTES = 300_000_000  # of a file
PHOTO = 24_000_000  # pixels; a larger image is reduced while it becomes RGB
MEMORY = 4 * PHOTO * (4 + 4)  # bytes: four times what an ordinary photo takes, decoded and as RGB
PER_PIXEL = {
    "AVIF": 22,
    "HEIF": 16,
    "JPEG2000": 25,
    "QOI": 10,
    "WEBP": 17,
}  # bytes while decoding, measured; of the others 4
SECONDS = 20  # of processor time
READS = 4_000_000  # of a file; some decoders read byte by byte
SCANS = 2_000_000_000  # pixels times scans of a JPEG: of 24 megapixels 83 scans, where 10 are usual
EXIF = 150_000  # bytes beyond which EXIF is not looked at; a JPEG holds 65,000, written as text twice as many


@cache
def formats() -> dict[str, str]:
    """Extension -> format, for all images that Pillow can read here; HEIC where pillow-heif is installed."""
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    known = Image.registered_extensions()  # loads Pillow's plugins, which fills Image.OPEN
    return {ending: name for ending, name in known.items() if name in Image.OPEN and name not in NO_IMAGES}


def check_inside(name: str, where: str, outside: bool = False) -> None:
    """Raises UserError for a path in a list that leads out of the list's folder, unless the user has allowed it.

    A list from elsewhere could otherwise bring any image of this machine into a report.
    """
    climbs = ".." in name and ".." in PurePath(name).parts
    if not outside and (climbs or os.path.isabs(name) or os.path.splitdrive(name)[0]):
        raise UserError(f"{where}: {name!r:.80} lies outside the data's folder; {ALLOW} allows it")


def listed_image(table: Path, where: str, name: str, outside: bool = False) -> Path:
    """The image that a row of a table names, from the table's folder on. Raises UserError, naming `where`, for an empty
    path, a web address, and as `check_inside`."""
    if not name or "\0" in name:
        raise UserError(f"{where}: the path {'holds a NUL' if name else 'is empty'}")
    if URL.match(name):
        raise UserError(f"{where}: {name!r:.200} is a web address; fetch the images first")
    check_inside(name, where, outside)
    return table.parent / name


def open_image(file: BinaryIO) -> Image.Image:
    """Read the header alone, and refuse an image that would take too much to decode.

    Raises whatever Pillow does; a JPEG beyond 24 megapixels will be decoded at half its size.
    """
    size = file.seek(0, os.SEEK_END)  # also of bytes that are no file
    file.seek(0)
    if not size:
        raise ValueError("the file is empty, 0 bytes")
    if size > BYTES:
        raise ValueError(f"{size:,} bytes; an image file may have at most {BYTES:,}")
    image = Image.open(_Metered(file, size), formats=sorted(set(formats().values())))
    check_size(image)
    factor = shrink(image)
    need = _cost(image) + 4 * image.width * image.height // factor**2
    if need > MEMORY:
        what = f"{image.format} of {_sides(image)} pixels takes {need / 1e6:,.0f} MB to decode"
        raise ValueError(f"{what}, of {MEMORY / 1e6:,.0f} allowed")
    if image.format in ("JPEG", "MPO"):
        _check_scans(file, image)
        image.draft(image.mode, (image.width // factor, image.height // factor))
    return image


def check_size(image: Image.Image) -> None:
    """Raises DecompressionBombError beyond Pillow's limit, of which Pillow allows twice, and ValueError for lines."""
    pixels, limit = image.width * image.height, Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels > limit:
        raise Image.DecompressionBombError(f"Image size ({pixels} pixels) exceeds limit of {limit} pixels")
    if max(image.size) > LONGEST * min(image.size):
        raise ValueError(f"{_sides(image)} pixels: more than {LONGEST} times as long as wide")


def shrink(image: Image.Image) -> int:
    """The whole number by which an image is reduced: 1 up to 24 megapixels."""
    factor = 1
    while image.width * image.height > PHOTO * factor**2:
        factor += 1
    return factor


def _sides(image: Image.Image) -> str:
    return f"{image.width} x {image.height}"


def _cost(image: Image.Image) -> int:
    """Bytes that decoding takes, beside those of the RGB image that comes of it."""
    pixels = image.width * image.height
    if layers := getattr(image, "layer", None):  # a JPEG in several scans keeps all coefficients, of 2 bytes
        sizes = [across * down for _, across, down, _ in layers]
        return int(pixels * (2 * sum(sizes) / max(*sizes, 1) + 4 / shrink(image) ** 2))
    if tags := getattr(image, "tag_v2", None):  # a TIFF is unpacked in strips or tiles, which may be the whole image
        bits = tags.get(258, (1,))
        depth = sum(bits) * (tags.get(277, 1) if len(bits) == 1 else 1)
        strip = min(tags.get(278, image.height), image.height) * image.width
        return 4 * pixels + max(strip, tags.get(322, 0) * tags.get(323, 0)) * depth // 8
    return pixels * PER_PIXEL.get(image.format or "", 4)


def _check_scans(file: BinaryIO, image: Image.Image) -> None:
    """Every scan of a JPEG goes over all pixels; that of a progressive one may be a few bytes long."""
    here, count, last = file.tell(), 0, b""
    file.seek(0)
    while block := file.read(1 << 20):
        count += (last + block).count(b"\xff\xda")
        last = block[-1:]
    file.seek(here)
    if count * image.width * image.height > SCANS:
        most = SCANS // (image.width * image.height)
        raise ValueError(f"a JPEG of {_sides(image)} pixels in {count} scans, of {most} allowed")


class _Metered:
    """A file that stops whoever reads more of it than there is, or takes too long over it.

    A decoder gets control back between its reads. What it reads at once it also decodes at once; there the bounds of
    `open_image` have to do.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._bytes = 3 * size + (1 << 24)
        self._until = time.thread_time() + SECONDS
        self._exif = self._reads = 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._bytes -= len(data)
        self._reads += 1
        self._exif += data.startswith(b"Exif\0\0")
        if self._bytes < 0:
            raise ValueError("its parts reuse the same bytes and are larger than the file")
        if self._exif > 1:  # Pillow would join them, and read each entry of the whole
            raise ValueError("more than one block of EXIF")
        timed = len(data) > 4096 or self._reads % 1024 == 0  # asking for the time takes longer than reading a byte
        if self._reads > READS or (timed and time.thread_time() > self._until):
            raise ValueError("takes too long to decode")
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
