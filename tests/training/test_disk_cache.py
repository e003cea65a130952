"""The store of activations: reading, writing, its limit, and foreign files."""

from __future__ import annotations

import os
import time
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


def filled(folder: Path, limit: float = 1e6, rows: range = range(5), name: str = NAME) -> Store:
    """Return a store with these rows of `ROWS` under the name."""
    store = Store(folder / "activations", limit)
    store.write(name, f"things {name[0]}", KEYS, ROWS, rows)
    return store


def test_rows_come_back_by_their_keys_from_several_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", 2 * (48 + 4))
    store = filled(tmp_path, rows=range(3))
    assert len(list(store.files())) == 2
    found = blank(4)
    assert store.read(NAME, [KEYS[2], KEYS[4], KEYS[0], KEYS[2]], found) == [1]
    for name, tensor in ROWS.items():
        assert torch.equal(found[name][[0, 2, 3]], tensor[[2, 0, 2]])
        assert not found[name][1].any()
    assert store.read(OTHER, KEYS, blank()) == [0, 1, 2, 3, 4]
    assert [(one["what"], one["images"]) for one in store.contents()] == [("things 0", 3)]


def test_rows_of_another_shape_or_format_are_not_read(tmp_path: Path) -> None:
    store = filled(tmp_path)
    assert store.read(NAME, KEYS, {**blank(), "x": torch.zeros(5, 3, 5)}) == [0, 1, 2, 3, 4]
    assert store.read(NAME, KEYS, {**blank(), "y": torch.zeros(5, 2)}) == [0, 1, 2, 3, 4]
    assert store.read(NAME, KEYS, blank()) == []


def test_the_limit_drops_the_least_recently_used_and_skips_larger_writes(tmp_path: Path) -> None:
    size = sum(status.st_size for _, status in filled(tmp_path).files())
    store = filled(tmp_path, 2.5 * size, name=OTHER)
    for age, (file, _) in enumerate(sorted(store.files())):
        os.utime(file, (1000 + age, 1000 + age))
    assert store.read(NAME, KEYS, blank()) == []  # the older one, used again
    filled(tmp_path, 2.5 * size, name="2" * 16)
    assert {file.parent.name for file, _ in store.files()} == {NAME, "2" * 16}
    filled(tmp_path, 5 * (48 + 4) - 1, name="3" * 16)
    assert {file.parent.name for file, _ in store.files()} == {NAME, "2" * 16}
    assert {path.name for path in store.folder.iterdir()} == {NAME, "2" * 16, TAG}


def test_new_files_outlive_those_of_before_the_clock_was_set_back(tmp_path: Path) -> None:
    size = sum(status.st_size for _, status in filled(tmp_path).files())
    tomorrow = time.time() + 86_400
    for file, _ in filled(tmp_path, 2.5 * size, name=OTHER).files():
        os.utime(file, (tomorrow, tomorrow))
    for name in ("2" * 16, "3" * 16):
        store = filled(tmp_path, 2.5 * size, name=name)
    assert {file.parent.name for file, _ in store.files()} == {"2" * 16, "3" * 16}


@pytest.mark.parametrize("place", ["start", "middle", "end", "empty"])
def test_a_damaged_file_is_reported_once_and_removed(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = filled(tmp_path)
    [(file, _)] = store.files()
    content = bytearray(file.read_bytes())
    at = {"start": 9, "middle": len(content) - 100, "end": len(content) - 1, "empty": 0}[place]
    content[at] ^= 1
    file.write_bytes(b"" if place == "empty" else content)
    assert store.read(NAME, KEYS, blank()) == [0, 1, 2, 3, 4]
    assert not file.exists()
    assert store.read(NAME, KEYS, blank()) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err.count(file.name) == 1


def test_clear_removes_everything_including_leftovers_of_killed_processes(tmp_path: Path) -> None:
    store = filled(tmp_path)
    left = tmp_path / ".activations.01234567"
    left.mkdir()
    (tmp_path / "beside").touch()
    assert store.clear() > 5 * (48 + 4)
    assert [path.name for path in tmp_path.iterdir()] == ["beside"]
    assert store.clear() == 0
    assert (filled(tmp_path).read(NAME, KEYS, blank()), store.contents()[0]["images"]) == ([], 5)


@pytest.mark.parametrize("foreign", ["no tag", "a file", "a link", "a linked folder"])
def test_a_foreign_folder_or_file_is_never_touched(foreign: str, tmp_path: Path) -> None:
    store, photo = filled(tmp_path), tmp_path / "activations" / NAME / "photo.jpg"
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
        filled(tmp_path, name=OTHER)
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_the_folder_is_private(tmp_path: Path) -> None:
    assert filled(tmp_path).folder.stat().st_mode & 0o077 == 0


def test_clearing_while_another_process_writes_is_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, write = filled(tmp_path), module._write

    def cleared(*given: Any) -> None:
        store.clear()
        write(*given)

    monkeypatch.setattr(module, "_write", cleared)
    filled(tmp_path)  # into a folder that is no longer there
    monkeypatch.undo()
    assert filled(tmp_path, name=OTHER).read(OTHER, KEYS, blank()) == []
    assert store.folder.stat().st_mode & 0o077 == 0
    assert store.clear() > 0


def test_failed_writes_are_harmless(tmp_path: Path) -> None:
    store = filled(tmp_path)
    (store.folder / OTHER).touch()  # where a folder should be
    filled(tmp_path, name=OTHER)
    assert store.read(OTHER, KEYS, blank()) == [0, 1, 2, 3, 4]
