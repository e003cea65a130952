"""2SFS's few-shot lists: read from wherever its authors' images lay, and written as a table that
fits a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from rmadapter.data.catalog import lists
from rmadapter.data.catalog.lists import write_list
from rmadapter.data.catalog.sets import CATALOG, table_of
from rmadapter.data.read import read_images
from rmadapter.errors import UserError
from tests.helpers import archives
from tests.helpers.shell import Command, refused, rmadapter

__all__ = ["rmadapter"]  # a fixture
THEIRS = "/leonardo/work/data/caltech-101/101_ObjectCategories/"
CLASSES = (
    (THEIRS, "accordion", "accordion"),
    ("101_ObjectCategories/", "airplanes", "airplane"),
    (THEIRS, "Faces", "face"),
    (THEIRS, "Leopards", "leopard"),
    (THEIRS, "car_side", "car_side"),
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A miniature with lists of one shot a class."""
    home = tmp_path / "caltech-101"
    archives.caltech101(home)
    for number, path in enumerate(sorted(home.rglob("*.jpg"))):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    tested = {Path(path).parts[-2:] for path, *_ in table_of(CATALOG["caltech101"], home)["test"]}
    for split, place in (("train", 0), ("val", 1)):
        rows = []
        for where, folder, name in CLASSES:
            files = sorted(
                file.name for file in (home / "101_ObjectCategories" / folder).glob("*.jpg")
            )
            file = [file for file in files if (folder, file) not in tested][place]
            rows.append(
                {
                    "_impath": f"{where}{folder}/{file}",
                    "_label": 0,
                    "_domain": 0,
                    "_classname": name,
                }
            )
        archives.write_text(
            home / "split_fewshot" / f"shot_1-seed_3_{split}.jsonl", map(json.dumps, rows)
        )
    return home


def test_the_table_holds_their_images_and_the_whole_test_split(home: Path, tmp_path: Path) -> None:
    out = write_list(CATALOG["caltech101"], tmp_path, 1, 3)
    assert out == home / "shots_1-seed_3.csv"
    splits = read_images(out)
    train, val, test = (splits[name] for name in ("train", "val", "test"))
    folder = home / "101_ObjectCategories"
    assert {Path(str(image)) for image in train.images} == {
        folder / row[1] / "image_0001.jpg" for row in CLASSES
    }
    [face] = [
        image
        for image, n in zip(train.images, train.labels, strict=True)
        if train.classes[n] == "face"
    ]
    assert face == folder / "Faces/image_0001.jpg"
    assert len(val) == len(CLASSES)
    assert len(test) == len(table_of(CATALOG["caltech101"], home)["test"])
    assert train.classes == test.classes
    assert not (home / "classnames.json").exists()


def test_names_with_hyphens_stay_as_they_are(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the catalogue has them, and so as they are in the authors' prompts."""
    renamed = {"accordion": "MD-11", "car_side": "car_side-1"}
    for file in (home / "split_fewshot").glob("*.jsonl"):
        text = file.read_text()
        for name, other in renamed.items():
            text = text.replace(f'"_classname": "{name}"', f'"_classname": "{other}"')
        file.write_text(text)
    own = {
        split: [(path, number, renamed.get(name, name)) for path, number, name in rows]
        for split, rows in table_of(CATALOG["caltech101"], home).items()
    }
    monkeypatch.setattr(lists, "table_of", lambda *_: own)
    found = read_images(write_list(CATALOG["caltech101"], tmp_path, 1, 3))["train"]
    assert {*found.classes} == {"MD-11", "airplane", "face", "leopard", "car side-1"}


def test_the_command(rmadapter: Command, home: Path, tmp_path: Path) -> None:
    code, out, _ = rmadapter("data", "caltech101", "--root", tmp_path, "--list", "1,3")
    assert (code, out.strip()) == (0, f"table: {home / 'shots_1-seed_3.csv'}")
    refused(rmadapter("data", "--list", "1,3"), "--list needs the name of one data set")
    ours = ("data", "caltech101", "--root", tmp_path, "--list")
    refused(rmadapter(*ours, "1"), "write shots and seed, such as 16,1")
    refused(rmadapter(*ours, "2,3"), "shot_2-seed_3_train.jsonl: not found")
    refused(
        rmadapter("data", "dtd", "--root", tmp_path, "--list", "1,3"),
        "Describable Textures is not in",
    )


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("[]", "line 1: not an entry of a few-shot list"),
        ("not JSON", "line 1: not an entry of a few-shot list"),
        (
            json.dumps({"_impath": THEIRS + "accordion/none.jpg", "_classname": "accordion"}),
            "none.jpg is missing",
        ),
        (
            json.dumps({"_impath": "../../etc/passwd", "_classname": "x"}),
            "lies outside the data's folder",
        ),
        (
            json.dumps({"_impath": "/etc/passwd", "_classname": "x"}),
            "lies outside the data's folder",
        ),
    ],
)
def test_a_list_that_does_not_fit_is_refused(
    home: Path, tmp_path: Path, line: str, words: str
) -> None:
    archives.write_text(home / "split_fewshot" / "shot_1-seed_3_train.jsonl", [line])
    with pytest.raises(UserError, match=words):
        write_list(CATALOG["caltech101"], tmp_path, 1, 3)
    assert not (home / "shots_1-seed_3.csv").exists()
