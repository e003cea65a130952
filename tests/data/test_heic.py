"""Photos of telephones: HEIC, AVIF, and RAW refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rmadapter.data.decode import image_formats, load_image
from rmadapter.data.read import read_images
from rmadapter.errors import UserError


def quarters() -> Image.Image:
    """32 x 16 pixels, its left half red, which turning shows."""
    image = Image.new("RGB", (32, 16), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 16, 16))
    return image


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """As a telephone held upright writes it: the pixels lie on their side, and a tag says so."""
    assert image_formats()[".heic"] == "HEIF"
    exif = Image.Exif()
    exif[0x0112] = 6
    quarters().save(tmp_path / "photo.HEIC", format="HEIF", quality=90, exif=exif.tobytes())
    return tmp_path / "photo.HEIC"


def test_heic_is_upright_and_has_its_colours(photo: Path) -> None:
    image = load_image(photo)
    assert image.size == (16, 32)
    top, bottom = np.asarray(image)[4, 8].astype(int), np.asarray(image)[28, 8].astype(int)
    assert np.abs(top - (255, 0, 0)).max() < 30
    assert np.abs(bottom - (0, 0, 255)).max() < 30


def test_damaged_heic_gives_an_error(photo: Path) -> None:
    data = photo.read_bytes()
    for count in (20, len(data) // 2, len(data) - 40):
        photo.write_bytes(data[:count])
        with pytest.raises(UserError, match=r"photo\.HEIC: not ") as caught:
            load_image(photo)
        assert "pip install" not in str(caught.value)


def test_avif_is_read(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.avif")
    assert load_image(tmp_path / "a.avif").size == (32, 16)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {ending: name for ending, name in image_formats().items() if name != "HEIF"}
    for module in ("formats.base", "decode"):
        monkeypatch.setattr(f"rmadapter.data.{module}.image_formats", lambda: known)
    for name in ("cat/1.png", "dog/1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        quarters().save(tmp_path / name)
    for name in ("cat/2.heic", "cat/3.HEIC", "dog/4.dng", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert read_images(tmp_path)["all"].ignored == (
        "4 files ignored: .heic 2, .dng 1, .txt 1; pip install pillow-heif to read .heic; "
        ".dng is a camera's RAW format: convert it to JPEG first"
    )
    (tmp_path / "dog" / "1.png").unlink()
    with pytest.raises(UserError, match=r"dog: no image in this folder \(4 files ignored: .*\.dng"):
        read_images(tmp_path)


def test_unreadable_heic_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rmadapter.data.decode.image_formats", lambda: {".png": "PNG"})
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(UserError, match=r"a\.heic: .*pip install pillow-heif"):
        load_image(tmp_path / "a.heic")
