from __future__ import annotations

import os
from pathlib import Path

import pytest

from rmadapter.errors import UserError
from rmadapter.predict.sorting import Sorter


def image(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text or path.as_posix())
    return path


def test_taken_names_get_a_number(tmp_path: Path) -> None:
    image(tmp_path / "out/cat/a-4.jpg")
    sorter = Sorter(tmp_path / "out", ["cat", "dog"])
    names = ["a.jpg", "a-2.jpg", "A.JPG", "a.jpg", "a.jpg"]
    found = [sorter.place(tmp_path / str(i) / name, "cat").name for i, name in enumerate(names)]
    assert found == ["a.jpg", "a-2.jpg", "A-3.JPG", "a-5.jpg", "a-6.jpg"]
    assert sorter.place(tmp_path / "a.jpg", "dog") == tmp_path / "out/dog/a.jpg"


@pytest.mark.parametrize("how", ["copy", "move", "link"])
def test_images_are_copied_moved_or_linked_and_never_overwritten(tmp_path: Path, how: str) -> None:
    source, sorter = image(tmp_path / "in/a.jpg", "new"), Sorter(tmp_path / "out", ["cat"], how)  # type: ignore[arg-type]
    os.utime(source, (1e9, 1e9))
    there = image(tmp_path / "out/cat/b.jpg", "old")
    sorter.put(source, there)
    assert (there.read_text(), source.read_text()) == ("old", "new")
    place = sorter.place(source, "cat")
    sorter.put(source, place)
    assert (place.read_text(), place.stat().st_mtime) == ("new", 1e9)
    assert source.exists() == (how != "move")
    assert place.is_symlink() == (how == "link")
    assert sorted(path.name for path in place.parent.iterdir()) == ["a.jpg", "b.jpg"]


def test_moving_a_link_and_between_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, sorter = image(tmp_path / "in/a.jpg", "x"), Sorter(tmp_path / "out", ["cat"], "move")
    (tmp_path / "in/link.jpg").symlink_to("a.jpg")
    sorter.put(tmp_path / "in/link.jpg", tmp_path / "out/cat/link.jpg")
    assert (tmp_path / "out/cat/link.jpg").read_text() == "x"
    assert not (tmp_path / "in/link.jpg").is_symlink()

    def another_disk(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "rename", another_disk)
    source.chmod(0o444)  # as cameras write them
    sorter.put(source, tmp_path / "out/cat/a.jpg")
    assert (tmp_path / "out/cat/a.jpg").read_text() == "x"
    assert os.access(tmp_path / "out/cat/a.jpg", os.W_OK)
    assert (tmp_path / "out/cat/a.jpg").stat().st_mode & 0o200
    assert not source.exists()


def test_killed_process_is_resumed(tmp_path: Path) -> None:
    """The row is written first, so that its place is known."""
    source, place = image(tmp_path / "in/a.jpg", "x"), tmp_path / "out/cat/a.jpg"
    sorter = Sorter(tmp_path / "out", ["cat"])
    sorter.resume(
        [{"image": str(source), "sorted_to": str(place)}, {"image": "gone.jpg", "bad": "no image"}]
    )
    assert place.read_text() == "x"
    assert sorter.place(source, "cat").name == "a-2.jpg"
    Sorter(tmp_path / "out", ["cat"], "move").resume(
        [{"image": "moved.jpg", "sorted_to": str(place)}]
    )


def test_folder_names(tmp_path: Path) -> None:
    sorter = Sorter(tmp_path, ["sea_horse", "a/b", "..", "Käfer "])
    assert list(sorter.folders.values()) == ["sea_horse", "a_b", "_", "Käfer"]
    odd = Sorter(tmp_path, ["a. .", "aux", "NUL.txt", "com1 .x", "console"])
    assert list(odd.folders.values()) == ["a", "aux_", "NUL.txt_", "com1 .x_", "console"]
    with pytest.raises(UserError, match="'a/b' and 'A_b'"):
        Sorter(tmp_path, ["a/b", "A_b"])


def test_refused_folders(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    one = tmp_path / "in/a.jpg"
    for root in (tmp_path / "in", tmp_path / "in/sorted/new"):
        with pytest.raises(UserError, match=str(tmp_path / "in")):
            Sorter(root, ["cat"]).check([tmp_path / "in"], [one])
    Sorter(tmp_path / "inner", ["cat"]).check([tmp_path / "in"], [one, one])
    with pytest.raises(UserError, match=r"a\.jpg"):
        Sorter(tmp_path / "inner", ["cat"], "move").check([], [one, one])
    for searched, images in (
        ([tmp_path / "in/cat"], []),
        ([tmp_path / "in/cat/old"], []),
        ([], [tmp_path / "in/cat/a.jpg"]),
    ):
        with pytest.raises(UserError, match=str(tmp_path / "in/cat")):
            Sorter(tmp_path / "in", ["cat"]).check(searched, images)
    Sorter(tmp_path / "in", ["cat"]).check([tmp_path / "in/dog"], [one])
    image(tmp_path / "file")
    with pytest.raises(UserError, match=str(one)):
        Sorter(tmp_path / "file", ["cat"], "link").put(one, tmp_path / "file/cat/a.jpg")


def test_images_of_an_archive_are_only_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the cache, where the next command takes them for the archive."""
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "cache"))
    inside = image(tmp_path / "cache/unpacked/photos-1/cat/a.jpg")
    for how in ("move", "link"):
        with pytest.raises(UserError, match=f"--{how}$"):
            Sorter(tmp_path / "out", ["cat"], how).check([], [image(tmp_path / "in/b.jpg"), inside])  # type: ignore[arg-type]
    Sorter(tmp_path / "out", ["cat"]).check([], [inside])


def test_image_with_two_paths_is_moved_once(tmp_path: Path) -> None:
    one = image(tmp_path / "in/a.jpg")
    (tmp_path / "same").symlink_to("in")
    (tmp_path / "in/link.jpg").symlink_to("a.jpg")  # which is moved as a link, beside its target
    sorter = Sorter(tmp_path / "out", ["cat"], "move")
    sorter.check([], [one, tmp_path / "in/link.jpg"])
    with pytest.raises(UserError, match=r"in/a\.jpg"):
        sorter.check([], [one, tmp_path / "same/a.jpg"])
