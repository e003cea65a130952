"""webdataset's shards in miniature: an image and its class are members of one name."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from rmadapter.data.formats.webdataset import class_names, is_sampled, read_shards, samples, shards
from rmadapter.errors import UserError
from tests.helpers.formats import sample, write_shard
from tests.helpers.small_images import png


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "cache"))


def test_numbers_are_lines_of_classnames(tmp_path: Path) -> None:
    home = tmp_path / "set"
    write_shard(home / "train" / "0.tar", **sample(0, "cat", "0"), **sample(1, "dog", "1\n"))
    write_shard(home / "train" / "1.tar", **sample(0, "dog", "1"))
    write_shard(home / "test" / "0.tar", **sample(0, "cat", "0"))
    (home / "classnames.txt").write_text("house cat\ndog\n")
    found = shards(home)
    assert {split: len(files) for split, files in found.items()} == {"test": 1, "train": 2}
    rows = read_shards(home, found, Counter())
    assert {s: [(r.image.name, r.label) for r in own] for s, own in rows.items()} == {
        "test": [("000000.png", "house cat")],
        "train": [("000000.png", "house cat"), ("000001.png", "dog"), ("000000.png", "dog")],
    }
    assert rows["train"][2].image.read_bytes() == png("dog", 0)  # of one name, in another shard


def test_shards_of_one_folder_say_their_split_by_name(tmp_path: Path) -> None:
    for name in (
        "pets-train-000000.tar",
        "pets-train-000001.tar",
        "pets-val-000000.tar",
        "notes.txt",
    ):
        (tmp_path / name).write_bytes(b"")
    names = {split: [file.name[-10:] for file in part] for split, part in shards(tmp_path).items()}
    assert names == {
        "train": ["000000.tar", "000001.tar"], "val": ["000000.tar"],
    }  # fmt: skip
    (tmp_path / "more.tar").write_bytes(b"")
    assert [*shards(tmp_path)] == ["all", "train", "val"]
    (tmp_path / "cat").mkdir()  # they are what class folders were unpacked from
    assert shards(tmp_path) == {}


def test_classes_in_json_and_samples_without_any(tmp_path: Path) -> None:
    (tmp_path / "a.seg.png").write_bytes(b"")
    (tmp_path / "a.jpg").write_bytes(b"")
    for side in ("left", "right"):  # one label for two images
        (tmp_path / f"d.{side}.png").write_bytes(b"")
    (tmp_path / "d.json").write_text(json.dumps({"label": "dog"}))
    (tmp_path / "a.json").write_text(json.dumps({"label": "cat"}))
    (tmp_path / "lost.json").write_text("{}")
    (tmp_path / "b.jpg").write_bytes(b"")
    (tmp_path / "b.json").write_text(json.dumps({"caption": "a dog", "cls": 0}))
    (tmp_path / "c.jpg").write_bytes(b"")
    (tmp_path / "c.txt").write_text("a caption")
    assert is_sampled(tmp_path)
    ignored: Counter[str] = Counter()
    expected = [("a.jpg", "cat"), ("b.jpg", "0"), ("d.left.png", "dog"), ("d.right.png", "dog")]
    assert [(row.image.name, row.label) for row in samples(tmp_path, [], ignored)] == expected
    assert ignored == {"images without a label": 1, ".txt": 1, ".json": 1, ".seg.png": 1}


def test_folders_without_samples(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(b"")
    (tmp_path / "info.json").write_text("{}")
    assert not is_sampled(tmp_path)
    assert shards(tmp_path) == {}
    assert class_names(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [("2", "class 2 is not among the 2 lines"), ("\udcff", "not a readable text")],
)
def test_classes_that_cannot_be_read(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "a.cls").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=words):
        samples(tmp_path, ["cat", "dog"], Counter())


def test_json_must_be_an_object(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(UserError, match=r"a\.json: \[1\] has none of the fields label"):
        samples(tmp_path, [], Counter())
    (tmp_path / "a.json").write_text('{"label": ["cat", "dog"]}')
    with pytest.raises(UserError, match=r"a\.json: \['cat', 'dog'\] is not one class"):
        samples(tmp_path, [], Counter())


def test_hidden_tars_are_no_shards(tmp_path: Path) -> None:
    """As macOS leaves them on other disks."""
    for name in ("train-0.tar", "._train-0.tar"):
        (tmp_path / name).write_bytes(b"")
    assert shards(tmp_path) == {"train": [tmp_path / "train-0.tar"]}
