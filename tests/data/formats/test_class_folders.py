"""Folders of classes and splits become rows of class and path, before any file is opened."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rmadapter.data.formats.base import ReadOptions
from rmadapter.data.formats.class_folders import read
from rmadapter.errors import UserError


def write(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"not opened")
    return root


def labels(root: Path) -> list[str]:
    [(split, rows)] = read(root, ReadOptions()).splits.items()
    assert split == "all"
    return [row.label for row in rows]


def test_images_are_listed_by_class_and_hidden_or_system_folders_are_not(tmp_path: Path) -> None:
    write(tmp_path, "b/2.png", "b/1.JPG", "A/deep/er/3.png", "A/notes.txt", "A/@eaDir/1.png")
    write(tmp_path, ".cache/x.png", "__MACOSX/y.png", "@eaDir/2.png")
    write(tmp_path, "System Volume Information/3.png")
    write(tmp_path, ".net/1.png", ".net/2.png", ".net/.3.png", ".git/index")
    listing = read(tmp_path, ReadOptions())
    rows = [(row.label, row.image) for row in listing.splits["all"]]
    assert listing.ignored == {".txt": 1, "images in hidden folders": 3}
    expected = [("A", "A/deep/er/3.png"), ("b", "b/1.JPG"), ("b", "b/2.png")]
    assert rows == [(label, tmp_path / name) for label, name in expected]


@pytest.mark.parametrize("names", ["Train valid TEST", "Training Validation Testing", "train val"])
def test_split_folders_may_have_any_usual_name(tmp_path: Path, names: str) -> None:
    write(tmp_path, *(f"{name}/a/1.png" for name in names.split()))
    assert (
        list(read(tmp_path, ReadOptions()).splits) == ["train", "val", "test"][: len(names.split())]
    )


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ("train/1.png bus/2.png", ["bus", "train"]),
        ("crash_test/1.png freight_train/1.png", ["crash_test", "freight_train"]),
        ("crash_test/a/1.png bus/1.png train_set/a/2.png", ["bus", "crash_test", "train_set"]),
        ("crash_test/a/1.png bus/a/1.png", ["bus", "crash_test"]),
        (
            "bus/train/1.png bus/front/1.png car/test/1.png car/side/2.png",
            ["bus"] * 2 + ["car"] * 2,
        ),
    ],
)
def test_a_class_may_be_named_like_a_split(tmp_path: Path, files: str, expected: Any) -> None:
    assert labels(write(tmp_path, *files.split())) == expected


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ("1.png", "holds no class folders"),
        ("train/1.png test/1.png", "test: holds no class folders"),
        ("photo/train/a/1.png photo/test/a/1.png", "photo: holds splits"),
        ("val/a/1.png valid/a/1.png", "'valid' is a second folder for the split 'val'"),
        ("train/cat/1.png test/cat/2.png dog/3.png", "'test' beside 'dog'"),
        ("train/cat/1.png vall/cat/2.png", r"'train' beside 'vall' \(did you mean 'val'\?\)"),
        ("photo/train/1.png photo/test/2.png photo/masks/3.png", "photo: holds splits"),
        ("seg_train/a/1.png seg_test/a/2.png", "'seg_train' and 'seg_test' seem to be splits"),
        ("seg_train/a/1.png seg_test/a/2.png seg_pred/x/3.png", "'seg_train' and 'seg_test'"),
        ("seg_train/a/1.png seg_test/a/2.png seg_pred/3.png", "'seg_train' and 'seg_test'"),
        ("trainset/a/1.png testset/a/2.png", "'trainset' and 'testset' seem to be splits"),
    ],
)
def test_ambiguous_folders_are_refused(tmp_path: Path, files: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read(write(tmp_path, *files.split()), ReadOptions())


def test_a_run_folder_is_no_class(tmp_path: Path) -> None:
    """After `fit DATA --out DATA/run`, and after `fit .`, the data can be read again."""
    write(tmp_path, "cat/1.png", "dog/2.png", "train/3.png")
    for folder, name in (("run", "run.json"), ("stopped", "split.json"), ("train", "run.json")):
        write(tmp_path, f"{folder}/{name}")
    assert labels(tmp_path) == ["cat", "dog", "train"]  # which has an image
    write(tmp_path, "runs/cat-1/run.json", "runs/cat-2/split.json")
    assert labels(tmp_path) == ["cat", "dog", "train"]
    write(tmp_path, "runs/of a river/1.png")
    assert labels(tmp_path) == ["cat", "dog", "runs", "train"]


def test_links_to_other_classes_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "across").symlink_to(tmp_path / "b")
    assert labels(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("closed", ["", "cat", "cat/sub"])
def test_an_unreadable_folder_is_named(
    tmp_path: Path, closed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system is replaced, since root may read everything."""
    write(tmp_path, "cat/1.png", "cat/sub/2.png", "dog/3.png")
    barred = str(tmp_path / closed)

    def refuse(function: Callable[[Any], Any], path: Any) -> Any:
        if os.fspath(path) == barred:
            raise PermissionError(13, "Permission denied", barred)
        return function(path)

    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, partial(refuse, getattr(os, name)))
    iterdir = Path.iterdir  # which has a listdir of its own in Python 3.10
    monkeypatch.setattr(Path, "iterdir", lambda path: refuse(iterdir, path))
    with pytest.raises(UserError, match=f"^{barred}: cannot be read .Permission denied.$"):
        read(tmp_path, ReadOptions())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux has these folders")
def test_folders_of_the_system_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/proc/self")
    for path in (Path("/proc/self"), Path("/dev"), tmp_path / "link"):
        with pytest.raises(UserError, match="a system folder, which holds no images"):
            read(path, ReadOptions())


@pytest.mark.parametrize(
    ("root", "around"),
    [("photos/dog", "photos"), ("split/train/dog", "split"), ("photos/horse", "photos")],
)
def test_a_class_instead_of_its_parent_is_refused_with_the_parent(
    tmp_path: Path, root: str, around: str
) -> None:
    write(tmp_path, "photos/dog/1.png", "photos/dog/2024/2.png", "photos/cat/summer/3.png")
    write(tmp_path, "photos/horse/1.png", "split/train/dog/1.png", "split/train/cat/1.png")
    with pytest.raises(UserError, match="did you mean") as refusal:
        read(tmp_path / root, ReadOptions())
    assert repr(str(tmp_path / around)) in str(refusal.value)


def test_images_beside_a_data_set_are_no_class_of_it(tmp_path: Path) -> None:
    write(tmp_path, "inbox/1.png", "photos/cat/1.png", "photos/dog/1.png")
    with pytest.raises(UserError, match="holds no class folders") as refusal:
        read(tmp_path / "inbox", ReadOptions())
    assert "did you mean" not in str(refusal.value)


def test_one_class_folder_is_read_where_nothing_says_that_it_is_a_class(tmp_path: Path) -> None:
    write(tmp_path, "new/elephant/1.png", "new/cover.png")  # no other images around it
    assert labels(tmp_path / "new") == ["elephant"]
