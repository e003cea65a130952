"""The draw against CoOp's protocol, restated plainly with Python's global generator as that
protocol uses it."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from rmadapter.data.fewshot import (
    few_shot,
    half,
    order_digest,
    read_split,
    sample_naturally,
    sample_shots,
    save_split,
    split_digest,
)
from rmadapter.data.read import ImageSet
from rmadapter.errors import UserError


def make(labels: list[int], classes: int) -> ImageSet:
    """Pictures that know their index."""
    pictures = [np.full((1, 1), index, np.uint8) for index in range(len(labels))]
    return ImageSet.from_lists(pictures, labels, [f"class {number}" for number in range(classes)])


def indices(images: ImageSet) -> list[int]:
    return [int(np.asarray(picture)[0, 0]) for picture in images.images]


# first appearance: 2, 0, 1; class 1 has three
LABELS = [2, 0, 1, 0, 2, 1, 0, 2, 2, 0, 1, 0, 2, 0, 2]


def protocol(seed: int, *draws: tuple[list[int], int]) -> list[list[int]]:
    """METHOD of CoOp: seed the global generator once; per set, label by label in order of first
    appearance."""
    state = random.getstate()
    random.seed(seed)
    answer = []
    for labels, shots in draws:
        chosen: list[int] = []
        for label in dict.fromkeys(labels):
            items = [index for index in range(len(labels)) if labels[index] == label]
            chosen += random.sample(items, shots) if len(items) >= shots else items
        answer.append(chosen)
    random.setstate(state)
    return answer


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("shots", [1, 3, 4, 6])
def test_the_images_are_those_of_the_protocol(seed: int, shots: int) -> None:
    val = LABELS[::-1] + LABELS
    few = few_shot({"train": make(LABELS, 3), "val": make(val, 3)}, shots, seed)
    assert few.val is not None
    expected = protocol(seed, (LABELS, shots), (val, min(shots, 4)))
    assert [indices(few.train), indices(few.val)] == expected
    assert sorted(indices(few.train) + indices(few.heldout)) == list(range(len(LABELS)))
    assert sample_shots(LABELS, shots, random.Random(seed)) == indices(few.train)


def test_a_known_draw() -> None:
    """Printed by random.seed(1) and two calls of random.sample(range(10), 2), the second plus 10,
    on Python 3.11.

    It fails when a Python version draws otherwise, which the test above cannot see.
    """
    assert sample_shots([0] * 10 + [1] * 10, 2, random.Random(1)) == [2, 1, 14, 11]


def test_a_natural_draw_has_the_frequencies_of_the_data() -> None:
    """Items drawn from all alike, without return, have hypergeometric counts: their means and
    variances are in closed form."""
    labels, shots, draws = [0] * 60 + [1] * 30 + [2] * 30, 8, 3000
    rng = random.Random(1)
    counts = np.array(
        [
            np.bincount([labels[i] for i in sample_naturally(labels, shots, rng)], minlength=3)
            for _ in range(draws)
        ]
    )
    total, share = shots * 3, np.array([0.5, 0.25, 0.25])
    assert (counts.sum(1) == total).all()
    assert counts.min() > 0
    variance = total * share * (1 - share) * (120 - total) / (120 - 1)
    error = np.sqrt(variance / draws)
    assert (abs(counts.mean(0) - total * share) < 5 * error).all()
    np.testing.assert_allclose(counts.var(0), variance, rtol=0.15)


def test_a_natural_draw_of_every_class() -> None:
    """Classes with one image among many are drawn, too, and no more images than asked for."""
    labels = [0] * 200 + [1] + [2] * 3
    for seed in range(20):
        few, more = (sample_naturally(labels, shots, random.Random(seed)) for shots in (2, 9))
        assert (len(few), len(more)) == (6, 27)
        assert {labels[i] for i in few} == {0, 1, 2}
        assert len({*few}) == 6
        assert {*few} <= {*more}
    assert sorted(sample_naturally(labels, 100, random.Random(1))) == list(range(204))
    assert sample_naturally(labels, 0, random.Random(1)) == list(range(204))
    once = sample_naturally(labels, 1, random.Random(1))
    assert Counter(labels[i] for i in once) == {0: 1, 1: 1, 2: 1}


def test_a_natural_draw_validates_on_nothing_and_says_what_it_drew(tmp_path: Path) -> None:
    splits = {"train": make(LABELS, 3), "val": make(LABELS, 3)}
    few = few_shot(splits, 3, 1, "natural")
    assert few.val is None
    assert few.draw == "natural"
    assert sorted(indices(few.train) + indices(few.heldout)) == list(range(len(LABELS)))
    counts = Counter(few.train.labels).values()
    assert few.short == (f"natural draw: 9 images, {min(counts)} to {max(counts)} of a class",)
    [text] = few_shot(splits, 6, 1, "natural").short
    assert text == "natural draw: 15 of 18 images, 3 to 6 of a class"

    save_split(few, tmp_path / "split.json")
    assert read_split(tmp_path / "split.json").draw == "natural"
    save_split(replace(few, draw="balanced"), tmp_path / "split.json")
    assert "draw" not in json.loads((tmp_path / "split.json").read_text())
    assert split_digest(few) != split_digest(replace(few, draw="balanced"))


def test_class_weights_of_a_draw_are_by_its_own_counts() -> None:
    few = few_shot({"train": make(LABELS, 3)}, 3, 1, "natural").weighed("balanced")
    counts = Counter(few.train.labels)
    assert len({*counts.values()}) > 1
    expected = [9 / 3 / counts[label] for label in few.train.labels]
    np.testing.assert_allclose(few.train.weights, expected)
    assert few_shot({"train": make(LABELS, 3)}, 3, 1).weighed(None).train.weights == ()


def test_global_generators_stay_untouched() -> None:
    numpy_state = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    before = random.getstate(), torch.random.get_rng_state()
    few_shot({"all": make(LABELS, 3)}, 2, 1)
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # type: ignore[index]
    assert torch.equal(torch.random.get_rng_state(), before[1])


def test_zero_shots_take_all_and_too_few_are_reported() -> None:
    everything = few_shot({"all": make(LABELS, 3)}, 0, 1)
    assert indices(everything.train) == list(range(len(LABELS)))
    assert (len(everything.heldout), everything.val, everything.short) == (0, None, ())
    [few] = few_shot({"all": make(LABELS, 3)}, 4, 1).short
    assert few == "class 'class 1' has 3 images, fewer than 4 shots"
    [one] = few_shot({"all": make([0], 1)}, 2, 1).short
    assert one == "class 'class 0' has 1 image, fewer than 2 shots"


@pytest.mark.parametrize(
    ("splits", "shots", "hint"),
    [
        ({"train": make([0, 0], 2)}, 1, "'class 1' has no train images"),
        ({"test": make([0], 1)}, 1, "only test"),
        ({"train": make([0], 1)}, -1, "shots=-1"),
    ],
)
def test_impossible_draws_are_refused(splits: dict[str, ImageSet], shots: int, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        few_shot(splits, shots, 1)


def test_classes_are_halved_after_drawing() -> None:
    images = make([4, 0, 3, 1, 2, 4], 5)
    base, novel = half(images, "base"), half(images, "novel")
    expected = ([1, 3, 4], (0, 1, 2), ("class 0", "class 1", "class 2"))
    assert (indices(base), base.labels, base.classes) == expected
    expected = ([0, 2, 5], (1, 0, 1), ("class 3", "class 4"))
    assert (indices(novel), novel.labels, novel.classes) == expected
    named = replace(images, written=tuple("abcde"))
    assert [half(named, which).written for which in ("base", "novel")] == [(*"abc",), (*"de",)]
    assert half(images, "all") is images
    with pytest.raises(UserError, match="cannot be halved"):
        half(make([0], 1), "novel")
    with pytest.raises(UserError, match="classes='new'"):
        half(images, "new")  # type: ignore[arg-type]


def test_split_is_written_with_a_digest(tmp_path: Path) -> None:
    path = tmp_path / "new" / "split.json"
    few = few_shot({"train": make(LABELS, 3), "val": make(LABELS, 3)}, 2, 1)
    save_split(few, path)
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["digest"] == split_digest(few)
    expected = (1, 2, ["class 0", "class 1", "class 2"])
    assert (record["seed"], record["shots"], record["classes"]) == expected
    assert record["train"][0] == ["image 0", 2, "class 2"]
    assert len(record["train"]) == len(record["val"]) == 6
    assert [entry.name for entry in path.parent.iterdir()] == ["split.json"]
    again = few_shot({"train": make(LABELS, 3), "val": make(LABELS, 3)}, 2, 1)
    other = few_shot({"train": make(LABELS, 3), "val": make(LABELS, 3)}, 2, 2)
    assert split_digest(again) == split_digest(few) != split_digest(other)


def test_a_split_of_numbered_classes_is_read_again(tmp_path: Path) -> None:
    save_split(few_shot({"train": make([0, 1], 2)}, 1, 1), tmp_path / "split.json")
    found = read_split(tmp_path / "split.json")
    assert (found.classes, found.written) == (("class 0", "class 1"), (0, 1))


@pytest.mark.parametrize(
    ("which", "counts"), [("all", (4, 3, 4)), ("base", (4, 3)), ("novel", (4,))]
)
def test_a_split_counts_the_images_of_each_class(
    tmp_path: Path, which: Literal["all", "base", "novel"], counts: tuple[int, ...]
) -> None:
    save_split(few_shot({"train": make(LABELS, 3)}, 4, 1), tmp_path / "split.json")
    assert read_split(tmp_path / "split.json").counts(which) == counts


def test_a_split_knows_its_images_by_their_content(tmp_path: Path) -> None:
    """Also where they are no longer; an older file needs them in their place, unchanged."""
    few = few_shot({"train": make(LABELS, 3), "val": make(LABELS, 3)}, 2, 1)
    save_split(few, tmp_path / "split.json")
    split = read_split(tmp_path / "split.json")
    for which in ("all", "base", "novel"):
        parts = [half(part, which) for part in few.drawn]
        contents = {content.hex() for part in parts for content in part.contents}
        assert split.contents(which, tmp_path / "elsewhere") == contents
    older = split.model_copy(update={"sha256": []})
    with pytest.raises(UserError, match="can no longer be read"):
        older.contents("all", tmp_path)


def test_the_digest_of_a_split_is_that_of_the_set() -> None:
    few = few_shot({"train": make(LABELS, 3), "val": make(LABELS, 3)}, 2, 1)
    back = replace(few, train=few.train.subset(range(len(few.train))[::-1]))
    assert split_digest(back) == split_digest(few)
    assert order_digest(back) != order_digest(few)
    relabelled = replace(few.train, labels=((few.train.labels[0] + 1) % 3, *few.train.labels[1:]))
    fewer, none = few.train.subset(range(1, len(few.train))), replace(few, val=None)
    for other in (replace(few, train=relabelled), replace(few, train=fewer), none):
        assert split_digest(other) != split_digest(few)
    split_digest(replace(few, val=few.train.subset(())))  # all of its images are unreadable


def test_unrelated_images_share_no_group_with_drawn_ones() -> None:
    images = replace(make([0, 0, 0, 1, 1, 1], 2), groups=("p", "p", "q", "r", "", "v"))
    few = few_shot({"train": images, "val": replace(make([0, 1], 2), groups=("v", ""))}, 1, 1)
    drawn = {*few.train.groups, "v"} - {""}
    wanted = [i for i in indices(few.heldout) if images.groups[i] not in drawn]
    assert indices(few.unrelated) == wanted
    (note,) = few.notes
    assert f" {4 - len(wanted)} " in note
    plain = few_shot({"train": make(LABELS, 3)}, 2, 1)
    assert plain.unrelated is plain.heldout
    assert plain.notes == ()
