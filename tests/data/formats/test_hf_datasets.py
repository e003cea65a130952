"""Data sets of the library `datasets`: in memory, as save_to_disk writes them, and as parquet."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rmadapter.data.formats.base import ReadOptions, Row
from rmadapter.data.formats.hf_datasets import (
    detects,
    hub_parquets,
    is_dataset,
    list_images,
    read,
    read_dataset,
    store_image,
)
from rmadapter.errors import UserError
from tests.helpers.small_images import picture, png, write_images


@pytest.fixture
def library() -> Any:
    return pytest.importorskip("datasets", reason="the extra `data` is not installed")


def pets(library: Any, labels: tuple[int | None, ...] = (0, 1, 1), **more: Any) -> Any:
    images = [picture("cat"), *(picture("dog", i) for i in range(len(labels) - 1))]
    kinds = {"image": library.Image(), "label": library.ClassLabel(names=["house_cat", "dog"])}
    kinds.update({name: library.Value("string") for name in more})
    values = {"image": images, "label": [*labels], **more}
    return library.Dataset.from_dict(values, features=library.Features(kinds))


def plain(library: Any, **columns: Any) -> Any:
    """Data without ClassLabel."""
    return library.Dataset.from_dict(columns).cast_column("image", library.Image())


def labels(rows: list[Row]) -> list[str]:
    return [row.label for row in rows]


def split_labels(path: Path) -> dict[str, list[str]]:
    return {split: labels(rows) for split, rows in read(path, ReadOptions()).splits.items()}


def test_a_dataset_in_memory_becomes_files_with_the_same_pixels(library: Any) -> None:
    source = read_dataset(pets(library))
    rows = source.splits["all"]
    assert labels(rows) == ["house_cat", "dog", "dog"]
    with Image.open(rows[2].image) as image:
        assert image.getpixel((0, 0)) == picture("dog", 1).getpixel((0, 0))
    assert rows[0].image.is_relative_to(source.root)


def test_a_saved_folder_of_splits(library: Any, tmp_path: Path) -> None:
    splits = {"train": pets(library), "validation": pets(library, (0, 1))}
    library.DatasetDict(splits).save_to_disk(tmp_path)
    assert detects(tmp_path)
    expected = {"train": ["house_cat", "dog", "dog"], "val": ["house_cat", "dog"]}
    assert split_labels(tmp_path) == expected


def test_a_saved_folder_without_splits_or_some_labels(library: Any, tmp_path: Path) -> None:
    pets(library, (0, -1, None)).save_to_disk(tmp_path)
    assert split_labels(tmp_path) == {"all": ["house_cat"]}
    assert read(tmp_path, ReadOptions()).ignored == {"images without a label": 2}


def test_images_that_are_files(library: Any, tmp_path: Path) -> None:
    write_images(tmp_path, "cat_1.png", "dog_1.png")
    paths = [tmp_path / "cat_1.png", tmp_path / "dog_1.png"]
    data = plain(library, image=[*map(str, paths)], kind=[3, 4]).rename_column("image", "photo")
    rows = read_dataset(data, {"label": "kind"}).splits["all"]
    assert rows == [Row("3", paths[0]), Row("4", paths[1])]


def test_a_saved_folder_may_not_name_files_elsewhere(library: Any, tmp_path: Path) -> None:
    import pyarrow as pa

    kinds = library.Features({"image": library.Image(), "label": library.Value("string")})
    image = pa.array([{"bytes": None, "path": "/etc/hostname"}], type=library.Image().pa_type)
    table = pa.table({"image": image, "label": pa.array(["cat"])})
    pets(library, (0,)).cast_column("label", library.Value("string")).save_to_disk(tmp_path / "x")
    (file,) = (tmp_path / "x").glob("*.arrow")  # save_to_disk itself packs the files
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, kinds.arrow_schema) as writer:
        writer.write_table(table.cast(kinds.arrow_schema))
    [row] = read(tmp_path / "x", ReadOptions(outside=True)).splits["all"]
    assert row.image == Path("/etc/hostname")
    with pytest.raises(UserError, match="row 0: '/etc/hostname' lies outside"):
        read(tmp_path / "x", ReadOptions())


def test_all_images_are_listed_with_a_label_or_without(library: Any, tmp_path: Path) -> None:
    """In splits of any name, as where a test split on the hub has no labels."""
    unlabelled = pets(library, (0, 1, 1)).remove_columns("label")
    splits = {"train": pets(library, (0,)), "unseen": unlabelled}
    library.DatasetDict(splits).save_to_disk(tmp_path / "pets")
    found = list_images(tmp_path / "pets", ReadOptions()).files
    assert len(found) == 4, "row by row, the cat of both splits too"
    parquet = tmp_path / "hub/test-00000-of-00001.parquet"
    parquet.parent.mkdir()
    pets(library, (-1, None)).to_parquet(parquet)
    for path in (parquet.parent, parquet):
        again = list_images(path, ReadOptions(columns={"image": "image"})).files
        assert [file.read_bytes() for file in again] == [file.read_bytes() for file in found[1:3]]
    with pytest.raises(UserError, match=r"none of its columns .* is called 'photo'"):
        list_images(tmp_path / "pets", ReadOptions(columns={"image": "photo"}))


def test_parquet_files_of_the_hub(library: Any, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    parts = {"train-00000-of-00002": (0, 1), "train-00001-of-00002": (1,)}
    for name, numbers in {**parts, "test-00000-of-00001": (0,)}.items():
        pets(library, numbers).to_parquet(tmp_path / f"data/{name}.parquet")
    (tmp_path / "data/broken.parquet").write_bytes(b"PAR1")
    files = hub_parquets(tmp_path)
    assert {split: len(some) for split, some in files.items()} == {"test": 1, "train": 2}
    expected = {"train": ["house_cat", "dog", "dog"], "test": ["house_cat"]}
    assert split_labels(tmp_path) == expected
    assert detects(tmp_path)
    assert detects(files["test"][0])
    assert not detects(tmp_path / "data/broken.parquet")


def test_a_parquet_table_of_paths_is_not_from_the_hub(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"path": ["a.png"], "label": ["cat"]}), tmp_path / "t.parquet")
    for path in (tmp_path / "t.parquet", tmp_path, tmp_path / "gone.parquet"):
        assert not detects(path)


def test_columns_may_give_splits_and_groups(library: Any) -> None:
    splits = read_dataset(pets(library, (0, 1), split=["train", "test"], group=["p1", None])).splits
    found = {split: [(row.label, row.group) for row in rows] for split, rows in splits.items()}
    assert found == {"train": [("house_cat", "p1")], "test": [("dog", "")]}


def test_missing_groups_and_splits(library: Any) -> None:
    """An image without a group is in none; spaces around a split do not count, but it is needed
    unless the part of the data set has one."""
    numbers = library.Features({**pets(library).features, "group": library.Value("float64")})
    data = {**pets(library)[:], "group": [float("nan"), 7.0, None]}
    [rows] = read_dataset(library.Dataset.from_dict(data, features=numbers)).splits.values()
    assert [row.group for row in rows] == ["", "7.0", ""]
    data = pets(library, split=[" Train", "test ", None])
    assert [*read_dataset(data.select([0, 1])).splits] == ["train", "test"]
    with pytest.raises(UserError, match="row 2: split is '': write train, val or test"):
        read_dataset(data)
    assert [*read_dataset({"train": data.select([0, 2])}).splits] == ["train"]


def test_splits_under_another_name_are_not_ignored(library: Any) -> None:
    data = pets(library, subset_of=["train", "test", None], note=["train", "test", "no"])
    with pytest.raises(UserError, match="'subset_of' looks like splits"):
        read_dataset(data)
    assert [*read_dataset(data, {"split": "none"}).splits] == ["all"]
    named = read_dataset(data.select([0, 1]), {"split": "subset_of"})
    assert [*named.splits] == ["train", "test"]
    assert [*read_dataset({"train": data.select([0]), "test": data.select([1])}).splits] == [
        "train", "test",
    ]  # fmt: skip


@pytest.mark.parametrize("column", ["label", "labels"])
@pytest.mark.parametrize("numbered", [True, False])
def test_a_list_of_one_label_is_a_label_and_of_more_is_refused(
    library: Any, column: str, numbered: bool
) -> None:
    def data(*rows: list[int]) -> Any:
        images = [picture("cat"), picture("dog"), picture("dog", 1)]
        names = ("house_cat", "dog")
        if not numbered:
            words = [[names[number] for number in row] for row in rows]
            return plain(library, image=images, **{column: words})
        kind = library.Sequence(library.ClassLabel(names=names))
        features = library.Features({"image": library.Image(), column: kind})
        return library.Dataset.from_dict({"image": images, column: [*rows]}, features=features)

    source = read_dataset(data([0], [1, 1], []))
    assert labels(source.splits["all"]) == ["house_cat", "dog"]
    assert source.ignored.total() == 1
    with pytest.raises(UserError, match=r"row 1: .*'dog'.*'house_cat'"):
        read_dataset(data([0], [1, 0], []))


def test_minus_one_is_unknown_only_where_classes_are_numbered(library: Any) -> None:
    numbers = plain(library, image=[picture("cat"), picture("dog")], label=[-1, 1])
    assert labels(read_dataset(numbers).splits["all"]) == ["-1", "1"]
    assert labels(read_dataset(pets(library, (-1, 1))).splits["all"]) == ["dog"]


def test_a_label_beyond_the_names_is_refused_with_its_row(library: Any, tmp_path: Path) -> None:
    pets(library).save_to_disk(tmp_path / "pets")
    info = tmp_path / "pets" / "dataset_info.json"
    text = info.read_text()
    facts = json.loads(text)
    facts["features"]["label"]["names"] = ["house_cat"]
    info.write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r"row 1: Invalid integer class label 1"):
        split_labels(tmp_path / "pets")


def test_missing_parts_are_named(library: Any) -> None:
    for data, columns, words in (
        ({"dev": pets(library)}, {}, "has a split 'dev'"),
        (pets(library, (0,), split=["dev"]), {}, "row 0: split is 'dev'"),
        (pets(library).remove_columns("label"), {}, r"columns \(image\) is called label"),
        (pets(library), {"image": "label"}, "'label' holds no images"),
        (pets(library, (None,)), {}, "no labelled images"),
    ):
        with pytest.raises(UserError, match=words):
            read_dataset(data, columns)


def test_a_broken_folder_is_refused(library: Any, tmp_path: Path) -> None:
    pets(library).save_to_disk(tmp_path / "pets")
    for file in (tmp_path / "pets").glob("*.arrow"):
        file.write_bytes(b"no arrow")
    with pytest.raises(UserError, match="pets: not a readable save_to_disk folder"):
        read(tmp_path / "pets", ReadOptions())


def test_the_extra_is_named_if_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "dataset_dict.json").write_text("{}")
    with pytest.raises(UserError, match=r"pip install 'rmadapter\[data\]'"):
        read(tmp_path, ReadOptions())


def test_other_objects_are_not_datasets(library: Any) -> None:
    assert is_dataset(library.DatasetDict({"train": pets(library)}))
    assert not is_dataset({})
    assert not is_dataset([1])


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("a b.png", "-a_b.png"),
        ("../../x.jpg", "-x.jpg"),
        (".png", "-png"),
        ("", "-image"),
        (f"{'漢' * 80}.png", "漢.png"),
    ],
)
def test_stored_images_are_named_by_content(cache: Path, name: str, ends: str) -> None:
    path = store_image(png("cat"), name)
    assert path.read_bytes() == png("cat")
    assert path.parent.parent == cache / "images"
    assert path.name.endswith(ends)
    assert store_image(png("cat"), name) == path
    assert store_image(png("dog"), name) != path
