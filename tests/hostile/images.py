"""Hostile image files: every format that Pillow reads here, damaged, and small files that ask for
much memory or time.

    for name, content in cases(seed=1, count=5000): ...

The same seed gives the same files. A name says what was done, and ends as the format's files do.
"""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
from PIL import Image

from tests.hostile.bombs import SIDE, bombs, exif_of

WRITTEN = [  # formats that Pillow also writes
    *("AVIF", "BMP", "DDS", "DIB", "GIF", "ICNS", "ICO", "IM", "JPEG", "JPEG2000", "MSP"),
    *("PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP", "XBM"),
]
ENDINGS = {"JPEG": "jpg", "JPEG2000": "jp2", "TIFF": "tif"}
MODES = {
    "MSP": ["1"],
    "XBM": ["1"],
    "PNG": ["RGB", "RGBA", "P", "LA", "I;16", "1"],
    "TIFF": ["RGB", "F", "I", "CMYK"],
}


def cases(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """`count` pairs of name and content; one in fifty is a bomb."""
    rng = random.Random(seed)
    for number in range(count):
        kind = rng.choice(BOMBS) if number % 50 == 25 else rng.choice(DAMAGES)
        name, content = kind(rng)
        yield f"{number:05d}-{name}", content


# What is damaged


@cache
def sound(kind: str, mode: str, progressive: bool = False) -> bytes:
    """A small image that is a good one, with EXIF and an ICC profile where the format has them."""
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    image = (
        Image.fromarray(noise)
        .resize((64, 48))
        .convert("L" if mode in ("I;16", "I", "F", "LA") else mode)
    )
    image = image.convert(mode)
    extra = (
        {"exif": turned(6), "icc_profile": bytes(200)}
        if kind in ("JPEG", "PNG", "TIFF", "WEBP")
        else {}
    )
    if progressive:
        extra["progressive"] = True
    buffer = io.BytesIO()
    image.save(buffer, kind, **extra)
    return buffer.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def _some(rng: random.Random) -> tuple[str, bytes]:
    kind = rng.choice(WRITTEN)
    mode = rng.choice(MODES.get(kind, ["RGB"]))
    return ENDINGS.get(kind, kind.lower()), sound(kind, mode, kind == "JPEG" and rng.random() < 0.5)


def cut(rng: random.Random) -> tuple[str, bytes]:
    ending, content = _some(rng)
    return f"cut.{ending}", content[: rng.randrange(len(content))]


def flipped(rng: random.Random) -> tuple[str, bytes]:
    """A few bits, half of the time in the header."""
    ending, content = _some(rng)
    data, end = bytearray(content), rng.choice([min(len(content), 200), len(content)])
    for _ in range(rng.choice([1, 2, 8, 64])):
        data[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return f"flipped.{ending}", bytes(data)


def large_numbers(rng: random.Random) -> tuple[str, bytes]:
    """Fields of the header become the numbers that sizes and offsets break on."""
    ending, content = _some(rng)
    data = bytearray(content)
    for _ in range(rng.choice([1, 2, 4])):
        number = rng.choice(
            [0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, SIDE, 1_000_000]
        )
        kinds = ["<I", ">I"] if number > 0xFFFF else ["<H", ">H", "<I", ">I"]
        field = struct.pack(rng.choice(kinds), number)
        place = rng.randrange(min(len(data), 120))
        data[place : place + len(field)] = field
    return f"numbers.{ending}", bytes(data)


def spliced(rng: random.Random) -> tuple[str, bytes]:
    """The beginning of one file and the end of another; sometimes repeated or moved parts of the
    same."""
    ending, content = _some(rng)
    other = rng.choice([content, _some(rng)[1]])
    a, b = sorted((rng.randrange(len(content)), rng.randrange(len(content))))
    end = other[rng.randrange(len(other)) :]
    return f"spliced.{ending}", rng.choice(
        [content[:b] + end, content[:b] + content[a:], content[:a] + content[b:]]
    )


def misnamed(rng: random.Random) -> tuple[str, bytes]:
    return f"misnamed.{_some(rng)[0]}", _some(rng)[1]


def garbage(rng: random.Random) -> tuple[str, bytes]:
    ending, content = _some(rng)
    return f"garbage.{ending}", content[: rng.choice([0, 2, 8, 16])] + rng.randbytes(
        rng.choice([0, 1, 100, 5000])
    )


def metadata(rng: random.Random) -> tuple[str, bytes]:
    """EXIF that is noise, that leads back to itself, or says any orientation; ICC profiles and
    texts that are noise."""
    kind = rng.choice(["JPEG", "PNG", "WEBP", "TIFF"])
    block = bytearray(turned(rng.choice([0, 1, 2, 5, 6, 8, 9, 65535])))
    what = rng.choice(["noise", "loop", "orientation", "profile"])
    if what == "noise":
        block = bytearray(b"Exif\0\0") + rng.randbytes(rng.choice([1, 8, 100, 60_000]))
    if what == "loop":
        block = bytearray(
            exif_of([(tag, 4, 1, 8) for tag in (0x8769, 0x8825, 0xA005, 0x014A)], after=8)
        )
    profile = rng.randbytes(rng.choice([1, 128, 60_000])) if what == "profile" else b""
    buffer = io.BytesIO()
    options = {} if kind == "TIFF" else {"exif": bytes(block)}
    if profile:
        options["icc_profile"] = profile
    Image.new("RGB", (16, 9), "gray").save(buffer, kind, **options)
    return f"{what}.{ENDINGS.get(kind, kind.lower())}", buffer.getvalue()


def loops(rng: random.Random) -> tuple[str, bytes]:
    """A TIFF whose directories follow each other in a circle, or whose tags point at themselves."""
    ifd = struct.pack("<H", 1) + struct.pack(
        "<HHII", rng.choice([0x014A, 0x8769, 0x0100, 0x0111]), 4, 99, 8
    )
    return "loop.tif", b"II*\0\x08\0\0\0" + ifd + struct.pack("<I", 8) + bytes(64)


DAMAGES: list[Callable[[random.Random], tuple[str, bytes]]] = [
    *(cut, flipped, flipped, large_numbers, spliced, misnamed, garbage, metadata, loops)
]


_made: dict[str, bytes] = {}


def _bomb(name: str) -> Callable[[random.Random], tuple[str, bytes]]:
    def made(rng: random.Random) -> tuple[str, bytes]:
        if name not in _made:
            _made[name] = bombs()[name]()
        return f"bomb-{name}", _made[name]

    return made


BOMBS: list[Callable[[random.Random], tuple[str, bytes]]] = [_bomb(name) for name in bombs()]
