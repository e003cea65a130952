"""The few-shot lists of 2SFS, on small replicas of them."""

from __future__ import annotations

import json
from pathlib import Path

import listed_shots
import pytest
from listed_shots import write_list
from PIL import Image

from rmadapter.data.catalog.sets import CATALOG, table_of
from rmadapter.data.read import read_images
from rmadapter.errors import UserError
from tests.helpers import archives

THEIRS = "/leonardo/work/data/caltech-101/101_ObjectCategories/"
LISTED = (
    (THEIRS, "accordion", "accordion"),
    ("101_ObjectCategories/", "airplanes", "airplane"),
    (THEIRS, "Faces", "face"),
    (THEIRS, "Leopards", "leopard"),
    (THEIRS, "car_side", "car_side"),
)


def entry(path: str, name: str) -> str:
    return json.dumps({"_impath": path, "_label": 0, "_domain": 0, "_classname": name})


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A miniature with lists of one shot a class."""
    home = tmp_path / "caltech-101"
    archives.caltech101(home)
    for number, path in enumerate(sorted(home.rglob("*.jpg"))):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    tested = {Path(path).parts[-2:] for path, *_ in table_of(CATALOG["caltech101"], home)["test"]}
    lines: dict[str, list[str]] = {"train": [], "val": []}
    for where, folder, name in LISTED:
        files = sorted(path.name for path in (home / "101_ObjectCategories" / folder).glob("*.jpg"))
        untested = [file for file in files if (folder, file) not in tested]
        for split, file in zip(lines, untested, strict=False):
            lines[split].append(entry(f"{where}{folder}/{file}", name))
    for split, rows in lines.items():
        archives.write_text(home / f"split_fewshot/shot_1-seed_3_{split}.jsonl", rows)
    return home


def test_the_table_holds_their_images_and_the_whole_test_split(home: Path, tmp_path: Path) -> None:
    out = write_list(CATALOG["caltech101"], tmp_path, 1, 3)
    assert out == home / "shots_1-seed_3.csv"
    splits = read_images(out)
    train, val, test = (splits[name] for name in ("train", "val", "test"))
    folder = home / "101_ObjectCategories"
    labels = [train.classes[label] for label in train.labels]
    found = dict(zip(labels, train.images, strict=True))
    assert {*found.values()} == {folder / row[1] / "image_0001.jpg" for row in LISTED}
    assert found["face"] == folder / "Faces/image_0001.jpg"
    assert len(val) == len(LISTED)
    assert len(test) == len(table_of(CATALOG["caltech101"], home)["test"])
    assert train.classes == test.classes
    assert not (home / "classnames.json").exists()


def test_hyphens_in_names_stay(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setattr(listed_shots, "table_of", lambda *_: own)
    found = read_images(write_list(CATALOG["caltech101"], tmp_path, 1, 3))["train"]
    assert {*found.classes} == {"MD-11", "airplane", "face", "leopard", "car side-1"}


def test_the_script_writes_a_list(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def call(*words: str) -> None:
        monkeypatch.setattr("sys.argv", ["listed_shots.py", *words, "--root", str(tmp_path)])
        listed_shots.main()

    call("caltech101", "--shots", "1", "--seed", "3")
    assert capsys.readouterr().out.strip() == str(home / "shots_1-seed_3.csv")
    with pytest.raises(SystemExit, match=r"shot_2-seed_3_train.jsonl: not found"):
        call("caltech101", "--shots", "2", "--seed", "3")
    with pytest.raises(SystemExit, match="Describable Textures is not in"):
        call("dtd")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("[]", "line 1: .*write"),
        ("not JSON", "line 1: not readable JSON lines"),
        ('{"_impath": "a.jpg"}', "_classname"),
        (entry(f"{THEIRS}accordion/none.jpg", "accordion"), "none.jpg is missing"),
        (entry("../../etc/passwd", "x"), "lies outside"),
        (entry("/etc/passwd", "x"), "lies outside"),
    ],
)
def test_unsuitable_lists_are_refused(home: Path, tmp_path: Path, line: str, words: str) -> None:
    archives.write_text(home / "split_fewshot" / "shot_1-seed_3_train.jsonl", [line])
    with pytest.raises(UserError, match=words):
        write_list(CATALOG["caltech101"], tmp_path, 1, 3)
    assert not (home / "shots_1-seed_3.csv").exists()
