"""Every kind of image, and every kind of bad file or bomb, built with Pillow; expected pixels are
computed by hand."""

from __future__ import annotations

import io
import os
import random
import re
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rmadapter.data import decode
from rmadapter.data.decode import content, image_error, load_image, read_image
from rmadapter.errors import UserError
from tests.hostile import bombs, images as hostile

# 52 values, exact multiples of 257
RAMP = np.arange(0, 65536, 257 * 5, dtype=np.uint16).reshape(4, 13)


def pixels(source: object) -> np.ndarray:
    picture = load_image(source)  # type: ignore[arg-type]
    assert picture.mode == "RGB"
    return np.asarray(picture).astype(int)


def gray(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2).astype(int)


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_16_bit_is_scaled_not_clipped(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"deep.{ending}"
    Image.fromarray(RAMP).save(path)
    assert np.array_equal(pixels(path), gray(RAMP // 257))


def test_big_endian_16_bit_and_32_bit_integers_and_floats(tmp_path: Path) -> None:
    big = Image.frombytes("I;16B", (13, 4), RAMP.astype(">u2").tobytes())
    floats = tmp_path / "float.tif"
    Image.fromarray((RAMP / 65535).astype(np.float32)).save(floats)
    integers = [Image.fromarray(values.astype(np.int32)) for values in (RAMP, RAMP // 257)]
    for source in (big, *integers, floats):
        assert np.array_equal(pixels(source), gray(RAMP // 257))


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    upright = np.zeros((40, 24, 3), np.uint8)
    upright[:20] = 255  # white above black
    # counter-clockwise; orientation 6 asks for a clockwise turn
    stored = Image.fromarray(np.rot90(upright))
    exif = Image.Exif()
    exif[0x0112] = 6
    for ending in ("jpg", "png"):
        path = tmp_path / f"turned.{ending}"
        stored.save(path, exif=exif)
        assert np.abs(pixels(path) - upright).max() < 3
    broken = tmp_path / "broken.jpg"
    stored.save(broken, exif=b"Exif\0\0nonsense")
    assert pixels(broken).shape == (24, 40, 3)


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_first_frame_of_an_animation(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"moving.{ending}"
    red, blue = (Image.new("RGB", (8, 8), color) for color in ("red", "blue"))
    red.save(path, save_all=True, append_images=[blue], duration=100)
    assert np.abs(pixels(path) - [255, 0, 0]).max() < 5


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[..., 3] = [0, 51, 255]  # black, 0 / 20 / 100 % opaque
    expected = gray(np.array([[255, 204, 0]] * 2))
    assert np.array_equal(pixels(rgba), expected)
    assert np.array_equal(pixels(Image.fromarray(rgba).convert("LA")), expected)
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putdata([0, 1])
    for name, transparency in (("index.png", 0), ("index.gif", 0), ("bytes.png", bytes([0, 255]))):
        palette.save(tmp_path / name, transparency=transparency)
        assert pixels(tmp_path / name).tolist() == [[[255, 255, 255], [200, 100, 50]]]
    Image.new("RGB", (1, 1), (9, 9, 9)).save(tmp_path / "key.png", transparency=(9, 9, 9))
    assert pixels(tmp_path / "key.png").tolist() == [[[255, 255, 255]]]


def test_cmyk_gray_and_black_and_white(tmp_path: Path) -> None:
    for ending in ("jpg", "tif"):
        path = tmp_path / f"print.{ending}"
        Image.new("CMYK", (16, 16), (255, 0, 0, 0)).save(path)  # full cyan
        assert np.abs(pixels(path) - [0, 255, 255]).max() < 5
    assert pixels(Image.new("L", (1, 1), 7)).tolist() == [[[7, 7, 7]]]
    assert pixels(Image.new("1", (1, 1), 1)).tolist() == [[[255, 255, 255]]]


def test_arrays(tmp_path: Path) -> None:
    values = np.array([[0, 128, 255]], np.uint8)
    color = np.stack([values] * 3, 2)
    assert np.array_equal(pixels(values), gray(values))
    # a view with negative strides
    assert np.array_equal(pixels(color[:, ::-1]), gray(values[:, ::-1]))
    assert np.array_equal(pixels(values / 255), gray(values))
    assert np.array_equal(pixels(color.astype(np.float16) / np.float16(255)), color)


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"shape \[3, 8, 8\]"),
        (np.zeros((0, 8), np.uint8), "shape"),
        (np.full((2, 2), 200.0), "scale it to 0..1"),
        (np.full((2, 2), np.nan), "scale it to 0..1"),
        (np.zeros((2, 2), np.int64), "int64"),
        (7, "not int"),
    ],
)
def test_other_sources_are_refused(source: object, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        load_image(source)  # type: ignore[arg-type]


def encoded(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def saved(kind: str, keep: float = 1.0) -> bytes:
    """A noisy picture in this format, cut after a part of its bytes."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    return data[: int(keep * len(data))]


BAD = {
    "empty.jpg": (b"", "0 bytes"),
    "text.jpg": (b"this is not a picture", "not an image"),
    "cut.jpg": (saved("JPEG", 0.6), "truncated"),
    "cut.png": (saved("PNG", 0.6), "not a readable image"),
    "cut.gif": (saved("GIF", 0.6), "not a readable image"),
    "cut.bmp": (saved("BMP", 0.6), "truncated"),
    "cut.webp": (saved("WEBP", 0.6), "webp|not an image|readable"),
    "header.png": (saved("PNG", 0.002), "Truncated"),
    "nan.tif": (encoded(Image.fromarray(np.full((4, 4), np.nan, "f")), "TIFF"), "not finite"),
    "raw.NEF": (saved("TIFF"), "RAW format"),
    "vector.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "bomb.png": (bombs.png(20_000, 20_000, 8, 0, bits=1), "400000000 pixels"),
    # Pillow would only warn
    "bomblet.png": (bombs.png(10_000, 10_000, 8, 0, bits=1), "100000000 pixels"),
    "line.png": (encoded(Image.new("L", (1, 2000)), "PNG"), "1 x 2000 pixels: more than 100 times"),
    "row.png": (encoded(Image.new("L", (20_000, 3)), "PNG"), "more than 100 times"),
    "scans.jpg": (bombs.scans(1500, 900), "in 90. scans"),
    "exif.jpg": (bombs.directory_bomb(2), "more than one block of EXIF"),
    "tile.tif": (bombs.tiff(8, 8, 8, 1, 1, 1, tile=30_000), "takes 900 MB to decode"),
    "prints.jpg": (
        bombs.saved("JPEG", "CMYK", (9400, 9400), progressive=True, subsampling=0),
        "takes 8.. MB",
    ),
    "tags.tif": (bombs.tiff_directory_bomb(2000), r"larger than (the )?file"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_files_are_refused_by_name(tmp_path: Path, name: str) -> None:
    data, hint = BAD[name]
    path = tmp_path / name
    path.write_bytes(data)
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(UserError, match=hint) as caught:
        load_image(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert image_error(path) == str(caught.value)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_good_files_have_no_error(tmp_path: Path) -> None:
    for ending in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"):
        path = tmp_path / f"good.{ending}"
        path.write_bytes(saved(ending))
        assert image_error(path) == ""
    (tmp_path / "tail.jpg").write_bytes(saved("JPEG") + b"appended by a phone")
    assert image_error(tmp_path / "tail.jpg") == ""


def test_image_error_agrees_with_load_image_on_damaged_files(tmp_path: Path) -> None:
    """Of 400 damaged files; an exception of another kind fails here."""
    count = 0
    rng = random.Random(7)
    for number in range(400):
        name, content = rng.choice(hostile.DAMAGES)(rng)
        path = tmp_path / f"{number}-{name}"
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = image_error(path)
            try:
                load_image(path)
            except UserError as error:
                assert str(error) == expected, name  # noqa: PT017
            else:
                assert expected == "", name
        assert "\n" not in expected
        count += not expected
    assert 40 < count < 360


def test_strips_are_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same pixels whether they become RGB at once or row by row, in every mode."""
    noise = np.random.default_rng(0).integers(0, 256, (37, 53, 4), np.uint8)
    color = Image.fromarray(noise)
    modes = ("1", "L", "LA", "PA", "RGBA", "RGB", "CMYK", "YCbCr", "F")
    images = [color.convert(mode) for mode in modes]
    images += [color.convert("RGB").convert(mode) for mode in ("P", "HSV")]
    images += [Image.fromarray(noise[..., 0].astype(kind) * 200) for kind in (np.int32, np.uint16)]
    images[5].info["transparency"] = tuple(noise[0, 0, :3])
    whole = [pixels(image) for image in images]
    monkeypatch.setattr("rmadapter.data.decode.STRIP_PIXELS", 100)
    for image, expected in zip(images, whole, strict=True):
        assert np.array_equal(pixels(image), expected), image.mode
    assert np.array_equal(whole[5][1:, 1:], noise[1:, 1:, :3])


def test_bytes_in_memory_are_read_like_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGBA", (9, 5), (200, 10, 10, 128)).save(path)
    found = read_image(io.BytesIO(path.read_bytes()), "sent.png")
    assert np.array_equal(np.asarray(found), np.asarray(load_image(path)))
    for data, name, words in (
        (b"", "sent.png", "sent.png: not a readable image (the file is empty, 0 bytes)"),
        (b"text", "sent.png", "sent.png: not an image in a supported format"),
        (path.read_bytes(), "a.nef", "a.nef: .nef is a camera's RAW format"),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            read_image(io.BytesIO(data), name)


def test_content_of_images_in_memory_depends_on_pixels() -> None:
    grey = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))
    palette = grey.copy()
    palette.putpalette([*range(255, -1, -1)] * 3)
    red = Image.new("RGB", (4, 4), "red")
    turned = red.copy()
    turned.paste("blue", (0, 0, 2, 4))
    upright, lying = turned.copy(), turned.copy()
    lying.getexif()[0x0112] = 6
    lying.info["exif"] = lying.getexif().tobytes()
    assert len({content(image) for image in (grey, palette, red, upright, lying)}) == 5
    assert content(red) == content(np.asarray(red)) == content(red.convert("RGBA"))


# Bounds


needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.mark.skipif(os.name == "nt", reason="has no pipes with names")
@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder", "loop", "gone"])
def test_only_plain_files_are_read(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.jpg"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)  # the length of an address is bounded
    elif kind == "folder":
        path.mkdir()
    elif kind != "gone":
        path.symlink_to("/dev/zero" if kind == "device" else path)
    for read in (load_image, content):
        with pytest.raises(UserError, match=rf"^{path}: (not a readable image \(|no image in)"):
            read(path)
    assert image_error(path).startswith(f"{path}: ")


def test_a_large_file_is_refused_and_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(encoded(Image.new("L", (4, 4)), "PNG"))
    os.truncate(path, decode.MAX_FILE_BYTES + 1)  # takes no room on the disk
    with pytest.raises(UserError, match="300,000,001 bytes; an image file may have at most"):
        load_image(path)


def test_slow_decoding_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A JPEG whose first marker never comes: Pillow looks at every byte."""
    (tmp_path / "marker.jpg").write_bytes(b"\xff\xd8\xff" + bytes(30_000_000))
    for name, bound in {"MAX_SECONDS": 0.1, "MAX_READS": 10_000}.items():
        with monkeypatch.context() as patch:
            patch.setattr(decode, name, bound)
            with pytest.raises(UserError, match=r"marker\.jpg: .*takes too long"):
                load_image(tmp_path / "marker.jpg")


def test_ordinary_photos_are_accepted(tmp_path: Path) -> None:
    """Three to one, ten scans, 24 megapixels, EXIF with a thumbnail: none of it is a bomb."""
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    thumbnail = encoded(Image.new("L", (160, 120)), "JPEG")
    image = Image.linear_gradient("L").convert("RGB").resize((8400, 2800))
    image.save(path, progressive=True, exif=exif.tobytes() + thumbnail, icc_profile=bytes(100_000))
    assert load_image(path).size == (2800, 8400)
    # each with EXIF of its own
    image.save(tmp_path / "two.mpo", save_all=True, append_images=[image], exif=exif)
    assert load_image(tmp_path / "two.mpo").size == (2800, 8400)


def test_a_large_photo_is_halved(tmp_path: Path) -> None:
    """JPEG and TIFF take different ways there; the oracle is Pillow's mean of 2 x 2 pixels."""
    image = Image.radial_gradient("L").resize((7000, 3501)).convert("RGB")
    for name in ("large.jpg", "large.tif"):
        image.save(tmp_path / name, quality=95)
        found = load_image(tmp_path / name)
        assert found.size == (3500, 1751)
        near = found.resize((350, 175)), image.reduce(2).resize((350, 175))
        assert max(abs(a - b) for a, b in zip(*(part.tobytes() for part in near), strict=True)) < 6


CHILD = """
import sys, warnings
from pathlib import Path
from rmadapter.data.decode import load_image
from rmadapter.errors import UserError

def kilobytes(what):
    return int(next(line for line in open("/proc/self/status") if line.startswith(what)).split()[1])

warnings.simplefilter("ignore")
for path in sys.argv[1:]:
    Path("/proc/self/clear_refs").write_text("5")
    before = kilobytes("VmRSS")
    try:
        load_image(path)
    except UserError:
        pass
    print(kilobytes("VmHWM") - before)
"""


@pytest.mark.ci
@needs_linux
def test_no_file_takes_more_than_four_photos(tmp_path: Path) -> None:
    names = ["float.tif", "16-bit.png", "line-2000000.png"]
    for name in names:
        (tmp_path / name).write_bytes(bombs.bombs()[name]())
    files = [str(tmp_path / name) for name in names]
    Image.effect_noise((6000, 4000), 30).convert("RGB").save(tmp_path / "photo.jpg")
    command = [sys.executable, "-c", CHILD, str(tmp_path / "photo.jpg"), *files]
    photo, *others = map(int, subprocess.check_output(command, text=True).split())
    assert 150_000 < photo < 260_000
    assert max(others) < 4 * photo, dict(zip(names, others, strict=True))


def test_an_icon_with_another_size_than_declared_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.ico").write_bytes(bombs.icon(bombs.png(9500, 9500, 1, 0)))
    assert "x.ico" in image_error(tmp_path / "x.ico")
