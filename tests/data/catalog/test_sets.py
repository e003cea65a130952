"""The table against the archives' own totals; data sets by name; shots against Dassl's procedure;
checks, downloads."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torchvision.datasets
from PIL import Image

from rmadapter.data.catalog import sets
from rmadapter.data.catalog.readers import READERS, SPELLINGS
from rmadapter.data.catalog.sets import (
    CATALOG,
    check,
    domains,
    get,
    load_dataset,
    table_of,
    write_list,
)
from rmadapter.data.fewshot import few_shot, half
from rmadapter.data.read import read_images
from rmadapter.errors import UserError
from tests.helpers import archives
from tests.helpers.shell import Command, refused, rmadapter

__all__ = ["rmadapter"]  # a fixture

# torchvision knows the same archives, and so the same checksums.
TORCHVISION = "".join(
    path.read_text() for path in Path(torchvision.datasets.__file__).parent.glob("*.py")
)

# What the archives' authors say they hold; of Caltech, without its background and its second folder
# of faces.
TOTALS = {
    "caltech101": 9144 - 467 - 435,
    "oxford_pets": 3680 + 3669,
    "stanford_cars": 8144 + 8041,
    "oxford_flowers": 8189,
    "food101": 101 * 1000,
    "fgvc_aircraft": 100 * 100,
    "sun397": 397 * 100,
    "dtd": 47 * 120,
    "eurosat": 27000,
    "ucf101": 13320,
    "imagenetv2": 1000 * 10,
}


def test_the_table_holds_together() -> None:
    assert len(CATALOG) == 15
    assert len({dataset.folder for dataset in CATALOG.values()}) == 15
    for key, dataset in CATALOG.items():
        assert dataset.reader in READERS
        assert dataset.spelling in SPELLINGS
        assert all(template.count("{}") == 1 for template in dataset.templates)
        assert "{home}" in " ".join(dataset.steps)
        assert all(
            digest == "" or digest.removeprefix("md5:") in TORCHVISION
            for digest in dataset.archives.values()
        )
        assert "name" in re.compile(dataset.order_line).groupindex
        assert dataset.reader != "text_lists" or {"name", "file"} <= set(
            re.compile(dataset.line).groupindex
        )
        assert bool(dataset.split) == bool(dataset.split_url)
        assert sum(dataset.counts.values()) == TOTALS.get(key, sum(dataset.counts.values()))
        if dataset.reader == "class_folders":  # 50 %, 20 % and 30 %, to one image a class
            total = sum(dataset.counts.values())
            for split, share in {"train": 0.5, "val": 0.2, "test": 0.3}.items():
                assert abs(dataset.counts[split] - share * total) <= dataset.classes
    with pytest.raises(UserError, match="did you mean 'oxford_flowers'"):
        get("flowers")


# By name or path


def plain(home: Path, classes: list[str], count: int = 2) -> None:
    """Folders of class folders with pictures that can be opened, split into train and test."""
    for split in ("train", "test"):
        for name in classes:
            (home / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (4, 4)).save(home / split / name / f"{number}.png")


def test_names_folders_and_paths_lead_to_the_archive(tmp_path: Path) -> None:
    archives.caltech101(tmp_path / "caltech-101")
    by_key = load_dataset("caltech101", tmp_path)
    assert by_key["train"].classes == ("face", "leopard", "accordion", "airplane", "car side")
    assert [len(by_key[split]) for split in ("train", "val", "test")] == [25, 10, 15]
    for name, root in [("caltech-101", tmp_path), (str(tmp_path / "caltech-101"), None)]:
        assert load_dataset(name, root)["train"].images == by_key["train"].images
    plain(tmp_path / "caltech101", ["Faces"])
    # the archive comes first
    assert load_dataset("caltech101", tmp_path)["train"].images == by_key["train"].images
    # unless the path says otherwise
    assert load_dataset(tmp_path / "caltech101")["train"].classes == ("face",)


def test_plain_folders_get_the_names_of_the_catalogue(tmp_path: Path) -> None:
    plain(
        tmp_path / "caltech101",
        ["accordion", "airplanes", "BACKGROUND_Google", "Faces", "Faces_easy", "sea_horse"],
    )
    sets = load_dataset("caltech101", tmp_path)
    # capitals first, as CoOp sorts
    assert sets["test"].classes == ("face", "accordion", "airplane", "sea horse")
    expected = ["train/Faces/0.png", "train/Faces/1.png", "train/accordion/0.png"]
    assert [sets["train"].name(i) for i in range(3)] == expected
    assert sets["train"].labels == (0, 0, 1, 1, 2, 2, 3, 3)
    plain(tmp_path / "imagenet", ["n01440764"])
    with pytest.raises(UserError, match="WordNet ids"):
        load_dataset("imagenet", tmp_path)


def test_data_outside_the_catalogue_and_domains(tmp_path: Path) -> None:
    for domain in ("photo", "sketch", "art_painting"):
        plain(tmp_path / "pacs" / domain, ["dog", "guitar"])
    plain(tmp_path / "mine", ["sea_horse", "zebra"])
    assert domains(tmp_path / "pacs") == ["art_painting", "photo", "sketch"]
    assert domains(tmp_path / "mine") == domains(tmp_path) == domains(tmp_path / "nothing") == []
    assert load_dataset("pacs/photo", tmp_path)["train"].classes == ("dog", "guitar")
    with pytest.raises(UserError, match="domains art_painting, photo, sketch; choose one"):
        load_dataset("pacs", tmp_path)
    (tmp_path / "own.csv").write_text(
        "path,label\nmine/train/zebra/0.png,zebra\nmine/train/zebra/1.png,horse\n"
    )
    assert load_dataset("own.csv", tmp_path)["all"].classes == ("horse", "zebra")
    assert load_dataset(tmp_path / "mine")["train"].classes == ("sea horse", "zebra")
    with pytest.raises(UserError, match="did you mean 'mine'"):
        load_dataset("mien", tmp_path)
    with pytest.raises(UserError, match=r"`rmadapter data dtd --root .* says how to get it"):
        load_dataset("dtd", tmp_path)


# Shots


def dassl(rows: list[list[Any]], shots: int) -> list[str]:
    """Dassl's draw from the global generator: items grouped by label as they come, `shots` sampled
    from each group."""
    groups: dict[int, list[str]] = {}
    for path, label, _ in rows:
        groups.setdefault(label, []).append(path)
    return [
        p
        for items in groups.values()
        for p in (random.sample(items, shots) if len(items) >= shots else items)
    ]


@pytest.mark.parametrize(("seed", "shots"), [(1, 16), (2, 16), (3, 4), (1, 1)])
def test_shots_are_those_that_dassl_draws(tmp_path: Path, seed: int, shots: int) -> None:
    # one has fewer than 16
    names, sizes = (["zebra", "Sea_horse", "ant", "bee", "cow"], [20, 30, 12, 17, 40])
    rows = [
        [f"{names[label]}/{i}.jpg", label, names[label]]
        for label, size in enumerate(sizes)
        for i in range(size)
    ]
    random.Random(0).shuffle(rows)  # labels first appear out of order, and files too
    split = {"train": rows, "val": rows[60:], "test": rows[:9]}
    home = tmp_path / "dtd"
    archives.write_json(home / "split_zhou_DescribableTextures.json", split)
    archives.pictures(home / "images", [row[0] for row in rows])

    state = random.getstate()
    random.seed(seed)
    expected = dassl(split["train"], shots), dassl(split["val"], min(shots, 4))
    random.setstate(state)

    few = few_shot(load_dataset("dtd", tmp_path), shots, seed)
    assert few.val is not None
    assert (
        [few.train.name(i) for i in range(len(few.train))],
        [few.val.name(i) for i in range(len(few.val))],
    ) == expected
    base = half(few.train, "base")
    assert base.classes == ("zebra", "Sea horse", "ant")
    kept = [
        path for path in expected[0] if names.index(path.split("/")[0]) < math.ceil(len(names) / 2)
    ]
    assert [base.name(i) for i in range(len(base))] == kept


# What is there


def fill(monkeypatch: pytest.MonkeyPatch, key: str, **fields: Any) -> Any:
    """The row of the table with the counts of the miniature."""
    small = CATALOG[key].model_copy(update=fields)
    monkeypatch.setitem(CATALOG, key, small)  # type: ignore[misc]
    return small


def test_complete_partial_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = fill(
        monkeypatch, "caltech101", classes=5, counts={"train": 25, "val": 10, "test": 15}
    )
    assert check(dataset, tmp_path).status == "absent"
    home = tmp_path / "caltech-101"
    home.mkdir()
    assert check(dataset, tmp_path).status == "absent"

    archives.caltech101(home)
    found = check(dataset, tmp_path)
    assert (found.status, found.counts) == ("partial", {"train": 25, "val": 10, "test": 15})
    assert found.how == f"put {dataset.split_url} into {home}"
    assert found.missing == (
        "split_zhou_Caltech101.json, so the splits are not those of published results",
    )

    archives.write_json(home / dataset.split, table_of(dataset, home))
    found = check(dataset, tmp_path)
    assert (found.status, found.missing, found.home, found.how) == ("complete", (), str(home), "")

    for number in (3, 7):
        (home / "101_ObjectCategories" / "Faces" / f"image_{number:04d}.jpg").unlink()
    found = check(dataset, tmp_path)
    assert found.status == "partial"
    [line] = found.missing
    assert line.startswith("2 of 50 images are missing, such as Faces/image_000")
    assert found.how == f"rmadapter data caltech101 --root {tmp_path} --download"
    with pytest.raises(UserError, match=r"2 of 50 images are missing.*rmadapter data caltech101"):
        load_dataset("caltech101", tmp_path)
    shutil.rmtree(home / "101_ObjectCategories")
    assert "50 of 50 images" in check(dataset, tmp_path).missing[0]

    (home / dataset.split).write_text("{}")
    assert "write it as" in check(dataset, tmp_path).missing[0]


def test_too_few_and_plain_folders_are_partial(tmp_path: Path) -> None:
    archives.fgvc_aircraft(tmp_path / "fgvc_aircraft")
    assert check(CATALOG["fgvc_aircraft"], tmp_path).missing == (
        "classes: 4 of 100",
        "train: 4 of 3334 images",
        "val: 1 of 3333 images",
        "test: 2 of 3333 images",
    )
    plain(tmp_path / "caltech101", ["Faces"])
    found = check(CATALOG["caltech101"], tmp_path)
    assert found.counts == {"train": 2, "test": 2}
    assert any("plain folders" in line for line in found.missing)


def test_the_command(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from rmadapter.cli.main import app

    def data(*words: object) -> Any:
        return CliRunner().invoke(app, ["data", *map(str, words)])

    archives.dtd(tmp_path / "dtd")
    found = {
        row["name"]: row["status"] for row in json.loads(data("--check", tmp_path, "--json").stdout)
    }
    assert found == {key: "partial" if key == "dtd" else "absent" for key in CATALOG}
    assert [row["key"] for row in json.loads(data("--json").stdout)] == list(CATALOG)
    told = data("imagenet", "--root", tmp_path).stdout
    assert "non-commercial" in told
    assert f"{tmp_path}/imagenet/images/train/" in told
    assert "absent" in told
    assert isinstance(data("--download").exception, UserError)
    assert isinstance(data("--check", tmp_path / "nothing").exception, UserError)


# Paths that lead out


def test_paths_outside_the_folder_must_be_allowed(tmp_path: Path) -> None:
    home = tmp_path / "dtd"
    archives.dtd(home)
    Image.new("RGB", (4, 4)).save(tmp_path / "private.png")
    for name in ("../../private.png", str(tmp_path / "private.png")):
        rows = [["banded/image_0001.jpg", 0, "banded"], [name, 1, "zigzagged"]]
        archives.write_json(home / CATALOG["dtd"].split, {"train": rows, "test": rows})
        with pytest.raises(
            UserError, match=rf"split_zhou.*{re.escape(name[:40])}.*--allow-outside"
        ):
            load_dataset("dtd", tmp_path)
        assert len(load_dataset("dtd", tmp_path, outside=True)["train"]) == 2


# The few-shot lists of 2SFS

THEIRS = "/leonardo/work/data/caltech-101/101_ObjectCategories/"
LISTED = (
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
        for where, folder, name in LISTED:
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
        folder / row[1] / "image_0001.jpg" for row in LISTED
    }
    [face] = [
        image
        for image, n in zip(train.images, train.labels, strict=True)
        if train.classes[n] == "face"
    ]
    assert face == folder / "Faces/image_0001.jpg"
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
    monkeypatch.setattr(sets, "table_of", lambda *_: own)
    found = read_images(write_list(CATALOG["caltech101"], tmp_path, 1, 3))["train"]
    assert {*found.classes} == {"MD-11", "airplane", "face", "leopard", "car side-1"}


def test_the_command_writes_a_list(rmadapter: Command, home: Path, tmp_path: Path) -> None:
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
        (json.dumps({"_impath": "../../etc/passwd", "_classname": "x"}), "lies outside"),
        (json.dumps({"_impath": "/etc/passwd", "_classname": "x"}), "lies outside"),
    ],
)
def test_unsuitable_lists_are_refused(home: Path, tmp_path: Path, line: str, words: str) -> None:
    archives.write_text(home / "split_fewshot" / "shot_1-seed_3_train.jsonl", [line])
    with pytest.raises(UserError, match=words):
        write_list(CATALOG["caltech101"], tmp_path, 1, 3)
    assert not (home / "shots_1-seed_3.csv").exists()
