"""The table against the archives' own totals; data sets by name; shots against Dassl's procedure;
checks, downloads."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torchvision.datasets
from PIL import Image

from rmadapter.data.catalog.readers import READERS, SPELLINGS
from rmadapter.data.catalog.sets import (
    CATALOG,
    ELEVEN,
    check,
    domains,
    get,
    load_dataset,
    table_of,
)
from rmadapter.data.fewshot import few_shot, half
from rmadapter.data.read import ImageSet
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


def test_the_catalogue_is_consistent() -> None:
    assert len(CATALOG) == len({dataset.folder for dataset in CATALOG.values()}) == 38
    assert ELEVEN[0] == "imagenet"
    for key, dataset in CATALOG.items():
        assert dataset.reader in READERS
        assert dataset.spelling in SPELLINGS
        assert all(template.count("{}") == 1 for template in dataset.templates)
        assert "{home}" in " ".join(dataset.steps)
        for digest in filter(None, dataset.archives.values()):
            assert digest.removeprefix("md5:") in TORCHVISION
        assert "name" in re.compile(dataset.order_line).groupindex
        if dataset.reader == "class_lists" and dataset.line:
            assert {"name", "file"} <= {*re.compile(dataset.line).groupindex}
        assert dataset.split or not dataset.split_url
        total = sum(dataset.counts.values())
        assert total == TOTALS.get(key, total)
        assert not (total and dataset.total)
        # 50 %, 20 % and 30 %, to one image a class
        if dataset.reader == "class_folders" and key in TOTALS:
            for split, share in {"train": 0.5, "val": 0.2, "test": 0.3}.items():
                assert abs(dataset.counts[split] - share * total) <= dataset.classes
    with pytest.raises(UserError, match="did you mean 'oxford_flowers'"):
        get("flowers")


# By name or path


def plain(home: Path, *classes: str) -> None:
    """Folders of class folders with images that can be opened, split into train and test."""
    for folder in (home / split / name for split in ("train", "test") for name in classes):
        folder.mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (4, 4)).save(folder / f"{number}.png")


def test_names_folders_and_paths_lead_to_the_archive(tmp_path: Path) -> None:
    archives.caltech101(tmp_path / "caltech-101")
    by_key = load_dataset("caltech101", tmp_path)
    assert by_key["train"].classes == ("face", "leopard", "accordion", "airplane", "car side")
    assert [len(by_key[split]) for split in ("train", "val", "test")] == [25, 10, 15]
    plain(tmp_path / "caltech101", "Faces")
    # the archive comes first
    for name, root in [("caltech101", tmp_path), ("caltech-101", tmp_path),
                       (str(tmp_path / "caltech-101"), None)]:  # fmt: skip
        assert load_dataset(name, root)["train"].images == by_key["train"].images
    # unless the path says otherwise
    assert load_dataset(tmp_path / "caltech101")["train"].classes == ("face",)


def test_plain_folders_get_the_names_of_the_catalogue(tmp_path: Path) -> None:
    folders = ("accordion", "airplanes", "BACKGROUND_Google", "Faces", "Faces_easy", "sea_horse")
    plain(tmp_path / "caltech101", *folders)
    sets = load_dataset("caltech101", tmp_path)
    # capitals first, as CoOp sorts
    assert sets["test"].classes == ("face", "accordion", "airplane", "sea horse")
    expected = ["train/Faces/0.png", "train/Faces/1.png", "train/accordion/0.png"]
    assert [sets["train"].name(i) for i in range(3)] == expected
    assert sets["train"].labels == (0, 0, 1, 1, 2, 2, 3, 3)
    plain(tmp_path / "imagenet", "n01440764")
    with pytest.raises(UserError, match="WordNet ids"):
        load_dataset("imagenet", tmp_path)


def test_data_outside_the_catalogue_and_domains(tmp_path: Path) -> None:
    for domain in ("photo", "sketch", "art_painting"):
        plain(tmp_path / "pacs" / domain, "dog", "guitar")
    plain(tmp_path / "mine", "sea_horse", "zebra")
    assert domains(tmp_path / "pacs") == ["art_painting", "photo", "sketch"]
    assert domains(tmp_path / "mine") == domains(tmp_path) == domains(tmp_path / "nothing") == []
    assert load_dataset("pacs/photo", tmp_path)["train"].classes == ("dog", "guitar")
    rows = "mine/train/zebra/0.png,zebra\nmine/train/zebra/1.png,horse\n"
    (tmp_path / "own.csv").write_text(f"path,label\n{rows}")
    assert load_dataset("own.csv", tmp_path)["all"].classes == ("horse", "zebra")
    assert load_dataset(tmp_path / "mine")["train"].classes == ("sea horse", "zebra")
    for name, words in (
        ("pacs", "domains art_painting, photo, sketch; choose one"),
        ("mien", "did you mean 'mine'"),
        ("dtd", r"`rmadapter data dtd --root .* says how to get it"),
    ):
        with pytest.raises(UserError, match=words):
            load_dataset(name, tmp_path)


# Shots


def dassl(rows: list[list[Any]], shots: int) -> list[str]:
    """Dassl's draw from the global generator: items grouped by label as they come, `shots` sampled
    from each group."""
    groups: dict[int, list[str]] = {}
    for path, label, _ in rows:
        groups.setdefault(label, []).append(path)
    drawn: list[str] = []
    for items in groups.values():
        drawn += random.sample(items, shots) if len(items) >= shots else items
    return drawn


def names(images: ImageSet) -> list[str]:
    return [images.name(i) for i in range(len(images))]


@pytest.mark.parametrize(("seed", "shots"), [(1, 16), (2, 16), (3, 4), (1, 1)])
def test_shots_are_those_that_dassl_draws(tmp_path: Path, seed: int, shots: int) -> None:
    classes = {"zebra": 20, "Sea_horse": 30, "ant": 12, "bee": 17, "cow": 40}  # of ants too few
    rows: list[list[Any]] = []
    for label, (name, size) in enumerate(classes.items()):
        rows += [[f"{name}/{i}.jpg", label, name] for i in range(size)]
    random.Random(0).shuffle(rows)  # labels first appear out of order, and files too
    home = tmp_path / "dtd"
    split = {"train": rows, "val": rows[60:], "test": rows[:9]}
    archives.write_json(home / "split_zhou_DescribableTextures.json", split)
    archives.pictures(home / "images", [row[0] for row in rows])

    state = random.getstate()
    random.seed(seed)
    train, val = dassl(rows, shots), dassl(rows[60:], min(shots, 4))
    random.setstate(state)

    few = few_shot(load_dataset("dtd", tmp_path), shots, seed)
    assert few.val is not None
    assert (names(few.train), names(few.val)) == (train, val)
    base = half(few.train, "base")
    assert base.classes == ("zebra", "Sea horse", "ant")
    kept = ("zebra", "Sea_horse", "ant")
    assert names(base) == [path for path in train if path.startswith(kept)]


# What is there


def test_complete_partial_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts, home = {"train": 25, "val": 10, "test": 15}, tmp_path / "caltech-101"
    dataset = CATALOG["caltech101"].model_copy(update={"classes": 5, "counts": counts})
    monkeypatch.setitem(CATALOG, "caltech101", dataset)  # type: ignore[misc]
    assert check(dataset, tmp_path).status == "absent"
    home.mkdir()
    assert check(dataset, tmp_path).status == "absent"

    archives.caltech101(home)
    found = check(dataset, tmp_path)
    assert (found.status, found.counts) == ("partial", counts)
    assert found.how == f"put {dataset.split_url} into {home}"
    [missing] = found.missing
    assert missing.startswith("split_zhou_Caltech101.json")

    archives.write_json(home / dataset.split, table_of(dataset, home))
    found = check(dataset, tmp_path)
    assert (found.status, found.missing, found.home, found.how) == ("complete", (), str(home), "")

    for number in (3, 7):
        (home / f"101_ObjectCategories/Faces/image_{number:04d}.jpg").unlink()
    found = check(dataset, tmp_path)
    assert found.status == "partial"
    [missing] = found.missing
    assert missing.startswith("2 of 50 images are missing, such as Faces/image_000")
    assert found.how == f"rmadapter data caltech101 --root {tmp_path} --download"
    with pytest.raises(UserError, match=r"2 of 50 images are missing.*rmadapter data caltech101"):
        load_dataset("caltech101", tmp_path)
    shutil.rmtree(home / "101_ObjectCategories")
    assert "50 of 50 images" in check(dataset, tmp_path).missing[0]

    (home / dataset.split).write_text("{}")
    assert "write it as" in check(dataset, tmp_path).missing[0]


def test_too_few_and_plain_folders_are_partial(tmp_path: Path) -> None:
    archives.fgvc_aircraft(tmp_path / "fgvc_aircraft")
    missing = check(CATALOG["fgvc_aircraft"], tmp_path).missing
    assert missing[0] == "classes: 4 of 100"
    parts = {"train": "4 of 3334", "val": "1 of 3333", "test": "2 of 3333"}
    assert [*missing[1:]] == [f"{split}: {count} images" for split, count in parts.items()]
    plain(tmp_path / "caltech101", "Faces")
    found = check(CATALOG["caltech101"], tmp_path)
    assert found.counts == {"train": 2, "test": 2}
    assert any("plain folders" in line for line in found.missing)


def test_the_command_checks_all_sets(rmadapter: Command, tmp_path: Path) -> None:
    archives.dtd(tmp_path / "dtd")
    found = {
        row["name"]: row["status"] for row in rmadapter.json("data", "--status", "--root", tmp_path)
    }
    assert found == {key: "partial" if key == "dtd" else "absent" for key in CATALOG}
    text = rmadapter.done("data", "imagenet", "--root", tmp_path).out
    for words in ("non-commercial", f"{tmp_path}/imagenet/images/train/", "absent"):
        assert words in text
    refused(rmadapter("data", "--status", "--root", tmp_path / "nothing"), "nothing")


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
