"""The user's cache folder: sizes by kind, and what clearing removes and keeps."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from filelock import FileLock

from rmadapter.support.cache import KINDS, clear, usage

FILES = {
    "activations": "activations/0123456789abcdef/0123456789abcdef.safetensors",
    "backbones": f"backbones/{'0a' * 16}.json",
    "crops": f"crops/ab/cat-{'ab' * 12}.png",
    "datasets": "datasets/parquet/default-0123456789abcdef/0.0.0/x.arrow",
    "images": f"images/ab/{'ab' * 12}-cat.png",
    "pocket": "pocket-0123456789ab/open_clip_config.json",
    "serve": f"serve/{'0a' * 16}/model.onnx",
    "unpacked": "unpacked/pets-0123456789abcdef/cat/1.png",
    "web": "onnxruntime-web-1.2.3.tgz",
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with a file of 1,000 bytes of each kind, and files that are not the cache's."""
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "cache"))
    others = ["images/photo.png", "images/ab2/photo.png", "images/cd/photo.png", "unpacked/a.txt"]
    others += ["pocket-money/a.txt", "datasets/pets/a.png", "a.txt"]
    for name in [*FILES.values(), *others]:
        file = tmp_path / "cache" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(1000))
    return tmp_path / "cache"


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_counted_and_cleared(cache: Path, kind: str) -> None:
    file = cache / FILES[kind]
    os.utime(file, (1e9, 2e9))
    found = usage(kind)
    assert (found.files, found.bytes, found.used) == (1, 1000, 2e9)
    before = files(cache)
    assert clear(kind) == []
    assert files(cache) == before - {FILES[kind]}
    assert usage(kind).bytes == 0


def test_a_folder_that_is_being_built_stays(cache: Path) -> None:
    stage = cache / "unpacked/.birds-0123456789abcdef.part"
    stage.mkdir()
    (stage / "a.png").write_bytes(bytes(10))
    lock = FileLock(stage.with_name(f"{stage.name}.lock"))
    with lock:
        assert clear("unpacked") == [stage]
        assert (stage / "a.png").exists()
        assert not (cache / FILES["unpacked"]).exists()
    assert clear("unpacked") == []
    assert not stage.exists()


def test_a_folder_with_a_held_lock_or_a_new_part_stays(cache: Path) -> None:
    table = cache / "datasets/parquet/default-0123456789abcdef"
    with FileLock(table / "x.lock"):
        assert clear("datasets") == [table]
    part = cache / "images/ab/.cat.0123abcd.part"
    part.write_bytes(b"x")
    assert clear("images") == [cache / "images/ab"]
    now = time.time()
    os.utime(part, (now, now + 60))  # as by the clock of another machine
    assert clear("images") == [cache / "images/ab"]
    os.utime(part, (1e9, 1e9))
    assert clear("images") == []
    assert not part.exists()


def test_a_part_of_before_the_clock_was_set_back_is_removed(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = cache / "images/ab/.cat.0123abcd.part"
    part.write_bytes(b"x")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 86_400)
    assert clear("images") == []
    assert not part.exists()


def test_links_are_not_followed(cache: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside/pets-0123456789abcdef"
    outside.mkdir(parents=True)
    (outside / "a.png").write_bytes(b"x")
    (cache / "unpacked/dogs-0123456789abcdef").symlink_to(outside)
    (cache / FILES["unpacked"]).with_name("2.png").symlink_to(outside / "a.png")
    (cache / "serve").rename(cache / "elsewhere")
    (cache / "serve").symlink_to(cache / "elsewhere")
    for kind in KINDS:
        assert clear(kind) == []
    assert (outside / "a.png").exists()
    assert files(cache / "elsewhere")


def test_a_missing_cache_folder_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "none"))
    for kind in KINDS:
        assert usage(kind).bytes == 0
        assert clear(kind) == []
    assert not list(tmp_path.iterdir())
