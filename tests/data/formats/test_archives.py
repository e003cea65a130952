"""Archives and packed images become files of the cache, once; hostile ones leave nothing there."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from rmadapter.data.catalog.fetch import unpack
from rmadapter.data.formats.archives import inner, is_packed, store_image, unpack_once
from rmadapter.errors import UserError
from tests.helpers.shots import write_tiny_images
from tests.helpers.small_images import png


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def zipped(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name.replace("__", "/"), data)
    return path


@pytest.mark.parametrize("suffix", [".zip", ".ZIP"])
def test_a_zip_file_is_unpacked_once(tmp_path: Path, suffix: str) -> None:
    archive = zipped(tmp_path / f"pets{suffix}", pets__cat__a=png("cat"), pets__dog__b=png("dog"))
    folder = unpack_once(archive)
    assert (folder / "pets/cat/a").read_bytes() == png("cat")
    (folder / "pets/cat/a").write_bytes(b"mine")
    assert unpack_once(archive) == folder
    assert (folder / "pets/cat/a").read_bytes() == b"mine"  # not unpacked again
    os.utime(archive, (1, 1))
    assert unpack_once(archive) != folder


@pytest.mark.parametrize(("suffix", "mode"), [(".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz")])
def test_tar_files(tmp_path: Path, suffix: str, mode: str) -> None:
    archive = tmp_path / f"pets{suffix}"
    with tarfile.open(archive, mode) as file:  # type: ignore[call-overload]
        member = tarfile.TarInfo("cat/a.png")
        member.size = len(png("cat"))
        file.addfile(member, io.BytesIO(png("cat")))
    assert is_packed(archive)
    assert (unpack_once(archive) / "cat/a.png").read_bytes() == png("cat")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"..__..__a.png": b"x"}, "leads out of its folder"),
        ({"__etc__a.png": b"x"}, "leads out of its folder"),
        ({"bomb.png": bytes(150_000_000)}, "more than 10[0-9],[0-9]{3},[0-9]{3} bytes"),
    ],
)
def test_hostile_archives_are_refused_and_leave_nothing(
    tmp_path: Path, cache: Path, members: dict[str, bytes], words: str
) -> None:
    archive = zipped(tmp_path / "x.zip", **members)
    with pytest.raises(UserError, match=words):
        unpack_once(archive)
    assert [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"] == []
    assert not list((cache / "unpacked").glob("x-*"))


def test_a_folder_that_lost_files_is_made_again(tmp_path: Path) -> None:
    """As by a program that deletes old files from a cache."""
    write_tiny_images(tmp_path / "set", "a/1.png", "a/2.png")
    archive = Path(shutil.make_archive(str(tmp_path / "set"), "zip", tmp_path / "set"))
    folder = unpack_once(archive)
    (folder / "a/1.png").unlink()
    expected = ["1.png", "2.png"]
    assert sorted(path.name for path in (unpack_once(archive) / "a").iterdir()) == expected


def test_the_lock_holds_across_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache may be in a home folder that several machines share."""
    asked: list[Path] = []
    monkeypatch.setattr("rmadapter.support.locks.soft", lambda path: bool(asked.append(path)))
    made = unpack_once(zipped(tmp_path / "pets.zip", a=b"x"))
    assert set(asked) == {made.with_name(f".{made.name}.part.lock")}


def test_a_damaged_archive(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"PK no zip")
    with pytest.raises(UserError, match=r"x\.zip: cannot be unpacked"):
        unpack_once(tmp_path / "x.zip")


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:2100] + bytes([whole[2100] ^ 1]) + whole[2101:],  # in the header of c
        lambda whole: whole[:2048],  # behind b
        lambda whole: whole[:2300],  # within the header of c
        lambda whole: whole[: 6 * 512],  # behind c, without an end
    ],
)
def test_a_truncated_tar_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """Python's tarfile takes a damaged header for the end."""
    with tarfile.open(tmp_path / "x.tar", "w") as file:
        for name in "abc":
            (tmp_path / name).write_bytes(b"x" * 300)
            file.add(tmp_path / name, name)
    whole = (tmp_path / "x.tar").read_bytes()
    assert len([*unpack_once(tmp_path / "x.tar").iterdir()]) == 3
    (tmp_path / "y.tar").write_bytes(damage(whole))
    with pytest.raises(UserError, match=r"y\.tar: cannot be unpacked"):
        unpack_once(tmp_path / "y.tar")


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "x.zip", a=b"new")
    folder = unpack_once(archive)
    left = folder.rename(folder.with_name(f".{folder.name}.part"))
    (left / "old").write_bytes(b"half")
    assert [path.name for path in unpack_once(archive).iterdir()] == ["a"]


def test_inner_folder_of_an_archive(tmp_path: Path) -> None:
    for name in ("top/set/cat/a.png", "top/set/dog/b.png", "__MACOSX/x", ".DS_Store"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert inner(tmp_path) == tmp_path / "top/set"
    for name in ("LICENSE", "readme.txt", "notes.md"):
        (tmp_path / name).write_bytes(b"")
    assert inner(tmp_path) == tmp_path / "top/set"
    (tmp_path / "labels.txt").write_bytes(b"")
    assert inner(tmp_path) == tmp_path
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "again").symlink_to(tmp_path / "loop")
    assert inner(tmp_path / "loop") == tmp_path / "loop"
    (tmp_path / "one/Test/cat").mkdir(parents=True)
    assert inner(tmp_path / "one") == tmp_path / "one"  # images to test on are not to be trained on


@pytest.mark.parametrize(
    ("name", "ends"),
    [("a b.png", "-a_b.png"), ("../../x.jpg", "-x.jpg"), (".png", "-png"), ("", "-image")],
)
def test_stored_images_are_named_by_content(cache: Path, name: str, ends: str) -> None:
    path = store_image(b"pixels", name)
    assert path.read_bytes() == b"pixels"
    assert path.parent.parent == cache / "images"
    assert path.name.endswith(ends)
    assert store_image(b"pixels", name) == path
    assert store_image(b"others", name) != path


def test_nested_archives_with_equal_names_are_refused(tmp_path: Path) -> None:
    one, other = (
        zipped(tmp_path / name, cat__1=name.encode()).read_bytes() for name in ("a.zip", "b.zip")
    )
    with pytest.raises(UserError, match=r"holds '?cat/1'? twice, or an archive in it does"):
        unpack_once(zipped(tmp_path / "both.zip", **{"a.zip": one, "b.zip": other}))
    apart = unpack_once(zipped(tmp_path / "apart.zip", **{"x__a.zip": one, "y__b.zip": other}))
    assert {(apart / name).read_text() for name in ("x/cat/1", "y/cat/1")} == {"a.zip", "b.zip"}
    assert not [*(tmp_path / "cache/unpacked").glob("both*")]


def test_nested_archives_share_one_limit(tmp_path: Path) -> None:
    inner_ones = {
        f"x{i}__a.zip": zipped(tmp_path / f"{i}.zip", data=bytes(900)).read_bytes()
        for i in range(5)
    }
    outer = zipped(tmp_path / "outer.zip", **inner_ones)
    size = sum(map(len, inner_ones.values()))
    assert unpack(outer, tmp_path / "room", size + 4500) == 0
    with pytest.raises(UserError, match=r"more than [0-9,]+ bytes"):
        unpack(outer, tmp_path / "none", size + 4499)


def test_long_names_in_any_script(tmp_path: Path) -> None:
    assert store_image(png("cat"), f"{'漢' * 80}.png").name.endswith("漢.png")
    assert unpack_once(zipped(tmp_path / f"{'漢' * 80}.zip", cat__1=b"x")).is_dir()
