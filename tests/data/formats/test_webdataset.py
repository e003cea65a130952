"""webdataset's shards in miniature: an image and its class are members of one name."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from rmadapter.data.budget import Budget
from rmadapter.data.formats.base import ReadOptions
from rmadapter.data.formats.webdataset import class_names, is_sampled, read, samples, shards
from rmadapter.errors import UserError
from tests.helpers.formats import sample, write_shard
from tests.helpers.small_images import png


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()


def test_numbers_are_lines_of_classnames(tmp_path: Path) -> None:
    home = tmp_path / "set"
    write_shard(home / "train" / "0.tar", **sample(0, "cat", "0"), **sample(1, "dog", "1\n"))
    write_shard(home / "train" / "1.tar", **sample(0, "dog", "1"))
    write_shard(home / "test" / "0.tar", **sample(0, "cat", "0"))
    (home / "classnames.txt").write_text("house cat\ndog\n")
    found = shards(home)
    assert {split: len(files) for split, files in found.items()} == {"test": 1, "train": 2}
    rows = read(home, ReadOptions()).splits
    assert {s: [(r.image.name, r.label) for r in own] for s, own in rows.items()} == {
        "test": [("000000.png", "house cat")],
        "train": [("000000.png", "house cat"), ("000001.png", "dog"), ("000000.png", "dog")],
    }
    assert rows["train"][2].image.read_bytes() == png("dog", 0)  # of one name, in another shard


def test_the_name_of_a_shard_says_its_split(tmp_path: Path) -> None:
    train = ["pets-train-000000.tar", "pets-train-000001.tar"]
    touch(tmp_path, *train, "pets-val-000000.tar", "notes.txt", "._train-0.tar")  # macOS's
    expected = {"train": [tmp_path / name for name in train]}
    assert shards(tmp_path) == {**expected, "val": [tmp_path / "pets-val-000000.tar"]}
    touch(tmp_path, "more.tar")
    assert [*shards(tmp_path)] == ["all", "train", "val"]
    (tmp_path / "cat").mkdir()  # class folders, which the shards may have been unpacked to
    assert shards(tmp_path) == {}


def test_classes_may_be_in_json_or_missing(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "a.seg.png", "b.jpg", "c.jpg", "c.txt")
    touch(tmp_path, "d.left.png", "d.right.png")  # one label for two images
    for name, text in {
        "a": '{"label": "cat"}', "b": '{"caption": "a dog", "cls": 0}', "d": '{"label": "dog"}',
        "lost": "{}",
    }.items():  # fmt: skip
        (tmp_path / f"{name}.json").write_text(text)
    assert is_sampled(tmp_path)
    ignored: Counter[str] = Counter()
    expected = [("a.jpg", "cat"), ("b.jpg", "0"), ("d.left.png", "dog"), ("d.right.png", "dog")]
    assert [
        (row.image.name, row.label) for row in samples(tmp_path, [], ignored, Budget())
    ] == expected
    assert ignored == {"images without a label": 1, ".txt": 1, ".json": 1, ".seg.png": 1}


def test_folders_without_samples_are_not_recognised(tmp_path: Path) -> None:
    touch(tmp_path, "cat/a.png", "info.json")
    assert not is_sampled(tmp_path)
    assert shards(tmp_path) == {}
    assert class_names(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.cls", b"2", r"a\.cls: class 2 is not among the 2 lines"),
        ("a.cls", b"9" * 5000, r"a\.cls: class 9{20} is not among the 2 lines"),
        ("a.json", b'{"label": %s}' % (b"9" * 4000), r"a\.json: class 9{20} is not among"),
        ("a.json", b'{"label": %s}' % (b"9" * 5000), r"a\.json: not readable JSON"),
        ("a.cls", b"\xff", r"a\.cls: not a readable text"),
        ("a.json", b"[1]", r"a\.json: \[1\] has none of the fields label"),
        ("a.json", b'{"label": ["cat", "dog"]}', r"a\.json: \['cat', 'dog'\] is not one class"),
    ],
)
def test_an_invalid_class_is_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        samples(tmp_path, ["cat", "dog"], Counter(), Budget())
