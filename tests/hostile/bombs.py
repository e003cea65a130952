"""Small image files that ask for much memory or time."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Callable
from functools import cache

from PIL import Image

SIDE = 9400  # SIDE * SIDE is just below Pillow's own limit of pixels


def exif_of(entries: list[tuple[int, int, int, int]], after: int = 0, tail: bytes = b"") -> bytes:
    """Return an EXIF block of entries (tag, type, count, value or offset), with the next directory
    at `after`."""
    parts = [b"Exif\0\0II*\0\x08\0\0\0", struct.pack("<H", len(entries))]
    parts += [struct.pack("<HHII", *entry) for entry in entries]
    return b"".join([*parts, struct.pack("<I", after), tail])


def repeated(length: int, block: bytes = bytes(1 << 20), level: int = 9) -> bytes:
    """Deflate `length` bytes without holding them in memory."""
    packer, parts = zlib.compressobj(level), []
    for start in range(0, length, len(block)):
        parts.append(packer.compress(block[: length - start]))
    return b"".join([*parts, packer.flush()])


def png(
    width: int, height: int, depth: int, color: int, *more: tuple[bytes, bytes],
    bits: int | None = None,
) -> bytes:  # fmt: skip
    """Write a PNG. color: PNG's own number. more: chunks before the image. bits: of a pixel."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + checksum

    bits = bits or depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    image = repeated(height * (1 + (width * bits + 7) // 8))
    chunks = [(b"IHDR", header), *more, (b"IDAT", image), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in chunks)


def tiff(
    width: int, height: int, bits: int, samples: int, kind: int, photometric: int, rows: int = 0,
    tile: int = 0,
) -> bytes:  # fmt: skip
    """Write one deflated strip, strips of `rows` that all are the same bytes of the file, or one
    tile of tile x tile.

    kind: 1 whole numbers, 2 signed ones, 3 floats.
    """
    rows = rows or height
    strips = 1 if tile else -(-height // rows)
    data = repeated((tile or rows) * (((tile or width) * bits * samples + 7) // 8))
    place = [(273, 4, [0] * strips), (278, 4, [rows]), (279, 4, [len(data)] * strips)]
    if tile:
        place = [(322, 4, [tile]), (323, 4, [tile]), (324, 4, [0]), (325, 4, [len(data)])]
    entries = sorted([
        (256, 4, [width]), (257, 4, [height]), (258, 3, [bits] * samples), (259, 3, [8]),
        (262, 3, [photometric]), (277, 3, [samples]), (339, 3, [kind] * samples), *place,
    ])  # fmt: skip
    end = 8 + 2 + 12 * len(entries) + 4
    sizes = [len(values) * (4 if typ == 4 else 2) for _, typ, values in entries]
    image = end + sum(size for size in sizes if size > 4)
    directory, extra = struct.pack("<H", len(entries)), b""
    for (tag, typ, values), size in zip(entries, sizes, strict=True):
        values = [image] * len(values) if tag in (273, 324) else values
        packed = struct.pack(f"<{len(values)}{'I' if typ == 4 else 'H'}", *values)
        if size > 4:
            packed, extra = struct.pack("<I", end + len(extra)), extra + packed
        directory += struct.pack("<HHI", tag, typ, len(values)) + packed.ljust(4, b"\0")
    return b"II*\0\x08\0\0\0" + directory + bytes(4) + extra + data


def scans(side: int, times: int, mode: str = "L") -> bytes:
    """Write a progressive JPEG that repeats its last scan."""
    buffer = io.BytesIO()
    image = Image.new(mode, (side, side), 128 if mode == "L" else "gray")
    image.save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * times + b"\xff\xd9"


def with_exif(block: bytes, parts: int = 1) -> bytes:
    """Write a small JPEG with a block of EXIF, and `parts` segments of EXIF in all."""
    data = saved("JPEG", "RGB", (16, 16))
    head = b""
    for segment in [block, *[b"Exif\0\0" + bytes(65527)] * (parts - 1)]:
        head += b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
    return data[:2] + head + data[data.index(b"\xff\xdb") :]


def directory_bomb(parts: int) -> bytes:
    """Write thousands of EXIF entries, each of which is the whole block."""
    count, size = 65_000 // 12 - 2, 65_000 + (parts - 1) * 65527
    block = exif_of([(tag, 7, size - 100, 8) for tag in range(count)])
    return with_exif(block.ljust(65_000, b"\0"), parts)


def tiff_directory_bomb(entries: int = 60_000, size: int = 1_000_000) -> bytes:
    """Write a TIFF of 1.7 MB whose tags would be 60 GB."""
    rows = [(tag, 7, size, 8) for tag in range(1000, 1000 + entries)]
    body = b"".join(struct.pack("<HHII", *row) for row in rows)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", entries) + body + bytes(4) + bytes(size)


def saved(kind: str, mode: str, size: tuple[int, int], **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind, **options)
    return buffer.getvalue()


def icon(inside: bytes) -> bytes:
    """Write an ICO that claims 16 x 16 pixels and holds a larger PNG."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inside), 22) + inside


def apple_icon(inside: bytes) -> bytes:
    """Write an ICNS that claims 1024 x 1024 pixels and holds another image."""
    sizes = struct.pack(">I", 16 + len(inside)), struct.pack(">I", 8 + len(inside))
    return b"icns" + sizes[0] + b"ic10" + sizes[1] + inside


def qoi(side: int) -> bytes:
    runs = -(-side * side // 62)
    return b"qoif" + struct.pack(">IIBB", side, side, 3, 0) + b"\xfd" * runs + bytes(7) + b"\x01"


def fits(side: int) -> bytes:
    """Write a table whose deflated image is as large as it claims."""
    cards = {
        "XTENSION": "'BINTABLE'", "BITPIX": "8", "NAXIS": "2", "NAXIS1": "0", "NAXIS2": "0",
        "ZIMAGE": "T", "ZBITPIX": "8", "ZNAXIS": "2", "ZNAXIS1": str(side), "ZNAXIS2": str(side),
        "ZCMPTYPE": "'GZIP_1  '",
    }  # fmt: skip
    first = [f"{'SIMPLE':8}= {'T':>20}", f"{'BITPIX':8}= {'8':>20}", f"{'NAXIS':8}= {'0':>20}"]
    second = [f"{name:8}= {value:<20}" for name, value in cards.items()]
    data = b""
    for header in (first, second):
        data += "".join(card.ljust(80) for card in [*header, "END"]).ljust(2880).encode()
    return data + gzip.compress(b"", 9)[:10] + _raw_deflate(side * side * 4)


def _raw_deflate(length: int) -> bytes:
    packer, parts, crc = zlib.compressobj(9, zlib.DEFLATED, -15), [], 0
    block = bytes(1 << 20)
    for start in range(0, length, len(block)):
        part = block[: length - start]
        crc = zlib.crc32(part, crc)
        parts.append(packer.compress(part))
    return b"".join([*parts, packer.flush()]) + struct.pack("<II", crc, length & 0xFFFFFFFF)


def targa(side: int) -> bytes:
    header = struct.pack("<BBBHHBHHHHBB", 0, 0, 10, 0, 0, 0, 0, 0, side, side, 24, 0)
    row = b"\xff\0\0\0" * (side // 128)
    if side % 128:
        row += bytes([127 + side % 128]) + bytes(3)
    return header + row * side


def pcx(side: int) -> bytes:
    header = struct.pack("<BBBBHHHHHH", 10, 5, 1, 8, 0, 0, side - 1, side - 1, 72, 72)
    stride = side + side % 2
    header = header.ljust(64, b"\0") + struct.pack("<BBHH", 0, 3, stride, 1)
    row = b"\xff\0" * (3 * stride // 63)
    if 3 * stride % 63:
        row += bytes([0xC0 + 3 * stride % 63, 0])
    return header.ljust(128, b"\0") + row * side


def bitmap(side: int) -> bytes:
    """Write a BMP with run lengths."""
    row = b"\xff\0" * (side // 255) + bytes([side % 255, 0]) * bool(side % 255) + b"\0\0"
    runs = row * side + b"\0\1"
    header = b"BM" + struct.pack("<IHHI", 14 + 40 + 1024 + len(runs), 0, 0, 14 + 40 + 1024)
    header += struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(runs), 2835, 2835, 256, 0)
    return header + bytes(1024) + runs


def many_frames(count: int) -> bytes:
    gif = saved("GIF", "P", (8, 8))
    frame = gif[gif.index(b",") : -1]
    return gif[:-1] + frame * count + b";"


@cache
def bombs() -> dict[str, Callable[[], bytes]]:
    """Return name -> function that makes the file; some take a second."""
    text = (b"zTXt", b"k\0\0" + repeated(1 << 27))
    profile = (b"iCCP", b"k\0\0" + repeated(1 << 27))
    tags = directory_bomb(1)[6:]
    exif = tags[tags.index(b"II*") : tags.index(b"II*") + 64_000]
    many = exif_of([(tag, 7, 4_000_000, 8) for tag in range(60_000)], tail=bytes(4_000_000))[6:]
    progressive = {"progressive": True, "subsampling": 0}
    wide = (16_383, 5_460)
    return {
        "float.tif": lambda: tiff(SIDE, SIDE, 32, 1, 3, 1, 16),
        "float-one-strip.tif": lambda: tiff(SIDE, SIDE, 32, 1, 3, 1),
        "tile.tif": lambda: tiff(8, 8, 8, 1, 1, 1, tile=30_000),
        "int32.tif": lambda: tiff(SIDE, SIDE, 32, 1, 2, 1, 16),
        "16-bit-rgb.tif": lambda: tiff(SIDE, SIDE, 16, 3, 1, 2),
        "rgba.tif": lambda: tiff(SIDE, SIDE, 8, 4, 1, 2, 16),
        "cmyk.tif": lambda: tiff(SIDE, SIDE, 8, 4, 1, 5, 16),
        "16-bit.png": lambda: png(SIDE, SIDE, 16, 0),
        "16-bit-rgb.png": lambda: png(SIDE, SIDE, 16, 2),
        "bits.png": lambda: png(SIDE, SIDE, 1, 0),
        "rgb.png": lambda: png(SIDE, SIDE, 8, 2),
        "rgba.png": lambda: png(SIDE, SIDE, 8, 6),
        "gray-alpha.png": lambda: png(SIDE, SIDE, 8, 4),
        "palette.png": lambda: png(SIDE, SIDE, 8, 3, (b"PLTE", bytes(768)), (b"tRNS", bytes(256))),
        "line-20000.png": lambda: png(1, 20_000, 8, 0),
        "line-2000000.png": lambda: png(1, 2_000_000, 8, 0),
        "row-2000000.png": lambda: png(2_000_000, 1, 8, 0),
        "line-89000000.png": lambda: png(1, 89_000_000, 1, 0),
        "text.png": lambda: png(8, 8, 8, 0, *[text] * 50),
        "profile.png": lambda: png(8, 8, 8, 0, profile),
        "exif.png": lambda: png(8, 8, 8, 0, (b"eXIf", many)),
        "exif-64-kB.png": lambda: png(8, 8, 8, 0, (b"eXIf", exif)),
        "exif.jpg": lambda: directory_bomb(1),
        "exif-of-100-parts.jpg": lambda: directory_bomb(100),
        "tags.tif": tiff_directory_bomb,
        "scans-2000.jpg": lambda: scans(4000, 2000),
        "scans-90.jpg": lambda: scans(SIDE, 90),
        "progressive.jpg": lambda: saved("JPEG", "RGB", (SIDE, SIDE), **progressive),
        "progressive-cmyk.jpg": lambda: saved("JPEG", "CMYK", (SIDE, SIDE), **progressive),
        "baseline.jpg": lambda: saved("JPEG", "RGB", (SIDE, SIDE)),
        "marker.jpg": lambda: b"\xff\xd8\xff" + bytes(30_000_000),
        "icon.ico": lambda: icon(png(13_000, 13_000, 8, 6)),
        "icon.icns": lambda: apple_icon(png(13_000, 13_000, 8, 6)),
        "long.gif": lambda: saved("GIF", "P", (SIDE, SIDE)),
        "frames.gif": lambda: many_frames(200_000),
        "lossless.webp": lambda: saved("WEBP", "RGBA", wide, lossless=True, quality=0, method=0),
        "lossy.webp": lambda: saved("WEBP", "RGB", wide, quality=1, method=0),
        "large.avif": lambda: saved("AVIF", "RGB", (6000, 6000), quality=1, speed=10),
        "large.jp2": lambda: saved("JPEG2000", "RGB", (6000, 6000), irreversible=False),
        "flat.jp2": lambda: saved("JPEG2000", "RGB", (3000, 3000), num_resolutions=1),
        "runs.qoi": lambda: qoi(SIDE),
        "table.fits": lambda: fits(SIDE),
        "runs.tga": lambda: targa(SIDE),
        "runs.pcx": lambda: pcx(SIDE),
        "runs.bmp": lambda: bitmap(SIDE),
        "runs.sgi": lambda: saved("SGI", "RGB", (SIDE // 4, SIDE // 4), rle=True),
    }
