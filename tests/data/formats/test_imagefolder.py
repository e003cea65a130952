"""Hugging Face's ImageFolder with metadata, in miniature."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rmadapter.data.formats.imagefolder import metadata, read_imagefolder
from rmadapter.data.read import read_images
from rmadapter.errors import UserError
from tests.helpers.small_images import paths_and_labels, write_images

ROWS = [("cat_1.png", "cat"), ("dog_1.png", "dog")]


def table(folder: Path, suffix: str, rows: list[tuple[str, str]] = ROWS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"metadata{suffix}"
    if suffix == ".jsonl":
        file.write_text(
            "".join(json.dumps({"file_name": name, "label": label}) + "\n" for name, label in rows)
        )
    elif suffix == ".csv":
        file.write_text("file_name,label\n" + "".join(f"{name},{label}\n" for name, label in rows))
    else:
        pa = pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
        from pyarrow import parquet

        parquet.write_table(
            pa.table({"file_name": [r[0] for r in rows], "label": [r[1] for r in rows]}), file
        )
    return file


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_one_table(tmp_path: Path, suffix: str) -> None:
    file = table(tmp_path, suffix)
    assert metadata(tmp_path) == {"": file}
    assert paths_and_labels(read_imagefolder({"": file}), tmp_path) == {"all": ROWS}


def test_a_table_in_each_split(tmp_path: Path) -> None:
    tables = {
        "train": table(tmp_path / "train", ".csv"),
        "test": table(tmp_path / "test", ".jsonl", ROWS[:1]),
    }
    assert metadata(tmp_path) == tables
    found = paths_and_labels(read_imagefolder(tables), tmp_path)
    expected = {"train": [(f"train/{n}", x) for n, x in ROWS], "test": [("test/cat_1.png", "cat")]}
    assert found == expected


def test_a_row_that_is_listed_again_is_read_once(tmp_path: Path) -> None:
    table(write_images(tmp_path, *dict(ROWS)), ".csv", [*ROWS, *ROWS])
    found = read_images(tmp_path)["all"]
    assert len(found) == len(ROWS)
    assert found.ignored.endswith(f"images listed again {len(ROWS)}")


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    for name in ("train", "val", "Validation"):
        (tmp_path / name).mkdir()
        table(tmp_path / name, ".csv")
    with pytest.raises(UserError, match="is a second folder for the split 'val': merge the two"):
        metadata(tmp_path)


def test_one_table_of_folders_that_are_splits(tmp_path: Path) -> None:
    file = table(
        tmp_path,
        ".csv",
        [("Train/a.png", "cat"), ("validation/b.png", "cat"), ("Train/x/c.png", "dog")],
    )
    found = paths_and_labels(read_imagefolder({"": file}), tmp_path)
    assert found == {
        "train": [("Train/a.png", "cat"), ("Train/x/c.png", "dog")],
        "val": [("validation/b.png", "cat")],
    }
    table(tmp_path, ".csv", [("train/a.png", "cat"), ("b.png", "cat")])
    with pytest.raises(UserError, match="1 of its images are in no split folder"):
        read_imagefolder({"": file})


def test_other_columns(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text(
        "image,file_name,species,part\nfirst look,a.png,cat,test\n"
    )
    tables = metadata(tmp_path)
    with pytest.raises(UserError, match="is called label"):
        read_imagefolder(tables)
    found = read_imagefolder(tables, columns={"image": "", "label": "species", "split": "part"})
    assert paths_and_labels(found, tmp_path) == {"test": [("a.png", "cat")]}
    with pytest.raises(UserError, match="lists images of the split 'test'"):
        read_imagefolder({"train": tables[""]}, columns={"label": "species", "split": "part"})


def test_other_tables_are_no_metadata(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("camera,lens\na,b\n")
    assert metadata(tmp_path) == {}


def test_paths_outside_the_folder_are_refused(tmp_path: Path) -> None:
    file = table(tmp_path / "set", ".csv", [("../a.png", "cat")])
    with pytest.raises(UserError, match="lies outside"):
        read_imagefolder({"": file})
    assert [*read_imagefolder({"": file}, outside=True)] == ["all"]
