"""Damaged image files of every format that Pillow reads here, and small files that take much memory
or time: an accepted one can be decoded, twice to the same pixels.

A name says what was done, and ends as the format's files do.
"""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rmadapter.data.decode import image_error
from rmadapter.data.read import load_image
from rmadapter.errors import UserError
from tests.hostile.bombs import SIDE, bombs, exif_of
from tests.hostile.harness import Changed

# that a file may take: four times the memory of an ordinary photograph of 24 megapixels
SECONDS, MEGABYTES = 40.0, 1000.0

WRITTEN = [  # formats that Pillow can also write
    "AVIF", "BMP", "DDS", "DIB", "GIF", "ICNS", "ICO", "IM", "JPEG", "JPEG2000", "MSP", "PCX",
    "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP", "XBM",
]  # fmt: skip
LARGE = [0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, SIDE, 1_000_000]
ENDINGS = {"JPEG": "jpg", "JPEG2000": "jp2", "TIFF": "tif"}
MODES = {
    "MSP": ["1"],
    "XBM": ["1"],
    "PNG": ["RGB", "RGBA", "P", "LA", "I;16", "1"],
    "TIFF": ["RGB", "F", "I", "CMYK"],
}


def cases(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield damaged files; one in fifty is a bomb."""
    rng = random.Random(seed)
    for number in range(count):
        if number % 50 == 25:
            name = rng.choice(list(bombs()))
            yield f"{number:05d}-bomb-{name}", bomb(name)
        else:
            name, content = rng.choice(DAMAGES)(rng)
            yield f"{number:05d}-{name}", content


def check(name: str, content: bytes, folder: Path) -> object:
    path = folder / name
    path.write_bytes(content)
    if text := image_error(path):
        raise UserError(text)
    try:
        once, twice = load_image(path), load_image(path)
    except UserError as error:
        raise Changed(f"image_error accepted it, but: {error}") from None
    if once.tobytes() != twice.tobytes():
        raise Changed("other pixels the second time")
    return once.size


@cache
def small_image(kind: str, mode: str, progressive: bool = False) -> bytes:
    """Return a valid image, with EXIF and an ICC profile where the format has them."""
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    image = Image.fromarray(noise).resize((64, 48))
    image = image.convert("L" if mode in ("I;16", "I", "F", "LA") else mode).convert(mode)
    extra: dict[str, Any] = {}
    if kind in ("JPEG", "PNG", "TIFF", "WEBP"):
        extra = {"exif": oriented(6), "icc_profile": bytes(200)}
    if progressive:
        extra["progressive"] = True
    buffer = io.BytesIO()
    image.save(buffer, kind, **extra)
    return buffer.getvalue()


def oriented(orientation: int) -> bytes:
    """Return EXIF with an orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def any_image(rng: random.Random) -> tuple[str, bytes]:
    kind = rng.choice(WRITTEN)
    mode = rng.choice(MODES.get(kind, ["RGB"]))
    progressive = kind == "JPEG" and rng.random() < 0.5
    return ENDINGS.get(kind, kind.lower()), small_image(kind, mode, progressive)


def cut(rng: random.Random) -> tuple[str, bytes]:
    ending, content = any_image(rng)
    return f"cut.{ending}", content[: rng.randrange(len(content))]


def flipped(rng: random.Random) -> tuple[str, bytes]:
    """Flip a few bits, half of the time in the header."""
    ending, content = any_image(rng)
    data, end = bytearray(content), rng.choice([min(len(content), 200), len(content)])
    for _ in range(rng.choice([1, 2, 8, 64])):
        data[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return f"flipped.{ending}", bytes(data)


def large_numbers(rng: random.Random) -> tuple[str, bytes]:
    """Replace fields of the header by numbers that break sizes and offsets."""
    ending, content = any_image(rng)
    data = bytearray(content)
    for _ in range(rng.choice([1, 2, 4])):
        number = rng.choice(LARGE)
        kinds = ["<I", ">I"] if number > 0xFFFF else ["<H", ">H", "<I", ">I"]
        field = struct.pack(rng.choice(kinds), number)
        place = rng.randrange(min(len(data), 120))
        data[place : place + len(field)] = field
    return f"numbers.{ending}", bytes(data)


def spliced(rng: random.Random) -> tuple[str, bytes]:
    """Join the beginning of one file and the end of another, or repeat or move parts of one."""
    ending, content = any_image(rng)
    other = rng.choice([content, any_image(rng)[1]])
    a, b = sorted((rng.randrange(len(content)), rng.randrange(len(content))))
    end = other[rng.randrange(len(other)) :]
    joined = [content[:b] + end, content[:b] + content[a:], content[:a] + content[b:]]
    return f"spliced.{ending}", rng.choice(joined)


def misnamed(rng: random.Random) -> tuple[str, bytes]:
    return f"misnamed.{any_image(rng)[0]}", any_image(rng)[1]


def garbage(rng: random.Random) -> tuple[str, bytes]:
    ending, content = any_image(rng)
    start = content[: rng.choice([0, 2, 8, 16])]
    return f"garbage.{ending}", start + rng.randbytes(rng.choice([0, 1, 100, 5000]))


def metadata(rng: random.Random) -> tuple[str, bytes]:
    """Write EXIF that is noise, refers to itself or has any orientation, or a profile of noise."""
    kind = rng.choice(["JPEG", "PNG", "WEBP", "TIFF"])
    block = bytearray(oriented(rng.choice([0, 1, 2, 5, 6, 8, 9, 65535])))
    what = rng.choice(["noise", "loop", "orientation", "profile"])
    if what == "noise":
        block = bytearray(b"Exif\0\0") + rng.randbytes(rng.choice([1, 8, 100, 60_000]))
    if what == "loop":
        tags = (0x8769, 0x8825, 0xA005, 0x014A)
        block = bytearray(exif_of([(tag, 4, 1, 8) for tag in tags], after=8))
    profile = rng.randbytes(rng.choice([1, 128, 60_000])) if what == "profile" else b""
    buffer = io.BytesIO()
    options = {} if kind == "TIFF" else {"exif": bytes(block)}
    if profile:
        options["icc_profile"] = profile
    Image.new("RGB", (16, 9), "gray").save(buffer, kind, **options)
    return f"{what}.{ENDINGS.get(kind, kind.lower())}", buffer.getvalue()


def loops(rng: random.Random) -> tuple[str, bytes]:
    """Write a TIFF whose directory is its own successor, and whose tag points at itself."""
    tag = rng.choice([0x014A, 0x8769, 0x0100, 0x0111])
    ifd = struct.pack("<H", 1) + struct.pack("<HHII", tag, 4, 99, 8)
    return "loop.tif", b"II*\0\x08\0\0\0" + ifd + struct.pack("<I", 8) + bytes(64)


DAMAGES: list[Callable[[random.Random], tuple[str, bytes]]] = [
    cut, flipped, flipped, large_numbers, spliced, misnamed, garbage, metadata, loops,
]  # fmt: skip


@cache
def bomb(name: str) -> bytes:
    return bombs()[name]()
