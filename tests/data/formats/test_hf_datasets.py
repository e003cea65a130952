"""Data sets of the library `datasets`: in memory, and as save_to_disk writes them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from rmadapter.data.formats.base import ReadOptions
from rmadapter.data.formats.hf_datasets import (
    detects,
    hub_parquets,
    is_dataset,
    is_saved,
    list_images,
    read,
    read_dataset,
)
from rmadapter.data.formats.registry import find_images
from rmadapter.errors import UserError
from tests.helpers.small_images import picture, write_images


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "cache"))
    return pytest.importorskip("datasets", reason="the extra `data` is not installed")


def pets(library: Any, labels: tuple[int | None, ...] = (0, 1, 1), **more: Any) -> Any:
    images = [picture("cat"), *(picture("dog", i) for i in range(len(labels) - 1))]
    kinds = {"image": library.Image(), "label": library.ClassLabel(names=["house_cat", "dog"])}
    values = {"image": images, "label": [*labels], **more}
    return library.Dataset.from_dict(
        values, features=library.Features({**kinds, **{k: library.Value("string") for k in more}})
    )


def labels(rows: Any) -> list[str]:
    return [row.label for row in rows]


def test_a_dataset_in_memory_becomes_files_with_the_same_pixels(library: Any) -> None:
    from PIL import Image

    source = read_dataset(pets(library))
    assert labels(source.splits["all"]) == ["house_cat", "dog", "dog"]
    with Image.open(source.splits["all"][2].image) as image:
        assert image.getpixel((0, 0)) == picture("dog", 1).getpixel((0, 0))
    assert source.splits["all"][0].image.is_relative_to(source.root)


def test_a_saved_folder_of_splits(library: Any, tmp_path: Path) -> None:
    library.DatasetDict({"train": pets(library), "validation": pets(library, (0, 1))}).save_to_disk(
        tmp_path / "pets"
    )
    assert is_saved(tmp_path / "pets")
    source = read(tmp_path / "pets", ReadOptions())
    assert {split: labels(rows) for split, rows in source.splits.items()} == {
        "train": ["house_cat", "dog", "dog"], "val": ["house_cat", "dog"],
    }  # fmt: skip


def test_a_saved_folder_without_splits_or_some_labels(library: Any, tmp_path: Path) -> None:
    pets(library, (0, -1, None)).save_to_disk(tmp_path / "pets")
    assert is_saved(tmp_path / "pets")
    source = read(tmp_path / "pets", ReadOptions())
    assert labels(source.splits["all"]) == ["house_cat"]
    assert source.ignored == {"images without a label": 2}


def test_images_that_are_files(library: Any, tmp_path: Path) -> None:
    write_images(tmp_path, "cat_1.png", "dog_1.png")
    data = library.Dataset.from_dict(
        {"photo": [str(tmp_path / "cat_1.png"), str(tmp_path / "dog_1.png")], "kind": [3, 4]}
    )
    data = data.cast_column("photo", library.Image())
    rows = read_dataset(data, {"label": "kind"}).splits["all"]
    expected = [("3", tmp_path / "cat_1.png"), ("4", tmp_path / "dog_1.png")]
    assert [(row.label, row.image) for row in rows] == expected


def test_a_saved_folder_may_not_name_files_elsewhere(library: Any, tmp_path: Path) -> None:
    import pyarrow as pa

    kinds = library.Features({"image": library.Image(), "label": library.Value("string")})
    image = pa.array([{"bytes": None, "path": "/etc/hostname"}], type=library.Image().pa_type)
    table = pa.table({"image": image, "label": pa.array(["cat"])})
    pets(library, (0,)).cast_column("label", library.Value("string")).save_to_disk(tmp_path / "x")
    (file,) = (tmp_path / "x").glob("*.arrow")  # save_to_disk itself packs the files
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, kinds.arrow_schema) as writer:
        writer.write_table(table.cast(kinds.arrow_schema))
    assert read(tmp_path / "x", ReadOptions(outside=True)).splits["all"][0].image == Path(
        "/etc/hostname"
    )
    with pytest.raises(UserError, match="row 0: '/etc/hostname' lies outside"):
        read(tmp_path / "x", ReadOptions())


def test_all_images_with_a_label_and_without(library: Any, tmp_path: Path) -> None:
    """In splits of any name, as where a test split on the hub has no labels."""
    bare = pets(library, (0, 1, 1)).remove_columns("label")
    library.DatasetDict({"train": pets(library, (0,)), "unseen": bare}).save_to_disk(
        tmp_path / "pets"
    )
    found = list_images(tmp_path / "pets", ReadOptions()).files
    assert len(found) == 4, "row by row, the cat of both splits too"
    assert found == find_images([str(tmp_path / "pets")]).files
    (tmp_path / "hub").mkdir()
    pets(library, (-1, None)).to_parquet(tmp_path / "hub/test-00000-of-00001.parquet")
    for path in (tmp_path / "hub", tmp_path / "hub/test-00000-of-00001.parquet"):
        again = list_images(path, ReadOptions()).files
        assert [file.read_bytes() for file in again] == [file.read_bytes() for file in found[1:3]]
        assert find_images([str(path)], column="image").files == again
    with pytest.raises(UserError, match=r"none of its columns .* is called 'photo'"):
        list_images(tmp_path / "pets", ReadOptions(columns={"image": "photo"}))


def test_parquet_files_of_the_hub(library: Any, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name, found in {
        "train-00000-of-00002": (0, 1),
        "train-00001-of-00002": (1,),
        "test-00000-of-00001": (0,),
    }.items():
        pets(library, found).to_parquet(tmp_path / "data" / f"{name}.parquet")
    (tmp_path / "data" / "broken.parquet").write_bytes(b"PAR1")
    files = hub_parquets(tmp_path)
    assert {split: len(some) for split, some in files.items()} == {"test": 1, "train": 2}
    splits = read(tmp_path, ReadOptions()).splits
    assert {split: labels(rows) for split, rows in splits.items()} == {
        "train": ["house_cat", "dog", "dog"], "test": ["house_cat"],
    }  # fmt: skip
    assert detects(tmp_path)
    assert detects(files["test"][0])
    assert not detects(tmp_path / "data" / "broken.parquet")


def test_a_parquet_table_of_paths_is_none_of_the_hub(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"path": ["a.png"], "label": ["cat"]}), tmp_path / "t.parquet")
    assert not detects(tmp_path / "t.parquet")
    assert not detects(tmp_path)
    assert not detects(tmp_path / "gone.parquet")


def test_columns_of_splits_and_groups(library: Any) -> None:
    data = pets(library, (0, 1), split=["train", "test"], group=["p1", None])
    splits = read_dataset(data).splits
    assert {split: [(row.label, row.group) for row in rows] for split, rows in splits.items()} == {
        "train": [("house_cat", "p1")], "test": [("dog", "")],
    }  # fmt: skip


@pytest.mark.parametrize("column", ["label", "labels"])
def test_a_list_of_one_label_is_a_label_and_of_more_is_refused(library: Any, column: str) -> None:
    classes = library.Sequence(library.ClassLabel(names=["house_cat", "dog"]))
    named = library.Features({"image": library.Image(), column: classes})
    images = [picture("cat"), picture("dog"), picture("dog", 1)]

    def both(numbers: list[list[int]]) -> list[Any]:
        words = [[("house_cat", "dog")[number] for number in row] for row in numbers]
        plain = library.Dataset.from_dict({"image": images, column: words})
        return [
            library.Dataset.from_dict({"image": images, column: numbers}, features=named),
            plain.cast_column("image", library.Image()),
        ]

    for found in both([[0], [1, 1], []]):
        source = read_dataset(found)
        assert labels(source.splits["all"]) == ["house_cat", "dog"]
        assert source.ignored.total() == 1
    for found in both([[0], [1, 0], []]):
        with pytest.raises(UserError, match=r"row 1: .*'dog'.*'house_cat'"):
            read_dataset(found)


def test_minus_one_is_unknown_only_where_classes_are_numbered(library: Any) -> None:
    numbers = library.Dataset.from_dict(
        {"image": [picture("cat"), picture("dog")], "label": [-1, 1]}
    )
    assert labels(read_dataset(numbers.cast_column("image", library.Image())).splits["all"]) == [
        "-1",
        "1",
    ]
    assert labels(read_dataset(pets(library, (-1, 1))).splits["all"]) == ["dog"]


def test_missing_parts_are_named(library: Any) -> None:
    with pytest.raises(UserError, match="has a split 'dev': call it train, val or test"):
        read_dataset({"dev": pets(library)})
    with pytest.raises(UserError, match=r"none of its columns \(image\) is called label"):
        read_dataset(pets(library).remove_columns("label"))
    with pytest.raises(UserError, match="'label' holds no images"):
        read_dataset(pets(library), {"image": "label"})
    with pytest.raises(UserError, match="no labelled images"):
        read_dataset(pets(library, (None,)))
    with pytest.raises(UserError, match="has a split 'dev'"):
        read_dataset(pets(library, (0,), split=["dev"]))


def test_a_broken_folder(library: Any, tmp_path: Path) -> None:
    pets(library).save_to_disk(tmp_path / "pets")
    for file in (tmp_path / "pets").glob("*.arrow"):
        file.write_bytes(b"no arrow")
    with pytest.raises(UserError, match="not a readable save_to_disk folder"):
        read(tmp_path / "pets", ReadOptions())


def test_the_extra_is_named_if_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "dataset_dict.json").write_text("{}")
    with pytest.raises(UserError, match=r"pip install 'rmadapter\[data\]'"):
        read(tmp_path, ReadOptions())


def test_is_dataset(library: Any, tmp_path: Path) -> None:
    assert is_dataset(pets(library))
    assert is_dataset(library.DatasetDict({"train": pets(library)}))
    assert not is_dataset({})
    assert not is_dataset([1])
    assert not is_saved(tmp_path)
