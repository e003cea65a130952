"""Hugging Face's ImageFolder with metadata, in miniature."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rmadapter.data.formats.base import ReadOptions
from rmadapter.data.formats.imagefolder import metadata, read_imagefolder
from rmadapter.errors import UserError
from tests.helpers.small_images import paths_and_labels

ROWS = [("cat_1.png", "cat"), ("dog_1.png", "dog")]


def table(folder: Path, suffix: str, rows: list[tuple[str, str]] = ROWS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"metadata{suffix}"
    if suffix == ".jsonl":
        lines = [json.dumps({"file_name": name, "label": label}) for name, label in rows]
        file.write_text("\n".join(lines))
    elif suffix == ".csv":
        file.write_text("file_name,label\n" + "".join(f"{name},{label}\n" for name, label in rows))
    else:
        pa = pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
        from pyarrow import parquet

        names, labels = zip(*rows, strict=True)
        parquet.write_table(pa.table({"file_name": names, "label": labels}), file)
    return file


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_table_in_the_folder(tmp_path: Path, suffix: str) -> None:
    file = table(tmp_path, suffix)
    assert metadata(tmp_path) == {"": file}
    assert paths_and_labels(read_imagefolder({"": file}, ReadOptions()), tmp_path) == {"all": ROWS}


def test_a_table_in_each_split(tmp_path: Path) -> None:
    test = table(tmp_path / "test", ".jsonl", ROWS[:1])
    tables = {"train": table(tmp_path / "train", ".csv"), "test": test}
    assert metadata(tmp_path) == tables
    found = paths_and_labels(read_imagefolder(tables, ReadOptions()), tmp_path)
    expected = {"train": [(f"train/{n}", x) for n, x in ROWS], "test": [("test/cat_1.png", "cat")]}
    assert found == expected


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    for name in ("train", "val", "Validation"):
        table(tmp_path / name, ".csv")
    with pytest.raises(UserError, match="is a second folder for the split 'val'"):
        metadata(tmp_path)


def test_folders_in_a_table_may_be_splits(tmp_path: Path) -> None:
    rows = [("Train/a.png", "cat"), ("Train/x/c.png", "dog"), ("validation/b.png", "cat")]
    file = table(tmp_path, ".csv", rows)
    found = paths_and_labels(read_imagefolder({"": file}, ReadOptions()), tmp_path)
    assert found == {"train": rows[:2], "val": rows[2:]}
    table(tmp_path, ".csv", [("train/a.png", "cat"), ("b.png", "cat")])
    with pytest.raises(UserError, match="1 of its images are in no split folder"):
        read_imagefolder({"": file}, ReadOptions())


def test_folders_at_any_depth_may_be_splits(tmp_path: Path) -> None:
    """As `datasets` reads them; the user may say that none is a split."""
    rows = [("imgs/train/a.png", "cat"), ("imgs/train/x/c.png", "dog"), ("imgs/Test/b.png", "cat")]
    file = table(tmp_path, ".csv", rows)
    found = paths_and_labels(read_imagefolder({"": file}, ReadOptions()), tmp_path)
    assert found == {"train": rows[:2], "test": rows[2:]}
    whole = read_imagefolder({"": file}, ReadOptions(columns={"split": "none"}))
    assert paths_and_labels(whole, tmp_path) == {"all": rows}
    file = table(tmp_path, ".csv", [("train/x/Testing/a.png", "cat")])
    with pytest.raises(UserError, match="of train and test"):
        read_imagefolder({"": file}, ReadOptions())


def test_other_columns_may_be_named(tmp_path: Path) -> None:
    text = "image,file_name,species,part\nfirst look,a.png,cat,test\n"
    (tmp_path / "metadata.csv").write_text(text)
    tables = metadata(tmp_path)
    with pytest.raises(UserError, match="is called label"):
        read_imagefolder(tables, ReadOptions())
    found = read_imagefolder(
        tables, ReadOptions(columns={"image": "", "label": "species", "split": "part"})
    )
    assert paths_and_labels(found, tmp_path) == {"test": [("a.png", "cat")]}
    with pytest.raises(UserError, match="lists images of the split 'test'"):
        read_imagefolder(
            {"train": tables[""]}, ReadOptions(columns={"label": "species", "split": "part"})
        )
    (tmp_path / "metadata.csv").write_text("camera,lens\na,b\n")
    assert metadata(tmp_path) == {}


def test_images_outside_must_be_allowed(tmp_path: Path) -> None:
    file = table(tmp_path / "set", ".csv", [("../a.png", "cat")])
    with pytest.raises(UserError, match="lies outside"):
        read_imagefolder({"": file}, ReadOptions())
    assert [*read_imagefolder({"": file}, ReadOptions(outside=True))] == ["all"]
