"""Every archive format on a miniature, random splits against CoOp's procedure restated with the
global generator."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError

from rmadapter.data.catalog.readers import CoopSplits, Dataset, image_sets, split_json
from rmadapter.data.catalog.sets import CATALOG, table_of
from rmadapter.errors import UserError
from tests.helpers import archives

T = TypeVar("T")


def read(key: str, home: Path) -> CoopSplits:
    archives.WRITERS[key](home)
    return table_of(CATALOG[key], home)


def classes(table: CoopSplits) -> dict[int, str]:
    return {label: name for rows in table.values() for _, label, name in rows}


def paths(table: CoopSplits, split: str) -> list[str]:
    return [path for path, _, _ in table[split]]


def seeded(groups: Iterable[list[T]]) -> list[list[T]]:
    """Each group shuffled in turn by Python's own generator, seeded with 1 once."""
    state = random.getstate()
    random.seed(1)
    shuffled = []
    for group in groups:
        items = list(group)
        random.shuffle(items)
        shuffled.append(items)
    random.setstate(state)
    return shuffled


def halves(groups: Iterable[list[str]]) -> dict[str, list[str]]:
    """METHOD of CoOp for archives without a split: 50 % train, 20 % val, the rest test, class by
    class."""
    parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for items in seeded(groups):
        a, b = round(len(items) * 0.5), round(len(items) * 0.2)
        parts["train"] += items[:a]
        parts["val"] += items[a : a + b]
        parts["test"] += items[a + b :]
    return parts


def fifth(groups: Iterable[list[str]]) -> dict[str, list[str]]:
    """METHOD of CoOp for archives without val: the first fifth of each shuffled class is val."""
    parts: dict[str, list[str]] = {"train": [], "val": []}
    for items in seeded(groups):
        count = round(len(items) * 0.2)
        parts["val"] += items[:count]
        parts["train"] += items[count:]
    return parts


def trained(table: CoopSplits) -> dict[str, list[str]]:
    return {split: paths(table, split) for split in ("train", "val")}


def counts(table: CoopSplits) -> list[int]:
    return [len(rows) for rows in table.values()]


ROWS = [["b/1.jpg", 1, "sea_horse"], ["a/2.jpg", 0, "Zebra"], ["b/0.jpg", 1, "sea_horse"]]


def test_a_split_file_is_read_as_it_is(tmp_path: Path) -> None:
    record = {"train": ROWS, "val": ROWS[1:2], "test": ROWS[::-1]}
    archives.write_json(tmp_path / "split.json", record)
    table = split_json(tmp_path / "split.json")
    assert {split: [list(row) for row in rows] for split, rows in table.items()} == record
    sets = image_sets(table, tmp_path / "pictures", tmp_path)
    # by label, not by name
    assert sets["train"].classes == sets["test"].classes == ("Zebra", "sea horse")
    assert sets["train"].labels == (1, 0, 1)
    assert [*sets["train"].images] == [tmp_path / "pictures" / str(row[0]) for row in ROWS]
    assert sets["test"].name(0) == "b/0.jpg"


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ("{", "not readable JSON"),
        ([], "write it as"),
        ({"train": ROWS}, "write it as"),
        ({"train": ROWS, "test": ROWS, "heldout": ROWS}, "write it as"),
        ({"train": ROWS, "test": {}}, r"test\[0\] is {}"),
        ({"train": ROWS, "test": [["a.jpg", "0", "Zebra"]]}, r"test\[0\] is .*'0'.*, not \[path"),
        ({"train": ROWS, "test": [["a.jpg", True, "Zebra"]]}, r"test\[0\] is .*True"),
        ({"train": [*ROWS, ["a.jpg", 0]], "test": []}, r"train\[3\] is \['a.jpg', 0\]"),
        ({"train": ROWS[:1], "test": []}, "no image has the label 0"),
        ({"train": ROWS, "test": [["a.jpg", 0, "lion"]]}, "label 0 is called 'Zebra' and 'lion'"),
        ({"train": [], "test": []}, "names no image"),
        ({"train": [["a.jpg", 0, "\ud800"]], "test": []}, "give it a plain-text name"),
        ({"train": [["a.jpg", 0, "\0"]], "test": []}, "give it a plain-text name"),
        ({"train": [["a.jpg", 0, "  "]], "test": []}, "give it a plain-text name"),
    ],
)
def test_a_bad_split_file_is_refused(tmp_path: Path, record: Any, complaint: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(record if isinstance(record, str) else json.dumps(record))
    with pytest.raises(UserError, match=complaint) as error:
        image_sets(split_json(path), tmp_path, path)
    assert str(path) in str(error.value)


ROW = st.tuples(st.text(max_size=9), st.integers(), st.text(max_size=9)) | st.lists(
    st.none() | st.integers(), max_size=4
)


@given(
    st.dictionaries(
        st.sampled_from(["train", "val", "test", "other"]),
        st.lists(ROW, max_size=4) | st.integers(),
    )
)
def test_random_split_files(tmp_path_factory: pytest.TempPathFactory, written: Any) -> None:
    file = tmp_path_factory.getbasetemp() / "split.json"
    file.write_text(json.dumps(written))
    try:
        table = split_json(file)
        sets = image_sets(table, Path("images"), file)
    except UserError as error:
        assert len(str(error)) < 500  # noqa: PT017
        return
    found = {split: [list(row) for row in rows] for split, rows in table.items()}
    assert found == json.loads(file.read_text())
    for images in sets.values():
        assert {*images.labels} <= {*range(len(images.classes))}


# Class folders


def test_caltech_folders(tmp_path: Path) -> None:
    before = random.getstate()
    table = read("caltech101", tmp_path)
    assert random.getstate() == before
    assert list(classes(table).values()) == ["face", "leopard", "accordion", "airplane", "car_side"]
    written = ["Faces", "Leopards", "accordion", "airplanes", "car_side"]
    expected = halves([f"{folder}/image_{i:04d}.jpg" for i in range(1, 11)] for folder in written)
    assert {split: paths(table, split) for split in table} == expected
    assert counts(table) == [25, 10, 15]


def test_eurosat_names(tmp_path: Path) -> None:
    assert ", ".join(classes(read("eurosat", tmp_path)).values()) == (
        "Annual Crop Land, Forest, Herbaceous Vegetation Land, Highway or Road, "
        "Industrial Buildings, Pasture Land, "
        "Permanent Crop Land, Residential Buildings, River, Sea or Lake"
    )


@pytest.mark.parametrize(("key", "sizes"), [("dtd", [12, 4, 8]), ("food101", [10, 4, 6])])
def test_other_folders(tmp_path: Path, key: str, sizes: list[int]) -> None:
    table = read(key, tmp_path)
    assert counts(table) == sizes
    assert len({path for split in table for path in paths(table, split)}) == sum(sizes)


def test_a_class_too_small_to_split_is_refused(tmp_path: Path) -> None:
    archives.folders(tmp_path / "images", ["banded"], 2)
    with pytest.raises(UserError, match="too few images"):
        table_of(CATALOG["dtd"], tmp_path)
    with pytest.raises(UserError, match="no class folders"):
        table_of(CATALOG["eurosat"], tmp_path)


# ImageNet and its variants


def test_imagenet(tmp_path: Path) -> None:
    table = read("imagenet", tmp_path)
    assert classes(table) == dict(enumerate(archives.WNIDS.values()))
    first = [f"images/train/n01440764/n_{i}.JPEG" for i in (1, 2, 3)]
    assert paths(table, "train")[:4] == [*first, "images/train/n01443537/n_1.JPEG"]
    assert [label for _, label, _ in table["test"]] == [0, 1, 2, 3]


def test_imagenet_variants(tmp_path: Path) -> None:
    """200 of 1,000 classes count from 0 under their own names; V2's folders are numbers; names may
    be beside."""
    adversarial = read("imagenet_a", tmp_path / "imagenet-adversarial")
    assert classes(adversarial) == {0: "goldfish", 1: "construction crane"}
    folders = [path.split("/")[1] for path in paths(adversarial, "test")]
    assert folders == ["n01443537"] * 2 + ["n03126707"] * 2
    second = read("imagenetv2", tmp_path / "imagenetv2")
    assert classes(second) == dict(enumerate(archives.WNIDS.values()))

    home = tmp_path / "imagenet-sketch"
    archives.imagenet(tmp_path / "imagenet")
    archives.folders(home / "images", archives.WNIDS, 1)
    assert classes(table_of(CATALOG["imagenet_sketch"], home))[3] == "construction crane"
    archives.folders(home / "images", ["n99999999"], 1)
    with pytest.raises(UserError, match=r"n99999999: classnames.txt has no name"):
        table_of(CATALOG["imagenet_sketch"], home)


def test_numbered_folders_are_sorted_as_numbers(tmp_path: Path) -> None:
    names = [f"n{i:08d} name {i}" for i in range(12)]
    archives.write_text(tmp_path / "classnames.txt", names)
    archives.folders(tmp_path / "imagenetv2-matched-frequency-format-val", map(str, range(12)), 1)
    assert classes(table_of(CATALOG["imagenetv2"], tmp_path)) == {i: f"name {i}" for i in range(12)}


# Lists of text


def test_pets(tmp_path: Path) -> None:
    table = read("oxford_pets", tmp_path)
    assert classes(table) == {0: "abyssinian", 1: "american_bulldog", 2: "bengal"}
    groups: dict[str, list[str]] = {}
    for line in (tmp_path / "annotations" / "trainval.txt").read_text().splitlines():
        name, label, *_ = line.split()
        groups.setdefault(label, []).append(f"{name}.jpg")
    assert list(groups) != sorted(groups)
    assert trained(table) == fifth(groups.values())
    assert counts(table) == [16, 4, 6]
    assert all((tmp_path / "images" / path).is_file() for path in paths(table, "train"))


def test_aircraft(tmp_path: Path) -> None:
    table = read("fgvc_aircraft", tmp_path)
    assert table["train"] == [
        ("1025794.jpg", 1, "Challenger 600"),
        ("0900914.jpg", 0, "707-320"),
        ("1234567.jpg", 3, "F/A-18"),
        ("0000001.jpg", 2, "A300B4"),
    ]
    assert table["val"] == [("0000002.jpg", 3, "F/A-18")]
    expected = ("707-320", "Challenger 600", "A300B4", "F/A-18")
    assert image_sets(table, tmp_path, tmp_path)["test"].classes == expected


def test_sun397(tmp_path: Path) -> None:
    table = read("sun397", tmp_path)
    assert classes(table) == {0: "abbey", 1: "indoor apse", 2: "gas_station"}
    names = ("g/gas_station", "a/apse/indoor", "a/abbey")
    assert trained(table) == fifth(
        [f"{name}/sun_{i}{name[-1]}.jpg" for i in range(5)] for name in names
    )
    assert paths(table, "test")[:2] == ["g/gas_station/sun_5n.jpg", "g/gas_station/sun_6n.jpg"]


def test_ucf101(tmp_path: Path) -> None:
    table = read("ucf101", tmp_path)
    assert classes(table) == {0: "Apply_Eye_Makeup", 1: "Yo_Yo"}
    expected = ("Apply_Eye_Makeup/v_ApplyEyeMakeup_g01_c01.jpg", 0, "Apply_Eye_Makeup")
    assert table["test"][0] == expected
    assert counts(table) == [12, 3, 2]
    assert image_sets(table, tmp_path, tmp_path)["val"].classes == ("Apply Eye Makeup", "Yo Yo")


# MATLAB files


def numbered(name: str, labels: Sequence[int], order: Sequence[int]) -> list[list[str]]:
    """Paths of the images of each class."""
    pairs = [*enumerate(labels, 1)]
    return [[name.format(i) for i, label in pairs if label == wanted] for wanted in order]


def test_cars(tmp_path: Path) -> None:
    table = read("stanford_cars", tmp_path)
    assert classes(table) == {0: "2000 AM General Hummer SUV", 1: "2012 Ram C/V Cargo Van Minivan"}
    groups = numbered("cars_train/{:05d}.jpg", archives.CARS["train"], (2, 1))
    assert trained(table) == fifth(groups)
    expected = [("cars_test/00001.jpg", 0), ("cars_test/00002.jpg", 1)]
    assert [row[:2] for row in table["test"]] == expected


def test_flowers(tmp_path: Path) -> None:
    table = read("oxford_flowers", tmp_path)
    assert classes(table) == {0: "pink primrose", 1: "hard-leaved orchid", 2: "canterbury bells"}
    groups = numbered("image_{:05d}.jpg", archives.FLOWERS, (2, 3, 1))
    assert {split: paths(table, split) for split in table} == halves(groups)


@pytest.mark.ci
@pytest.mark.parametrize(
    ("key", "file", "content", "complaint"),
    [
        ("oxford_pets", "annotations/test.txt", "Abyssinian_1 1\n", "test.txt, line 1"),
        ("oxford_pets", "annotations/test.txt", None, "test.txt: no such file"),
        ("fgvc_aircraft", "images_variant_val.txt", "7 Concorde\n", "'Concorde' .*variants.txt"),
        ("ucf101", "ucfTrainTestlist/classInd.txt", "ApplyEyeMakeup\n", "classInd.txt, line 1"),
        ("stanford_cars", "cars_test_annos_withlabels.mat", "text", "MATLAB .*'annotations'"),
        ("stanford_cars", "devkit/cars_meta.mat", None, "cars_meta.mat: .*No such file"),
        ("oxford_flowers", "cat_to_name.json", "{}", "class 2 .*cat_to_name.json"),
        ("oxford_flowers", "cat_to_name.json", '{"2": 3}', "class 2 .*cat_to_name.json"),
        ("oxford_flowers", "cat_to_name.json", "null", "class 2 .*cat_to_name.json"),
        ("oxford_flowers", "cat_to_name.json", None, "cat_to_name.json: not readable JSON"),
        ("imagenet", "classnames.txt", "n01440764\n", "classnames.txt, line 1"),
    ],
)
def test_a_broken_archive_is_refused(
    tmp_path: Path, key: str, file: str, content: str | None, complaint: str
) -> None:
    archives.WRITERS[key](tmp_path)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=complaint):
        table_of(CATALOG[key], tmp_path)


def test_a_misspelt_field_of_the_catalogue_is_refused() -> None:
    with pytest.raises(ValidationError, match="licens"):
        Dataset(**CATALOG["dtd"].model_dump(), licens="MIT")


def test_an_archive_is_distinguished_from_plain_folders(tmp_path: Path) -> None:
    dataset = CATALOG["imagenet"]
    (tmp_path / "cat").mkdir()
    assert not dataset.laid_out(tmp_path)
    (tmp_path / dataset.lists["train"]).mkdir(parents=True)
    assert dataset.laid_out(tmp_path)
