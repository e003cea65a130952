"""Odd files and bombs: refused at once, in one sentence, or read in bounded memory."""

from __future__ import annotations

import io
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from rmadapter.data import decode
from rmadapter.data.decode import advice, content, image_error, load_image, shrink
from rmadapter.data.formats.base import check_inside, ignored_note
from rmadapter.data.read import read_images
from rmadapter.errors import UserError
from tests.hostile import bombs as hostile

needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def odd_files(folder: Path) -> dict[str, Path]:
    found = {
        name: folder / f"{name}.jpg"
        for name in ("pipe", "socket", "device", "folder", "loop", "gone")
    }
    os.mkfifo(found["pipe"])
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(found["socket"]))  # whose length is bounded
    found["device"].symlink_to("/dev/zero")
    found["folder"].mkdir()
    found["loop"].symlink_to(found["loop"])
    return found


@pytest.mark.skipif(os.name == "nt", reason="has no pipes with names")
def test_pipes_and_devices_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in odd_files(tmp_path).values():
        for read in (load_image, content):
            with pytest.raises(UserError) as caught:
                read(path)
            assert str(caught.value).startswith(f"{path}: not a readable image (")
        assert image_error(path).startswith(f"{path}: ")


@needs_linux
def test_folders_of_the_system_are_no_data(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/proc/self")
    for path in (Path("/proc/self"), Path("/dev"), tmp_path / "link"):
        with pytest.raises(UserError, match="a system folder, which holds no images"):
            read_images(path)


@needs_linux
def test_ctrl_c_ends_the_check(tmp_path: Path) -> None:
    """Of a hundred images that each take a while."""
    slow = hostile.scans(2000, 100)
    for number in range(100):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / f"{number}.jpg").write_bytes(slow)
    # which what starts the tests may ignore
    code = "import signal; signal.signal(2, signal.default_int_handler); "
    code += "import rmadapter.data.read as i; print('go', flush=True); "
    code += f"i.read_images({str(tmp_path)!r}, check=True)"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"go\n"
        time.sleep(0.5)
        child.send_signal(2)
        child.communicate(timeout=60)
        assert child.returncode in (-2, 130)


def saved(size: tuple[int, int], kind: str = "PNG", mode: str = "L") -> io.BytesIO:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind)
    return buffer


@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        ("line.png", saved((1, 2000)).getvalue(), "1 x 2000 pixels: more than 100 times"),
        ("row.png", saved((20_000, 3)).getvalue(), "more than 100 times"),
        ("scans.jpg", hostile.scans(1500, 900), "in 90. scans"),
        ("exif.jpg", hostile.directory_bomb(2), "more than one block of EXIF"),
        ("tile.tif", hostile.tiff(8, 8, 8, 1, 1, 1, tile=30_000), "takes 900 MB to decode"),
        (
            "prints.jpg",
            hostile.saved("JPEG", "CMYK", (9400, 9400), progressive=True, subsampling=0),
            "takes 8.. MB",
        ),
        ("tags.tif", hostile.tiff_directory_bomb(2000), r"larger than (the )?file"),
    ],
)
def test_bombs_are_refused_by_name(tmp_path: Path, name: str, content: bytes, hint: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=hint) as caught:
        load_image(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert image_error(tmp_path / name) == str(caught.value)


def test_a_large_file_is_refused_and_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(saved((4, 4)).getvalue())
    os.truncate(path, decode.BYTES + 1)  # takes no room on the disk
    with pytest.raises(UserError, match="300,000,001 bytes; an image file may have at most"):
        load_image(path)


def test_slow_decoding_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A JPEG whose first marker never comes: Pillow looks at every byte."""
    (tmp_path / "marker.jpg").write_bytes(b"\xff\xd8\xff" + bytes(30_000_000))
    for name, bound in {"SECONDS": 0.1, "READS": 10_000}.items():
        with monkeypatch.context() as patch:
            patch.setattr(decode, name, bound)
            with pytest.raises(UserError, match=r"marker\.jpg: .*takes too long"):
                load_image(tmp_path / "marker.jpg")


def test_ordinary_photos_are_accepted(tmp_path: Path) -> None:
    """Three to one, ten scans, 24 megapixels, EXIF with a thumbnail: none of it is a bomb."""
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    thumbnail = saved((160, 120), "JPEG").getvalue()
    image = Image.linear_gradient("L").convert("RGB").resize((8400, 2800))
    image.save(path, progressive=True, exif=exif.tobytes() + thumbnail, icc_profile=bytes(100_000))
    assert load_image(path).size == (2800, 8400)
    # each with EXIF of its own
    image.save(tmp_path / "two.mpo", save_all=True, append_images=[image], exif=exif)
    assert load_image(tmp_path / "two.mpo").size == (2800, 8400)


@pytest.mark.parametrize(
    ("size", "factor"), [((6000, 4000), 1), ((6000, 4001), 2), ((9400, 9400), 2), ((1, 1), 1)]
)
def test_more_than_24_megapixels_are_reduced(size: tuple[int, int], factor: int) -> None:
    assert shrink(Image.new("1", size)) == factor


def test_a_large_photo_is_halved(tmp_path: Path) -> None:
    """JPEG and TIFF take different ways there; the oracle is Pillow's mean of 2 x 2 pixels."""
    image = Image.radial_gradient("L").resize((7000, 3501)).convert("RGB")
    for name in ("large.jpg", "large.tif"):
        image.save(tmp_path / name, quality=95)
        found = load_image(tmp_path / name)
        assert found.size == (3500, 1751)
        near = found.resize((350, 175)), image.reduce(2).resize((350, 175))
        assert max(abs(a - b) for a, b in zip(*(part.tobytes() for part in near), strict=True)) < 6


def test_listed_paths_must_stay_in_their_folder() -> None:
    for name in ("a.png", "a/b/..c.png", "..a/b.png", "~x/a.png"):
        check_inside(name, "list.csv")
    for name in ("/etc/passwd", "../a.png", "a/../../b.png", ".."):
        with pytest.raises(UserError, match=re.escape(f"list.csv: {name!r} lies outside")):
            check_inside(name, "list.csv")
        check_inside(name, "list.csv", outside=True)


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


@needs_linux
def test_no_file_takes_more_than_four_photos(tmp_path: Path) -> None:
    bombs = hostile.bombs()
    names = ["float.tif", "16-bit.png", "line-2000000.png"]
    for name in names:
        (tmp_path / name).write_bytes(bombs[name]())
    hostile_files = [str(tmp_path / name) for name in names]
    Image.effect_noise((6000, 4000), 30).convert("RGB").save(tmp_path / "photo.jpg")
    command = [sys.executable, "-c", CHILD, str(tmp_path / "photo.jpg"), *hostile_files]
    photo, *others = map(
        int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    )
    assert 150_000 < photo < 260_000
    assert max(others) < 4 * photo, dict(zip(names, others, strict=True))


def test_an_icon_with_another_size_than_declared_is_refused(tmp_path: Path) -> None:
    inside = hostile.png(9500, 9500, 1, 0)
    (tmp_path / "x.ico").write_bytes(hostile.icon(inside))
    assert struct.unpack("<H", (tmp_path / "x.ico").read_bytes()[2:4]) == (1,)
    assert "x.ico" in image_error(tmp_path / "x.ico")


def test_files_are_counted_by_kind_the_most_frequent_first() -> None:
    assert ignored_note(Counter({".txt": 2, "hidden": 3})) == "5 files ignored: hidden 3, .txt 2"
    assert ignored_note(Counter({".txt": 1})) == "1 file ignored: .txt 1"
    assert ignored_note(Counter()) == ""


def test_ignored_photos_come_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rmadapter.data.decode.formats", dict)  # as without pillow-heif
    text = ignored_note(Counter({".heic": 3, ".cr2": 1, ".txt": 2}))
    assert text == (
        "6 files ignored: .heic 3, .txt 2, .cr2 1; pip install 'rmadapter[heic]' to read .heic; "
        ".cr2 is a camera's RAW format: convert it to JPEG first"
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a/IMG_1.HEIC", "to read .heic"),
        ("b.NEF", "RAW format"),
        (".dng", "RAW format"),
        ("c.jpg", ""),
        ("raw", ""),
    ],
)
def test_advice_follows_the_suffix(name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rmadapter.data.decode.formats", lambda: {".heif": "HEIF"})
    assert advice("d.heif") == ""  # it could be read: this file is damaged
    assert (words in advice(name)) if words else advice(name) == ""
