"""Activations on disk: what comes back, what leaves, and what is never touched."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rmadapter.errors import UserError
from rmadapter.training import disk_cache as module
from rmadapter.training.disk_cache import TAG, Store

NAME, OTHER = "0" * 16, "1" * 16
KEYS = [letter * 64 for letter in "abcde"]
ROWS: Mapping[str, Tensor] = {
    "x": torch.arange(60.0).reshape(5, 3, 4),
    "y": torch.randn(5, 2).bfloat16(),
}


def blank(count: int = 5) -> dict[str, Tensor]:
    return {
        name: torch.zeros(count, *tensor.shape[1:], dtype=tensor.dtype)
        for name, tensor in ROWS.items()
    }


def kept(folder: Path, limit: float = 1e6, rows: range = range(5), name: str = NAME) -> Store:
    store = Store(folder / "activations", limit)
    store.write(name, f"things {name[0]}", KEYS, ROWS, rows)
    return store


def test_rows_come_back_by_their_keys_from_several_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD", 2 * (48 + 4))
    store = kept(tmp_path, rows=range(3))
    assert len(list(store.files())) == 2
    found = blank(4)
    assert store.read(NAME, [KEYS[2], KEYS[4], KEYS[0], KEYS[2]], found) == [1]
    for name, tensor in ROWS.items():
        assert torch.equal(found[name][[0, 2, 3]], tensor[[2, 0, 2]])
        assert not found[name][1].any()
    assert store.read(OTHER, KEYS, blank()) == [0, 1, 2, 3, 4]
    assert [(one["what"], one["images"]) for one in store.contents()] == [("things 0", 3)]


def test_what_is_of_another_shape_or_format_is_not_taken(tmp_path: Path) -> None:
    store = kept(tmp_path)
    assert store.read(NAME, KEYS, {**blank(), "x": torch.zeros(5, 3, 5)}) == [0, 1, 2, 3, 4]
    assert store.read(NAME, KEYS, {**blank(), "y": torch.zeros(5, 2)}) == [0, 1, 2, 3, 4]
    assert store.read(NAME, KEYS, blank()) == []


def test_the_least_recently_used_leaves_and_what_alone_is_too_much_is_not_written(
    tmp_path: Path,
) -> None:
    size = sum(status.st_size for _, status in kept(tmp_path).files())
    store = kept(tmp_path, 2.5 * size, name=OTHER)
    for age, (file, _) in enumerate(sorted(store.files())):
        os.utime(file, (1000 + age, 1000 + age))
    assert store.read(NAME, KEYS, blank()) == []  # the older one, used again
    kept(tmp_path, 2.5 * size, name="2" * 16)
    assert {file.parent.name for file, _ in store.files()} == {NAME, "2" * 16}
    kept(tmp_path, 5 * (48 + 4) - 1, name="3" * 16)
    assert {file.parent.name for file, _ in store.files()} == {NAME, "2" * 16}


@pytest.mark.parametrize("place", ["start", "middle", "end", "empty"])
def test_a_damaged_file_is_told_once_and_removed(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = kept(tmp_path)
    [(file, _)] = store.files()
    content = bytearray(file.read_bytes())
    at = {"start": 9, "middle": len(content) - 100, "end": len(content) - 1, "empty": 0}[place]
    content[at] ^= 1
    file.write_bytes(b"" if place == "empty" else content)
    assert store.read(NAME, KEYS, blank()) == [0, 1, 2, 3, 4]
    assert not file.exists()
    assert store.read(NAME, KEYS, blank()) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err.count(file.name) == 1


def test_clear_removes_all_of_it_and_what_a_killed_one_left(tmp_path: Path) -> None:
    store = kept(tmp_path)
    left = tmp_path / ".activations.01234567"
    left.mkdir()
    (tmp_path / "beside").touch()
    assert store.clear() > 5 * (48 + 4)
    assert [path.name for path in tmp_path.iterdir()] == ["beside"]
    assert store.clear() == 0
    assert (kept(tmp_path).read(NAME, KEYS, blank()), store.contents()[0]["images"]) == ([], 5)


@pytest.mark.parametrize("foreign", ["no tag", "a file", "a link", "a linked folder"])
def test_what_is_not_ours_is_neither_written_to_nor_removed(foreign: str, tmp_path: Path) -> None:
    store, photo = kept(tmp_path), tmp_path / "activations" / NAME / "photo.jpg"
    if foreign == "a file":
        photo.touch()
    elif foreign == "no tag":
        (store.folder / TAG).unlink()
        (store.folder / "photos").mkdir()
    elif foreign == "a link":
        photo.with_name("4" * 16).symlink_to(tmp_path)
    else:
        store.folder.rename(tmp_path / "real")
        store.folder.symlink_to(tmp_path / "real")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="nothing was removed"):
        store.clear()
    assert sorted(tmp_path.rglob("*")) == before
    if foreign in ("no tag", "a linked folder"):
        kept(tmp_path, name=OTHER)
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_nobody_else_can_read_it(tmp_path: Path) -> None:
    assert kept(tmp_path).folder.stat().st_mode & 0o077 == 0


def test_somebody_who_clears_up_meanwhile_ends_nobodys_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, write = kept(tmp_path), module._write

    def cleared(*given: Any) -> None:
        store.clear()
        write(*given)

    monkeypatch.setattr(module, "_write", cleared)
    kept(tmp_path)  # into a folder that is no longer there
    monkeypatch.undo()
    assert kept(tmp_path, name=OTHER).read(OTHER, KEYS, blank()) == []
    assert store.folder.stat().st_mode & 0o077 == 0
    assert store.clear() > 0


def test_a_full_disk_ends_nobodys_run(tmp_path: Path) -> None:
    store = kept(tmp_path)
    (store.folder / OTHER).touch()  # where a folder should be
    kept(tmp_path, name=OTHER)
    assert store.read(OTHER, KEYS, blank()) == [0, 1, 2, 3, 4]
